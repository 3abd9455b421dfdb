"""Image structs of a row batch -> cutouts on the codec's grid, with the reasons for doubt."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.nn import functional

from skyvec.releases.hats_catalog import band_order
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Images, fit_to_grid
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import ImageColumn

MIN_GOOD_FRACTION = 0.5
"""Share of a cutout's own pixels that must be good, or no vector is made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutouts:
    """Cutouts of every row of a batch; rows without a usable one are empty and flagged."""

    images: Images
    flags: NDArray[np.int32]


def read_cutouts(column: pa.StructArray, image: ImageColumn, *, size: int) -> Cutouts:
    """Bring every cutout to ``size`` x ``size`` by a centre crop or masked padding.

    Parameters
    ----------
    column
        ``struct<band, flux, mask>``, one list entry per band; ``mask`` True = good.
    image
        What the survey declares.
    size
        Side of the codec's window in cutout pixels.
    """
    rows, bands = len(column), len(image.bands)
    flux = torch.zeros((rows, bands, size, size))
    good = torch.zeros((rows, bands, size, size), dtype=torch.bool)
    flags = np.zeros(rows, np.int32)
    planes = _Planes(column)
    groups: dict[tuple[int, ...], list[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]]
    groups = defaultdict(list)
    for row in range(rows):
        cutout = planes.cutout(row, image)
        if isinstance(cutout, Flag):
            flags[row] |= cutout
            continue
        groups[cutout[0].shape].append((row, *cutout))
    for shape, members in groups.items():
        index = torch.tensor([row for row, _, _ in members])
        fitted_flux, fitted_good = fit_to_grid(
            torch.from_numpy(np.stack([f for _, f, _ in members])),
            torch.from_numpy(np.stack([g for _, _, g in members])),
            size=size,
        )
        flux[index], good[index] = fitted_flux, fitted_good
        flags[index.numpy()] |= _doubts(
            fitted_good, shape, cell=max(1, size // _tokens_across(image))
        )
    unusable = torch.from_numpy((flags & Flag.IMAGE_UNUSABLE) != 0)
    good[unusable] = False
    return Cutouts(
        images=Images(flux_BCHW=flux, good_BCHW=good, bands=tuple(image.bands.values())),
        flags=flags,
    )


def _tokens_across(image: ImageColumn) -> int:
    return MODALITIES[image.token_key].grid[0]


def _doubts(good: torch.Tensor, shape: tuple[int, ...], *, cell: int) -> NDArray[np.int32]:
    """Flags of fitted cutouts (rows, band, size, size) whose own shape was ``shape``."""
    size = good.shape[-1]
    whole = torch.ones(1, *shape)
    own, _ = fit_to_grid(whole, whole.bool(), size=size)
    good_share = good.flatten(1).sum(1).numpy() / float(own.sum())
    flags = np.zeros(len(good), np.int32)
    if shape[1] < size or shape[2] < size:
        flags |= Flag.IMAGE_PADDED
    flags[good_share < 1] |= Flag.IMAGE_BAD_PIXELS
    flags[good_share < MIN_GOOD_FRACTION] |= Flag.IMAGE_UNUSABLE
    covered = _cell_share(own, cell) >= MIN_GOOD_FRACTION
    dropped = covered & (_cell_share(good.float(), cell) < MIN_GOOD_FRACTION)
    flags[dropped.flatten(1).any(1).numpy()] |= Flag.IMAGE_TOKENS_DROPPED
    return flags


def _cell_share(good: torch.Tensor, cell: int) -> torch.Tensor:
    return functional.avg_pool2d(good.mean(1, keepdim=True), kernel_size=cell)


class _Planes:
    """Flat views of the nested lists of a struct column, addressed by row."""

    def __init__(self, column: pa.StructArray) -> None:
        names = [field.name for field in column.type.fields]
        self.present = column.is_valid().to_numpy(zero_copy_only=False)
        self.bands = pc.struct_field(column, "band").to_pylist()
        self.flux = _Ragged(pc.struct_field(column, "flux"))
        self.mask = _Ragged(pc.struct_field(column, "mask")) if "mask" in names else None

    def cutout(
        self, row: int, image: ImageColumn
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | Flag:
        """Flux and good (band, height, width) in the survey's band order, or what is wrong."""
        if not self.present[row] or not self.bands[row]:
            return Flag.IMAGE_MISSING
        order = band_order(self.bands[row], image)
        if order is None:
            return Flag.IMAGE_WRONG_BANDS
        flux = self.flux.cube(row, len(order))
        if flux is None:
            return Flag.IMAGE_MALFORMED
        good = np.isfinite(flux)
        mask = self.mask.cube(row, len(order)) if self.mask else None
        if mask is not None:
            if mask.shape != flux.shape:
                return Flag.IMAGE_MALFORMED
            good &= mask.astype(np.bool_)
        return flux[order].astype(np.float32), good[order]


class _Ragged:
    """``list<list<list<T>>>`` as one flat array and its lengths at each depth."""

    def __init__(self, column: pa.ListArray) -> None:
        self.planes, lines = _lengths(column)
        self.lines, values = _lengths(lines)
        self.columns, flat = _lengths(values)
        if flat.null_count:
            flat = flat.fill_null(np.nan if pa.types.is_floating(flat.type) else False)
        self.values = flat.to_numpy(zero_copy_only=False)
        self.first_plane = _starts(self.planes)
        self.first_line = _starts(self.lines)
        self.first_value = _starts(self.columns)

    def cube(self, row: int, planes: int) -> NDArray[np.generic] | None:
        """(planes, height, width) of one row, or None where it is not a cube."""
        start, stop = self.first_plane[row], self.first_plane[row + 1]
        if stop - start != planes:
            return None
        heights = self.lines[start:stop]
        top, bottom = self.first_line[start], self.first_line[stop]
        widths = self.columns[top:bottom]
        if not len(widths) or (heights != heights[0]).any() or (widths != widths[0]).any():
            return None
        if not widths[0]:
            return None
        flat = self.values[self.first_value[top] : self.first_value[bottom]]
        return flat.reshape(planes, heights[0], widths[0])


def _lengths(lists: pa.ListArray) -> tuple[NDArray[np.int64], pa.Array]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64), lists.flatten()


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])
