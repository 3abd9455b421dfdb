"""Inference form of the ConvNeXt encoder: the same function as the plain modules, much faster.

What it does differently: no transpose anywhere, since strided convolutions are matrix products
over neighbors laid side by side and depthwise ones run on channels-last images one pixel high; on a
CPU the weights of dense layers are laid out once, and GELU is applied as they write; the response
norm scales in place, its constant being part of the next bias; a few rows at a time pass the
network, so that the activations of a block stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.codecs.convnext import KERNEL, ConvNeXtBlock, ConvNeXtEncoder, Shorten, share
from skyvec_core.packed import PackedLinear

# Shape letters: B object, L sample along the sequence, C channel, H hidden channel of a block.

ROWS_AT_ONCE = 4
"""Rows that pass the network together on a CPU."""


class FastConvNeXtEncoder:
    """The function of a frozen `ConvNeXtEncoder`.

    Parameters
    ----------
    encoder
        On its final device; must not change afterwards.
    precision
        Type of the dense layers of the blocks; the sequence that their results are added to, the
        convolutions and the norms are always float32.
    """

    def __init__(self, encoder: ConvNeXtEncoder, *, precision: torch.dtype) -> None:
        self._stages = [
            (
                [_FastShorten(m) if isinstance(m, Shorten) else m for m in _modules(shorten)],
                [_FastBlock(cast("ConvNeXtBlock", m), precision) for m in _modules(stage)],
            )
            for shorten, stage in zip(encoder.downsample_layers, encoder.stages, strict=True)
        ]
        self._norm = encoder.norm
        self._made_from = (encoder, precision)

    def __reduce__(self) -> tuple[Callable[..., FastConvNeXtEncoder], tuple[ConvNeXtEncoder]]:
        # Weights that are laid out for one processor cannot be copied or sent.
        encoder, precision = self._made_from
        return partial(FastConvNeXtEncoder, precision=precision), (encoder,)

    @torch.no_grad()
    def __call__(self, x_BLC: Tensor) -> Tensor:
        """What the encoder gives, float32."""
        # A divisor of the batch: where a row stands must not change the shape it is computed in.
        rows = gcd(len(x_BLC), ROWS_AT_ONCE) if x_BLC.device.type == "cpu" else len(x_BLC)
        # One place for all squares: fresh pages from the system cost more than the squaring.
        squares = torch.empty(0, device=x_BLC.device)
        return torch.cat([self._encode(part_BLC, squares) for part_BLC in torch.split(x_BLC, rows)])

    def _encode(self, x_BLC: Tensor, squares: Tensor) -> Tensor:
        for shorten, blocks in self._stages:
            for step in shorten:
                x_BLC = step(x_BLC)
            for block in blocks:
                x_BLC += block(x_BLC, squares)
        out_BLC: Tensor = self._norm(x_BLC)
        return out_BLC


class _FastShorten:
    def __init__(self, shorten: Shorten) -> None:
        self._stride = shorten.stride[0]
        weight = shorten.weight.transpose(1, 2).flatten(1)
        self._linear = PackedLinear(weight.detach(), cast("Tensor", shorten.bias).detach())

    def __call__(self, x_BLC: Tensor) -> Tensor:
        rows, length, channels = x_BLC.shape
        return self._linear(x_BLC.reshape(rows, length // self._stride, self._stride * channels))


class _FastBlock:
    """A `ConvNeXtBlock` without the addition to its input."""

    def __init__(self, block: ConvNeXtBlock, precision: torch.dtype) -> None:
        self._dwconv, self._norm = block.dwconv, block.norm
        self._gamma_H = block.grn.gamma.detach().flatten()
        widen, narrow = block.pwconv1, block.pwconv2
        # A constant that is added to all hidden samples is a bias of what comes next.
        bias_C = narrow.bias + narrow.weight @ block.grn.beta.flatten()
        self._widen = PackedLinear(
            widen.weight.detach().to(precision), widen.bias.detach().to(precision), gelu=True
        )
        self._narrow = PackedLinear(
            narrow.weight.detach().to(precision), bias_C.detach().to(precision)
        )

    def __call__(self, x_BLC: Tensor, squares: Tensor) -> Tensor:
        y_BC1L = functional.conv2d(
            x_BLC.mT.unsqueeze(2),
            self._dwconv.weight.unsqueeze(2),
            self._dwconv.bias,
            padding=(0, KERNEL // 2),
            groups=x_BLC.shape[-1],
        )
        hidden_BLH = self._widen(self._norm(y_BC1L.squeeze(2).mT))
        # Many times faster than the norm of torch over an axis that is not the last.
        squares_BLH = squares.resize_(hidden_BLH.shape).copy_(hidden_BLH).square_()
        share_B1H = share(squares_BLH.sum(1, keepdim=True).sqrt())
        hidden_BLH *= (1 + self._gamma_H * share_B1H).to(hidden_BLH.dtype)
        return self._narrow(hidden_BLH)


def _modules(sequence: nn.Module) -> Iterable[nn.Module]:
    return cast("nn.Sequential", sequence)
