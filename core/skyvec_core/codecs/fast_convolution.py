"""Convolution of stride 1 with fewer multiplications: overlapping tiles in a transformed domain.

A window of pixels and the kernel are each mapped to coefficients, multiplied coefficient by
coefficient (one matrix product over the channels each), and mapped back to a tile of output pixels
(Lavin & Gray 2015, arXiv 1509.09308). But for rounding the result is that of ``Conv2d``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shape letters: B object, H W pixels, C D channels in and out, T tiles of all objects,
# P pixels of a tile, Q pixels of a window, R pixels of the kernel, K coefficients.

SMALL_KERNEL_NODES = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Nodes (and infinity) for 4 x 4 tiles of a 3 x 3 kernel; the usual 0, 1, -1, 2, -2 round 2.5 times
worse (cf. Barabasz et al. 2018, arXiv 1803.10986)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileTransform:
    """Three linear maps (float64) that turn the convolution of a tile into single products."""

    tile: int
    """Pixels on a side of a tile of the output."""
    kernel: int
    """Pixels on a side of the kernel."""
    of_window_KQ: Tensor
    of_kernel_KR: Tensor
    to_tile_PK: Tensor

    @property
    def window(self) -> int:
        """Pixels on a side of the input that a tile depends on."""
        return self.tile + self.kernel - 1


def toom_cook(*, tile: int, kernel: int, nodes: Sequence[float]) -> TileTransform:
    """Fewest coefficients, by values of polynomials at ``nodes`` and infinity.

    Rounding errors grow fast with the window; ``nodes`` are ``tile + kernel - 2`` numbers.
    """
    window = tile + kernel - 1
    if len(nodes) != window - 1:
        raise ValueError(f"{len(nodes)} nodes; tiles of {tile} and {kernel} need {window - 1}")
    # Transposing the product of polynomials (of a kernel and a tile) gives the correlation.
    of_window = torch.linalg.inv(_values(nodes, window)).T.contiguous()
    of_kernel, to_tile = _values(nodes, kernel), _values(nodes, tile).T.contiguous()
    return TileTransform(
        tile=tile,
        kernel=kernel,
        of_window_KQ=torch.kron(of_window, of_window),
        of_kernel_KR=torch.kron(of_kernel, of_kernel),
        to_tile_PK=torch.kron(to_tile, to_tile),
    )


def _values(nodes: Sequence[float], terms: int) -> Tensor:
    """Values at the nodes, and leading coefficient, of 1, x, x^2 ... (terms)."""
    finite = torch.tensor(nodes, dtype=torch.float64)[:, None] ** torch.arange(terms)
    return torch.cat([finite, torch.eye(terms, dtype=torch.float64)[-1:]])


def fourier(*, tile: int, kernel: int) -> TileTransform:
    """Discrete Fourier transform of the window, in real numbers; rounds less than ``Conv2d`` does.

    Of two conjugate coefficients one is kept, and its complex product (a + ib)(c + id) is taken
    in three real ones: c(a + b), a(d - c) and b(c + d).
    """
    window = tile + kernel - 1
    of_window, of_kernel, to_tile = [], [], []
    for u in range(window):
        for v in range(window):
            mirrored = (-u % window, -v % window)
            if (u, v) > mirrored:
                continue
            cos_Q, sin_Q = _waves(u, v, size=window, period=window)
            cos_R, sin_R = _waves(u, v, size=kernel, period=window)
            cos_P, sin_P = (wave / window**2 for wave in _waves(u, v, size=tile, period=window))
            if (u, v) == mirrored:
                of_window += [cos_Q]
                of_kernel += [cos_R]
                to_tile += [cos_P]
            else:
                of_window += [cos_Q - sin_Q, cos_Q, -sin_Q]
                of_kernel += [cos_R, sin_R - cos_R, cos_R + sin_R]
                to_tile += [2 * (cos_P - sin_P), -2 * sin_P, -2 * cos_P]
    return TileTransform(
        tile=tile,
        kernel=kernel,
        of_window_KQ=torch.stack(of_window),
        of_kernel_KR=torch.stack(of_kernel),
        to_tile_PK=torch.stack(to_tile, 1),
    )


def _waves(u: int, v: int, *, size: int, period: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi (u i + v j) / period`` over ``size`` x ``size`` pixels, flat."""
    pixel = torch.arange(size)
    steps = (u * pixel[:, None] + v * pixel) % period
    phase = steps.flatten().double() * (2 * pi / period)
    return phase.cos(), phase.sin()


class TiledConvolution:
    """A ``Conv2d`` of stride 1 that keeps the size, for inference only.

    Parameters
    ----------
    conv
        Its weights are transformed once, into new tensors on its device.
    transform
        For the kernel of ``conv``.
    products
        Type of the factors of the products over channels, which are nearly all of the work; the
        transforms are done in float32.
    """

    def __init__(
        self, conv: nn.Conv2d, transform: TileTransform, *, products: torch.dtype = torch.float32
    ) -> None:
        device = conv.weight.device
        of_kernel_KR = transform.of_kernel_KR.to(device)
        shape_KCD = (len(of_kernel_KR), conv.in_channels, conv.out_channels)
        self._weight_KCD = torch.empty(shape_KCD, dtype=products, device=device)
        # Channel by channel: in double precision all of it would be several times the result.
        for channel, weight_DR in enumerate(conv.weight.detach().double().flatten(2).unbind(1)):
            self._weight_KCD[:, channel] = of_kernel_KR @ weight_DR.T
        bias = torch.zeros(conv.out_channels, device=device) if conv.bias is None else conv.bias
        self._bias_D = bias.detach().float()
        self._of_window_KQ = transform.of_window_KQ.to(device, torch.float32)
        self._to_tile_PK = transform.to_tile_PK.to(device, torch.float32)
        self._transform = transform

    def __call__(self, x_BHWC: Tensor) -> Tensor:
        """Convolve (B, H, W, C) to float32 (B, H, W, D)."""
        count, height, width, channels = x_BHWC.shape
        tile, window = self._transform.tile, self._transform.window
        high, wide = -(-height // tile), -(-width // tile)
        window_TQC = self._windows(x_BHWC, high, wide).reshape(
            count * high * wide, window * window, channels
        )
        found_TKC = _map_tiles(self._of_window_KQ, window_TQC).to(self._weight_KCD.dtype)
        made_KTD = torch.bmm(found_TKC.transpose(0, 1), self._weight_KCD)
        tile_TPD = _map_tiles(self._to_tile_PK, made_KTD.transpose(0, 1).float())
        outputs = len(self._bias_D)
        made_BHWD = tile_TPD.new_empty(count, high * tile, wide * tile, outputs)
        torch.add(
            tile_TPD.view(count, high, wide, tile, tile, outputs).transpose(2, 3),
            self._bias_D,
            out=made_BHWD.view(count, high, tile, wide, tile, outputs),
        )
        return made_BHWD[:, :height, :width]

    def _windows(self, x_BHWC: Tensor, high: int, wide: int) -> Tensor:
        """Overlapping view (B, high, wide, window, window, C) of the zero-padded planes."""
        _, height, width, _ = x_BHWC.shape
        tile, window = self._transform.tile, self._transform.window
        before = self._transform.kernel // 2
        below = high * tile + window - tile - before - height
        right = wide * tile + window - tile - before - width
        padded = functional.pad(x_BHWC.float(), (0, 0, before, right, before, below))
        return padded.unfold(1, window, tile).unfold(2, window, tile).permute(0, 1, 2, 4, 5, 3)


def _map_tiles(matrix: Tensor, tiles_TIC: Tensor) -> Tensor:
    """The same matrix (J, I) applied to each tile: (T, J, C)."""
    return torch.bmm(matrix.expand(len(tiles_TIC), *matrix.shape), tiles_TIC)
