"""Continuous values to discrete codes: finite scalar quantization, quantiles, a fixed grid.

Sources: FSQ after Mentzer et al. 2023 (arXiv 2309.15505); quantile and grid tables as AION-1
publishes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class FiniteScalarQuantizer(nn.Module):
    """d bounded dimensions, rounded to ``levels`` values each; the code counts the first fastest."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int32))
        basis = torch.tensor([1, *levels[:-1]], dtype=torch.int64).cumprod(0)
        self.register_buffer("basis", basis, persistent=False)
        self.num_codes = prod(levels)

    def bound(self, latent: Tensor) -> Tensor:
        """Squash the last axis (d) into the range that rounds to the levels."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        return torch.tanh(latent + shift) * half - offset

    def forward(self, latent: Tensor) -> Tensor:
        """Quantized latent in [-1, 1], (..., d); gradients pass straight through the rounding."""
        bounded = self.bound(latent)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def codes(self, latent: Tensor) -> Tensor:
        """Codes (...) of latents (..., d), int64."""
        digits = self.bound(latent).round().long() + self.levels // 2
        return (digits * self.basis).sum(-1)

    def latents(self, codes: Tensor) -> Tensor:
        """Quantized latents (..., d) in [-1, 1] of codes (...)."""
        digits = codes[..., None] // self.basis % self.levels
        half = self.levels // 2
        return (digits - half) / half


class QuantileTable(nn.Module):
    """Right-edge lookup in a sorted table of values: code c holds ``(table[c-1], table[c]]``."""

    def __init__(self, size: int, *, name: str = "_index_to_val") -> None:
        super().__init__()
        self.register_buffer(name, torch.zeros(size))
        self._name = name

    @property
    def values(self) -> Tensor:
        """The table, (size,), ascending."""
        values: Tensor = getattr(self, self._name)
        return values

    def fit(self, sample: Tensor) -> None:
        """Set the table to equally spaced quantiles of a sample (n,), NaN left out."""
        finite = sample[torch.isfinite(sample)].double().sort().values
        if finite.numel() == 0:
            raise ValueError("cannot fit quantiles: the sample holds no finite value")
        rank = torch.linspace(0, 1, self.values.numel(), dtype=torch.float64) * (finite.numel() - 1)
        low = rank.floor().long()
        high = (low + 1).clamp(max=finite.numel() - 1)
        fitted = finite[low] + (finite[high] - finite[low]) * (rank - low)
        self.values.copy_(fitted.float())

    def codes(self, values: Tensor) -> Tensor:
        """Codes, int64, clamped to the ends of the table."""
        return torch.bucketize(values.contiguous(), self.values[:-1], right=False)

    def lookup(self, codes: Tensor) -> Tensor:
        """Right edge of each code's interval."""
        return self.values[codes]


class LookupFreeQuantizer(nn.Module):
    """d dimensions reduced to their signs; the code's most significant bit is the first of them.

    Source: Yu et al. 2023 (arXiv 2310.05737).
    """

    mask: Tensor
    """Place value of each dimension's bit, under its published name."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mask", 2 ** torch.arange(dimensions - 1, -1, -1))
        self.num_codes = 2**dimensions

    def forward(self, latent: Tensor) -> Tensor:
        """Quantized latent of -1 and 1, (..., d); gradients pass straight through the sign."""
        signs = torch.where(latent > 0, 1.0, -1.0)
        return latent + (signs - latent).detach()

    def codes(self, latent: Tensor) -> Tensor:
        """Codes (...) of latents (..., d), int64; only what is above 0 sets its bit."""
        return ((latent > 0) * self.mask).sum(-1)

    def latents(self, codes: Tensor) -> Tensor:
        """Quantized latents (..., d) of codes (...)."""
        bits = (codes[..., None] & self.mask) != 0
        return torch.where(bits, 1.0, -1.0)
