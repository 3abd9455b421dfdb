"""Observations of several objects, one entry for each modality, with what was really observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Shape letters: B object, C band, H W cutout pixels, N tokens of one modality.


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Cutouts of B objects in one survey, on one pixel grid."""

    flux_BCHW: Tensor
    """Flux per pixel in the survey's unit; the value of a bad pixel is never read."""
    good_BCHW: Tensor
    """True where the pixel was observed and is good; False in padding."""
    bands: tuple[str, ...]
    """Codec band names, e.g. ``DES-G``, one for each of the C planes."""

    def __post_init__(self) -> None:
        if self.flux_BCHW.shape != self.good_BCHW.shape:
            raise ValueError(
                f"flux {tuple(self.flux_BCHW.shape)} and good {tuple(self.good_BCHW.shape)} differ"
            )
        if self.flux_BCHW.shape[1] != len(self.bands):
            raise ValueError(f"{self.flux_BCHW.shape[1]} planes but bands {self.bands}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Codes of B objects for one modality."""

    ids_BN: Tensor
    """Codes, int64; meaningless where not valid."""
    valid_BN: Tensor
    """True where the token stands for something that was observed."""


Observations = Mapping[str, Images | Tensor]
"""Token key -> `Images`, or a float tensor (B,) with NaN where a scalar was not measured."""

TokenSet = Mapping[str, Tokens]
"""Token key -> `Tokens`; every entry has the same number of objects."""


def fit_to_grid(flux: Tensor, good: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """Centre crop, or pad with bad pixels, to ``size`` x ``size``; never resamples.

    Parameters
    ----------
    flux, good
        (..., H, W), float and bool.
    size
        Pixels on a side of the result. The crop starts at ``(H - size) // 2`` (as AION-1's).

    Returns
    -------
    tuple
        New tensors (..., size, size); padding has flux 0 and good False.
    """
    height, width = flux.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    if top >= 0 and left >= 0:
        window = (..., slice(top, top + size), slice(left, left + size))
        return flux[window].clone(), good[window].clone()
    cropped_flux = flux[..., max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    cropped_good = good[..., max(top, 0) : max(top, 0) + size, max(left, 0) : max(left, 0) + size]
    rows, columns = cropped_flux.shape[-2:]
    into = (..., slice((size - rows) // 2, (size - rows) // 2 + rows),
            slice((size - columns) // 2, (size - columns) // 2 + columns))  # fmt: skip
    flux_out = torch.zeros((*flux.shape[:-2], size, size), dtype=flux.dtype)
    good_out = torch.zeros((*flux.shape[:-2], size, size), dtype=torch.bool)
    flux_out[into], good_out[into] = cropped_flux, cropped_good
    return flux_out, good_out
