"""Inference form of the image encoder: the function of the plain modules in less time.

The band projection is folded into the first convolution; tensors are channels-last; few cutouts
at a time pass each grid, so that their planes stay in the cache; on a CPU, convolutions of stride 1
run as `TiledConvolution`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.codecs.autoencoder import Autoencoder, Convolution, ResidualUnit, SqueezeExcite
from skyvec_core.codecs.fast_convolution import (
    SMALL_KERNEL_NODES,
    TiledConvolution,
    fourier,
    toom_cook,
)

# Shape letters: B object, C band (and ones), D E channel in and out, S channel of the projection,
# H W pixels of a grid, P all of them, K kernel pixels (twice), L latent.

PIXELS_AT_ONCE = 8 * 24 * 24
"""Pixels, of any grid, that go through the layers of that grid together."""

WIDE = 512
"""Channels from which tiles pay for 3 x 3 kernels in bfloat16."""

Layer = Callable[[Tensor], Tensor]
"""Planes (B, H, W, D) to planes, channels-last contiguous."""


class FastEncoder:
    """Compressed cutouts to latents, with copies of the weights of the plain modules.

    Parameters
    ----------
    projection
        Linear map from all bands to the inputs of ``autoencoder``.
    to_latent
        1 x 1 convolution behind the encoder.
    precision
        Type of the factors in convolutions. Sums between layers, gates, the norm and the latents
        are float32 always.
    """

    def __init__(
        self,
        projection: nn.Linear,
        autoencoder: Autoencoder,
        to_latent: nn.Conv2d,
        *,
        precision: torch.dtype,
    ) -> None:
        self._projection = projection
        self._conv_in = autoencoder.conv_in.conv
        self._first_layers: dict[tuple[int, ...], Layer] = {}
        *layers, norm = autoencoder.encoder_layers
        self._grids: list[list[Layer]] = [[]]
        for layer in layers:
            for module in layer if isinstance(layer, nn.Sequential) else [layer]:
                if isinstance(module, ResidualUnit):
                    self._grids[-1].append(_FastResidualUnit(module, precision))
                    continue
                conv = cast("Convolution", module).conv
                self._grids[-1].append(_fast_convolution(conv, precision))
                if conv.stride != (1, 1):
                    self._grids.append([])
        self._grids[-1].append(_FastHead(norm, to_latent))

    @torch.no_grad()
    def __call__(self, compressed_BCHW: Tensor, channels: Sequence[int]) -> Tensor:
        """Latents (B, L, h, w) of these codec channels.

        Bits do not depend on B as long as it is a multiple of the cutouts that pass together.
        """
        x_BHWD = _with_ones(compressed_BCHW)
        first, *coarser = self._grids
        for layers in ([self._first_layer(tuple(channels)), *first], *coarser):
            at_once = max(1, PIXELS_AT_ONCE // x_BHWD[0, :, :, 0].numel())
            pieces = torch.split(x_BHWD, at_once)
            x_BHWD = torch.cat([reduce(_apply, layers, piece) for piece in pieces])
        return x_BHWD.movedim(-1, 1)

    def _first_layer(self, channels: tuple[int, ...]) -> Layer:
        """First convolution straight from these bands and ones, always in float32."""
        if channels not in self._first_layers:
            scale = (self._projection.in_features / len(channels)) ** 0.5
            weight_SC = self._projection.weight.detach()[:, list(channels)]
            # The bias is a channel of ones, since it ends where the cutout does.
            weight_SC = torch.cat([weight_SC, self._projection.bias.detach()[:, None]], 1)
            weight_ESKK = self._conv_in.weight.detach()
            weight_ECKK = torch.einsum(
                "eskl,sc->eckl", weight_ESKK.double(), weight_SC.double() * scale
            )
            self._first_layers[channels] = _DirectConvolution(
                self._conv_in, weight_ECKK, torch.float32
            )
        return self._first_layers[channels]


def _apply(planes: Tensor, layer: Layer) -> Tensor:
    return layer(planes)


def _with_ones(planes_BCHW: Tensor) -> Tensor:
    """Channels-last copy with one more channel, of ones."""
    ones_B1HW = torch.ones_like(planes_BCHW[:, :1])
    return torch.cat([planes_BCHW, ones_B1HW], 1).movedim(1, -1).contiguous()


def _fast_convolution(conv: nn.Conv2d, precision: torch.dtype) -> Layer:
    """The fastest form on the device of ``conv``, as measured at the sizes of AION-1."""
    kernel = conv.kernel_size[0]
    if conv.weight.device.type == "cpu" and conv.stride == (1, 1):
        if kernel == 7:
            return TiledConvolution(conv, fourier(tile=8, kernel=7), products=precision)
        if precision == torch.float32:
            transform = toom_cook(tile=4, kernel=kernel, nodes=SMALL_KERNEL_NODES)
            return TiledConvolution(conv, transform, products=precision)
        if conv.in_channels >= WIDE:
            return TiledConvolution(conv, fourier(tile=6, kernel=kernel), products=precision)
    return _DirectConvolution(conv, conv.weight.detach(), precision)


class _DirectConvolution:
    """``conv`` with another weight and type."""

    def __init__(self, conv: nn.Conv2d, weight_EDKK: Tensor, precision: torch.dtype) -> None:
        self._weight_EDKK = weight_EDKK.to(precision).to(memory_format=torch.channels_last)
        self._bias_E = None if conv.bias is None else conv.bias.detach().to(precision)
        self._stride, self._padding = conv.stride, conv.padding

    def __call__(self, x_BHWD: Tensor) -> Tensor:
        x_BDHW = x_BHWD.to(self._weight_EDKK.dtype).movedim(-1, 1)
        made_BEHW = functional.conv2d(
            x_BDHW,
            self._weight_EDKK,
            self._bias_E,
            stride=self._stride,
            padding=self._padding,
        )
        return made_BEHW.movedim(1, -1).contiguous()


class _FastResidualUnit:
    def __init__(self, unit: ResidualUnit, precision: torch.dtype) -> None:
        convolution, _, mix, _, gate = unit.net
        self._convolve = _fast_convolution(cast("Convolution", convolution).conv, precision)
        self._mix = _PixelwiseLinear(cast("nn.Conv2d", mix), precision)
        self._gate = _FastGate(cast("SqueezeExcite", gate), precision)

    def __call__(self, x_BHWD: Tensor) -> Tensor:
        made_BHWD = functional.elu_(self._convolve(x_BHWD))
        made_BHWD = functional.elu_(self._mix(made_BHWD))
        return torch.addcmul(x_BHWD.float(), made_BHWD, self._gate(made_BHWD))


class _FastGate:
    def __init__(self, gate: SqueezeExcite, precision: torch.dtype) -> None:
        # The bias of to_k is left out: the softmax over pixels takes away what they share.
        self._key_D = gate.to_k.weight.detach().flatten().to(precision)
        squeeze, self._bend, excite, self._squash = gate.net
        self._squeeze = _PixelwiseLinear(cast("nn.Conv2d", squeeze), torch.float32)
        self._excite = _PixelwiseLinear(cast("nn.Conv2d", excite), torch.float32)

    def __call__(self, x_BHWD: Tensor) -> Tensor:
        x_BPD = x_BHWD.flatten(1, 2)
        weight_BP = (x_BPD @ self._key_D).float().softmax(-1)
        mean_B1D = torch.bmm(weight_BP[:, None].to(x_BPD.dtype), x_BPD).float()
        gate_B1D: Tensor = self._squash(self._excite(self._bend(self._squeeze(mean_B1D))))
        return gate_B1D[:, None]


class _FastHead:
    """Norm over channels, then latents (B, H, W, L)."""

    def __init__(self, norm: nn.Module, to_latent: nn.Conv2d) -> None:
        self._norm = norm
        self._to_latent = _PixelwiseLinear(to_latent, torch.float32)

    def __call__(self, x_BHWD: Tensor) -> Tensor:
        normal_BDHW: Tensor = self._norm(x_BHWD.movedim(-1, 1))
        return self._to_latent(normal_BDHW.movedim(1, -1))


class _PixelwiseLinear:
    """A 1 x 1 convolution, channels-last."""

    def __init__(self, conv: nn.Conv2d, precision: torch.dtype) -> None:
        self._weight_ED = conv.weight.detach().flatten(1).to(precision)
        self._bias_E = None if conv.bias is None else conv.bias.detach().to(precision)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self._weight_ED.dtype), self._weight_ED, self._bias_E)
