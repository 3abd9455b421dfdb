"""One-dimensional ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808), with AION-1's tensor names.

Activations are channels-last (B, L, C) throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shape letters: B object, L sample along the sequence, C D channels, H hidden channel of a block.

EPSILON = 1e-6
KERNEL = 7
"""Samples that a depthwise convolution sees."""


class GlobalResponseNorm(nn.Module):
    """Strengthens the channels that respond most over the whole sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Same shape as the input."""
        share_B1C = share(torch.linalg.vector_norm(x_BLC, dim=1, keepdim=True))
        return self.gamma * (x_BLC * share_B1C) + self.beta + x_BLC


def share(norm_B1C: Tensor) -> Tensor:
    """Norm of each channel relative to the mean over channels."""
    return norm_B1C / (norm_B1C.mean(-1, keepdim=True) + EPSILON)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a widening pointwise pair, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.grn = GlobalResponseNorm(4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Same shape as the input."""
        y_BLC = self.norm(self.dwconv(x_BLC.mT).mT)
        hidden_BLH = self.grn(functional.gelu(self.pwconv1(y_BLC)))
        out_BLC: Tensor = x_BLC + self.pwconv2(hidden_BLH)
        return out_BLC


class Shorten(nn.Conv1d):
    """Convolution whose stride k is its kernel: (B, L, C) -> (B, L / k, D)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride, stride=stride)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Every k neighboring samples become one."""
        return super().forward(x_BLC.mT).mT


class Lengthen(nn.ConvTranspose1d):
    """Transposed convolution whose stride k is its kernel: (B, L, C) -> (B, L k, D)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride, stride=stride)

    def forward(self, x_BLC: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Every sample becomes k neighbors."""
        return super().forward(x_BLC.mT, output_size).mT


class ConvNeXtEncoder(nn.Module):
    """Shortens a sequence by 4, then by 2 before each further stage.

    Parameters
    ----------
    channels
        Channels of the input.
    depths, widths
        Blocks and channels of each stage.
    """

    def __init__(self, channels: int, *, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        first = nn.Sequential(Shorten(channels, widths[0], 4), _norm(widths[0]))
        others = [nn.Sequential(_norm(a), Shorten(a, b, 2)) for a, b in pairwise(widths)]
        self.downsample_layers = nn.ModuleList([first, *others])
        self.stages = _stages(depths, widths)
        self.norm = _norm(widths[-1])

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L / 2^(stages + 1), widths[-1])."""
        for shorten, stage in zip(self.downsample_layers, self.stages, strict=True):
            x_BLC = stage(shorten(x_BLC))
        out: Tensor = self.norm(x_BLC)
        return out


class ConvNeXtDecoder(nn.Module):
    """Lengthens a sequence by 2 before each stage, by 4 before the last one.

    Parameters
    ----------
    channels
        Channels of the input.
    depths, widths
        Blocks and channels of each stage; the last width is that of the output.
    """

    def __init__(self, channels: int, *, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        first = nn.Sequential(Lengthen(channels, widths[0], 2), _norm(widths[0]))
        factors = [2] * (len(widths) - 2) + [4]
        others = [
            nn.Sequential(_norm(a), Lengthen(a, b, factor))
            for (a, b), factor in zip(pairwise(widths), factors, strict=True)
        ]
        self.upsample_layers = nn.ModuleList([first, *others])
        self.stages = _stages(depths, widths)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L * 2^(stages + 1), widths[-1])."""
        for lengthen, stage in zip(self.upsample_layers, self.stages, strict=True):
            x_BLC = stage(lengthen(x_BLC))
        return x_BLC


def _stages(depths: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
        for depth, width in zip(depths, widths, strict=True)
    )


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=EPSILON)
