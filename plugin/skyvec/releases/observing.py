"""Arrays as a file holds them -> observations for the codecs, with the reasons for doubt.

Every format ends here, so that one object means one thing: which pixels and samples count as good,
what is padded, what is missing and what is malformed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import EllipsisType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Images, Spectra, fit_to_grid
from skyvec_schemas.errors import ContractError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import (
    CoefficientsColumn,
    ImageColumn,
    SpectrumColumn,
    Survey,
)

Numbers = NDArray[np.generic]
Planes = NDArray[np.float32]
Power = NDArray[np.float32]
Marks = NDArray[np.bool_]
Counts = NDArray[np.int64]
Flags = NDArray[np.int32]

MIN_GOOD_FRACTION = 0.5
"""Share of a cutout's own pixels that must be good, or no vector is made."""
WAVELENGTH_RANGE = (300.0, 30000.0)
"""Angstrom; a spectrum beyond is in another unit."""
# As numbers, since numpy takes four times as long for members of an enumeration.
_PADDED = np.int32(Flag.IMAGE_PADDED)
_BAD_PIXELS = np.int32(Flag.IMAGE_BAD_PIXELS)
_UNUSABLE = np.int32(Flag.IMAGE_UNUSABLE)
_TOKENS_DROPPED = np.int32(Flag.IMAGE_TOKENS_DROPPED)


def observe_images(
    flux: Numbers | Tensor, good: Numbers | Tensor | None, image: ImageColumn, *, size: int
) -> tuple[Images, Flags]:
    """Cutouts of one shape, brought to ``size`` x ``size`` by a centre crop or masked padding.

    Parameters
    ----------
    flux
        (n, band, H, W), bands in the survey's order.
    good
        The file's mask, (n, band, H, W) or one for all bands (n, H, W); None if there is none.
    image
        What the survey declares; says whether True is good.
    size
        Side of the codec's window in cutout pixels.
    """
    window = _window(flux.shape, size)  # first, so that the rest of a stamp costs nothing
    planes = torch.as_tensor(flux)[window].float()
    # In numpy, here and below: torch takes three to ten times as long for booleans.
    seen = np.ones(tuple(planes.shape), np.bool_)
    bad = np.zeros(len(seen), np.int64)
    if good is not None:
        bad = mark_good(seen, np.asarray(good)[window].astype(np.bool_, copy=False), image)
    with np.errstate(over="ignore", invalid="ignore"):
        power = plane_power(planes.numpy())
    return judge_images(planes, seen, image, size=size, power=power, bad=bad)


def mark_good(good: Marks, mask: Marks | None, image: ImageColumn) -> Counts:
    """Write a mask over ``good`` (n, band, H, W) as True for good; returns how many are not.

    Parameters
    ----------
    mask
        (n, band, H, W), or one for all bands (n, H, W); None if ``good`` already holds it.
    """
    if not image.mask_is_good:
        mask = ~(good if mask is None else mask)
    if mask is not None:
        good[...] = mask if mask.ndim == good.ndim else mask[:, None]
    marked = good if mask is None else mask
    clean = marked.reshape(len(marked), math.prod(marked.shape[1:])).all(axis=1)
    bad = np.zeros(len(good), np.int64)
    for row in np.flatnonzero(~clean).tolist():
        # One by one: along an axis numpy counts a hundred times as slowly.
        bad[row] = good[row].size - np.count_nonzero(good[row])
    return bad


def plane_power(planes: Planes) -> Power:
    """Sum of squares of each plane of (n, band, H, W): finite only if all of its pixels are.

    Not of whole cutouts, which are so long that BLAS uses threads.
    """
    rows, bands, height, width = planes.shape
    flat = planes.reshape(rows, bands, height * width)
    return np.asarray(np.vecdot(flat, flat))


def judge_images(
    planes: Tensor, good: Marks, image: ImageColumn, *, size: int, power: Power, bad: Counts
) -> tuple[Images, Flags]:
    """As `observe_images`, of pixels that are already float32 and in the window.

    Parameters
    ----------
    planes
        (n, band, H, W), contiguous; kept, not copied, if it is ``size`` x ``size``.
    good
        The same shape, True for good; kept and changed alike.
    power
        (n, band), see `plane_power`: where it is finite no pixel is looked at again.
    bad
        (n,), how many of ``good`` are False; changed.
    """
    # Infinite it may also be because the squares overflow, so then the pixels decide.
    unsure = np.flatnonzero(~np.isfinite(power).all(axis=1)).tolist()
    for row in unsure:
        good[row] &= np.isfinite(planes[row].numpy())
    seen = torch.from_numpy(good)
    rows, bands, height, width = planes.shape
    if (height, width) != (size, size):
        planes, seen = fit_to_grid(planes, seen, size=size)
        good, unsure = seen.numpy(), list(range(rows))
    height, width = min(height, size), min(width, size)
    own = bands * height * width
    for row in unsure:
        bad[row] = own - np.count_nonzero(good[row])
    flags = _image_doubts(good, bad, image, height=height, width=width)
    if bad.max(initial=0) > own * (1 - MIN_GOOD_FRACTION):
        seen[torch.from_numpy((flags & _UNUSABLE) != 0)] = False
    return Images(flux_BCHW=planes, good_BCHW=seen, bands=tuple(image.bands.values())), flags


def _window(shape: Sequence[int], size: int) -> tuple[EllipsisType | slice, ...]:
    """The middle of the last two axes, where they are longer than ``size``; as `fit_to_grid` crops."""
    edges = [max(0, (side - size) // 2) for side in shape[-2:]]
    return (..., *(slice(edge, edge + size) for edge in edges))


def no_images(count: int, image: ImageColumn, *, size: int) -> Images:
    """Cutouts of objects that have none."""
    shape = (count, len(image.bands), size, size)
    return Images(
        flux_BCHW=torch.zeros(shape),
        good_BCHW=torch.zeros(shape, dtype=torch.bool),
        bands=tuple(image.bands.values()),
    )


def _image_doubts(
    good: Marks, bad: Counts, image: ImageColumn, *, height: int, width: int
) -> Flags:
    """Flags of fitted cutouts, of which ``height`` x ``width`` are no padding."""
    rows, bands, size, _ = good.shape
    flags = np.zeros(rows, np.int32)
    padded = min(height, width) < size
    if padded:
        flags |= _PADDED
    worst = int(bad.max(initial=0))
    if worst:
        flags[bad > 0] |= _BAD_PIXELS
    if worst > (half := bands * height * width * (1 - MIN_GOOD_FRACTION)):
        flags[bad > half] |= _UNUSABLE
    cell = max(1, size // MODALITIES[image.token_key].grid[0])
    # In whole cells it takes so many bad pixels to spoil one.
    enough = 0 if padded else bands * cell**2 * (1 - MIN_GOOD_FRACTION)
    if worst > enough:
        doubtful = np.flatnonzero(bad > enough)
        whole = torch.ones(1, bands, height, width, dtype=torch.bool)
        covered = _spoilt(fit_to_grid(whole.float(), whole, size=size)[1].numpy(), cell)
        dropped = _spoilt(good[doubtful], cell) & ~covered
        flags[doubtful[dropped.any(axis=(1, 2))]] |= _TOKENS_DROPPED
    return flags


def _spoilt(good: NDArray[np.bool_], cell: int) -> NDArray[np.bool_]:
    """Cells (rows, down, across) of which more than half of the pixels of all bands are bad."""
    rows, bands, size, _ = good.shape
    across = size // cell
    window = good[:, :, : across * cell, : across * cell].view(np.uint8)
    split = window.reshape(rows, bands, across, cell, across * cell)
    lines = np.add.reduce(split, axis=(1, 3), dtype=np.uint16)
    counts = lines.reshape(rows, across, across, cell).sum(axis=-1)
    return np.asarray(counts < bands * cell**2 * MIN_GOOD_FRACTION)


def observe_spectra(
    flux: Numbers,
    ivar: Numbers | None,
    mask: Numbers | None,
    wavelength: Numbers,
    spectrum: SpectrumColumn,
) -> tuple[Spectra, Flags]:
    """Spectra (n, L) each, rows filled up at their end or anywhere by wavelengths of -1, 0 or NaN.

    A sample counts as good if its flux is finite, its inverse variance positive and its mask
    clean. Samples that only fill a row up are moved to its end.

    Raises
    ------
    ContractError
        If there is no inverse variance, or the parts differ in shape.
    """
    if ivar is None:
        raise ContractError(
            "no inverse variance",
            where=f"column {spectrum.name!r}",
            remedy="The codec weighs samples by it: map a column to it, or leave the spectra out",
        )
    parts = {"ivar": ivar, "mask": mask, "lambda": wavelength}
    for name, part in parts.items():
        if part is not None and part.shape != flux.shape:
            raise ContractError(
                f"{name} has shape {part.shape[1:]} where flux has {flux.shape[1:]}",
                where=f"column {spectrum.name!r}",
                remedy="Every sample needs a flux, an inverse variance and a wavelength",
            )
    wave = np.array(wavelength, np.float32)
    density, weight = np.array(flux, np.float32), np.array(ivar, np.float32)
    real = np.isfinite(wave) & (wave > 0)
    wave[~real] = -1
    weight[~(np.isfinite(weight) & (weight > 0))] = 0
    good = real & np.isfinite(density) & (weight > 0)
    if mask is not None:
        good &= mask.astype(np.bool_) == spectrum.mask_is_good
    density[~np.isfinite(density)] = 0
    scattered = (np.diff(real.astype(np.int8), axis=1) > 0).any(axis=1)
    if scattered.any():
        order = np.argsort(~real[scattered], axis=1, kind="stable")
        for part in (wave, density, weight, good, real):
            part[scattered] = np.take_along_axis(part[scattered], order, axis=1)
    flags = _spectrum_doubts(wave, real, good)
    good[(flags & Flag.SPECTRUM_MALFORMED) != 0] = False
    spectra = Spectra(
        flux_BL=torch.from_numpy(density),
        ivar_BL=torch.from_numpy(weight),
        good_BL=torch.from_numpy(good),
        wavelength_BL=torch.from_numpy(wave),
    )
    return spectra, flags


def _spectrum_doubts(
    wave: NDArray[np.float32], real: NDArray[np.bool_], good: NDArray[np.bool_]
) -> Flags:
    flags = np.zeros(len(wave), np.int32)
    present = real.any(axis=1)
    flags[~present] |= Flag.SPECTRUM_MISSING
    ascending = ((np.diff(wave, axis=1) > 0) | ~real[:, 1:]).all(axis=1)
    shortest = np.where(real, wave, np.inf).min(axis=1, initial=np.inf)
    longest = np.where(real, wave, -np.inf).max(axis=1, initial=-np.inf)
    in_range = (shortest >= WAVELENGTH_RANGE[0]) & (longest <= WAVELENGTH_RANGE[1])
    flags[present & ~(ascending & in_range)] |= Flag.SPECTRUM_MALFORMED
    flags[present & ~good.any(axis=1)] |= Flag.SPECTRUM_UNUSABLE
    flags[(real & ~good).any(axis=1)] |= Flag.SPECTRUM_BAD_SAMPLES
    return flags


def no_spectra(count: int) -> Spectra:
    """Spectra of objects that have none."""
    empty = torch.zeros((count, 1))
    return Spectra(
        flux_BL=empty,
        ivar_BL=empty,
        good_BL=empty.bool(),
        wavelength_BL=torch.full((count, 1), -1.0),
    )


def observe_coefficients(
    values: Numbers, column: CoefficientsColumn
) -> tuple[dict[str, Tensor], Flags]:
    """Coefficients (n, parts x width), cut into one tensor (n, width) for each token key.

    A row of zeros is a hole left by a merge; like NaN throughout it counts as missing.

    Raises
    ------
    ContractError
        If the width is not that of the modalities.
    """
    widths = [MODALITIES[key].num_tokens for key in column.token_keys]
    if values.ndim != 2 or values.shape[1] != sum(widths):
        raise ContractError(
            f"has shape {values.shape[1:]}, {sum(widths)} coefficients are needed",
            where=f"column {column.name!r}",
            remedy=f"Store {' then '.join(map(str, widths))} coefficients in one list",
        )
    numbers = np.array(values, np.float32)
    numbers[~np.isfinite(numbers)] = np.nan
    absent = ~(np.nan_to_num(numbers) != 0).any(axis=1)
    numbers[absent] = np.nan
    flags = np.where(absent, np.int32(Flag.COEFFICIENTS_MISSING), np.int32(0)).astype(np.int32)
    parts = torch.split(torch.from_numpy(numbers), widths, dim=1)
    return dict(zip(column.token_keys, parts, strict=True)), flags


def observe_scalars(
    values: Mapping[str, Numbers], survey: Survey
) -> tuple[dict[str, Tensor], Flags]:
    """Every scalar of a survey (n,), NaN where it was not measured.

    Parameters
    ----------
    values
        By column name; a sentinel that the survey declares counts as not measured.
    """
    rows = len(next(iter(values.values()))) if values else 0
    observed, flags = {}, np.zeros(rows, np.int32)
    for scalar in survey.scalars:
        numbers = values[scalar.name].astype(np.float32)
        absent = ~np.isfinite(numbers)
        if scalar.missing:
            absent |= np.isin(numbers, np.array(scalar.missing, np.float32))
        numbers[absent] = np.nan
        observed[scalar.token_key] = torch.from_numpy(numbers)
        flags[absent] |= Flag.SCALAR_MISSING
    return observed, flags


def observe_labels(values: Mapping[str, Numbers], survey: Survey) -> dict[str, Tensor]:
    """Values (n,) that training may predict, of those columns that are there."""
    return {
        key: torch.from_numpy(values[column].astype(np.float32))
        for column, key in survey.labels.items()
        if column in values
    }
