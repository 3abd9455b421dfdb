"""Rows of a record batch -> observations: views of Arrow's memory wherever the rows are alike."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec.releases.hats.arrow_types import array_at
from skyvec.releases.hats.column_map import SPECTRUM_PARTS, ColumnMap, band_order
from skyvec.releases.hats.nested import Stacks
from skyvec.releases.observing import (
    Flags,
    no_images,
    no_spectra,
    observe_coefficients,
    observe_images,
    observe_labels,
    observe_scalars,
    observe_spectra,
)
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Images, Observed, Spectra
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import CoefficientsColumn, ImageColumn, SpectrumColumn

Shape = tuple[int, ...]


def observe_rows(
    batch: pa.RecordBatch, columns: ColumnMap, *, size: int
) -> tuple[dict[str, Observed], Flags]:
    """Everything that a survey declares, for every row of a batch, in order.

    Parameters
    ----------
    batch
        Holds the columns of `ColumnMap.paths`.
    size
        Side of the image codec's window in cutout pixels.
    """
    survey = columns.survey
    observed: dict[str, Observed] = {}
    flags = np.zeros(len(batch), np.int32)
    if survey.image:
        images, doubts = read_images(batch, columns, survey.image, size=size)
        observed[survey.image.token_key] = images
        flags |= doubts
    if survey.spectrum:
        spectra, doubts = _read_spectra(batch, columns, survey.spectrum)
        observed[survey.spectrum.token_key] = spectra
        flags |= doubts
    if survey.coefficients:
        parts, doubts = _read_coefficients(batch, columns, survey.coefficients)
        observed |= parts
        flags |= doubts
    if survey.scalars:
        values = read_numbers(batch, columns, [scalar.name for scalar in survey.scalars])
        scalars, doubts = observe_scalars(values, survey)
        observed |= scalars
        flags |= doubts
    return observed, flags


def observe_row_labels(batch: pa.RecordBatch, columns: ColumnMap) -> dict[str, Tensor]:
    """Values (rows,) that training may predict, of those labels that the catalog has."""
    return observe_labels(read_numbers(batch, columns, columns.labels), columns.survey)


def read_numbers(
    batch: pa.RecordBatch, columns: ColumnMap, names: list[str] | tuple[str, ...]
) -> Mapping[str, NDArray[np.generic]]:
    """Float32 values (rows,) of these logical names, NaN where null."""
    return {name: _numbers(array_at(batch, columns.targets[name].path)) for name in names}


def _numbers(array: pa.Array) -> NDArray[np.generic]:
    values = pc.cast(array, pa.float32(), safe=False)
    if values.null_count:
        values = values.fill_null(np.nan)
    numbers: NDArray[np.generic] = values.to_numpy(zero_copy_only=False)
    return numbers


def read_images(
    batch: pa.RecordBatch, columns: ColumnMap, image: ImageColumn, *, size: int
) -> tuple[Images, Flags]:
    """Cutouts of every row; rows without a usable one are empty and flagged.

    Rows of one shape, mask and order of bands are observed together; where that is all of them,
    no pixel is copied.
    """
    rows = len(batch)
    target = columns.targets[f"{image.name}.flux"]
    flux = Stacks(array_at(batch, target.path))
    marks = columns.targets.get(f"{image.name}.mask")
    mask = None
    if marks:
        mask = Stacks(array_at(batch, marks.path), null=not image.mask_is_good)
    bands = _Bands(batch, columns, image)
    flags = np.zeros(rows, np.int32)
    out: Images | None = None
    for members in _alike(bands.code, flux, mask):
        first = int(members[0])
        order = bands.order(first, flux)
        shape = _cube(tuple(flux.shapes[first].tolist()), len(image.bands), target.shape)
        if isinstance(order, Flag) or isinstance(shape, Flag):
            flags[members] |= order if isinstance(order, Flag) else shape
            continue
        mask_shape = _mask_cube(tuple(mask.shapes[first].tolist()), shape) if mask else None
        if isinstance(mask_shape, Flag):
            flags[members] |= mask_shape
            continue
        planes = _planes(flux, members, shape, size)
        good = _planes(mask, members, mask_shape, size) if mask and mask_shape else None
        if order != sorted(order):
            planes = planes[:, order]
            good = good[:, order] if good is not None and good.ndim == 4 else good
        images, doubts = observe_images(planes, good, image, size=size)
        flags[members] |= doubts
        if len(members) == rows:
            return images, flags
        out = out or no_images(rows, image, size=size)
        index = torch.from_numpy(members)
        out.flux_BCHW[index], out.good_BCHW[index] = images.flux_BCHW, images.good_BCHW
    return out or no_images(rows, image, size=size), flags


def _alike(code: NDArray[np.int64], flux: Stacks, mask: Stacks | None) -> list[NDArray[np.int64]]:
    """Rows that share bands, shape of flux and shape of mask."""
    table = np.column_stack([code, flux.shapes, *([mask.shapes] if mask else [])])
    if len(table) and (table == table[0]).all():
        return [np.arange(len(table))]
    _, kind = np.unique(table, axis=0, return_inverse=True)
    return [np.flatnonzero(kind.ravel() == each) for each in range(kind.max(initial=-1) + 1)]


def _planes(stack: Stacks, rows: NDArray[np.int64], shape: Shape, size: int) -> Tensor:
    """Cutouts of one shape without what the codec's window will never show."""
    height, width = shape[-2:]
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    middle = (..., slice(top, top + size), slice(left, left + size))
    pieces = [piece[middle] for piece in stack.take(rows, shape)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _cube(found: Shape, bands: int, declared: Shape | None) -> Shape | Flag:
    """Shape (band, height, width) of a row; flat lists are declared or hold squares."""
    if min(found) <= 0:
        return Flag.IMAGE_MALFORMED
    values = prod(found)
    side = isqrt(values // bands)
    shape: Shape = (bands, side, side)
    if declared:
        shape = (bands, *declared[-2:])
    elif len(found) == 3:
        shape = found
    elif len(found) == 2 and bands == 1:
        shape = (1, *found)
    elif len(found) == 2 and found[0] != bands:
        return Flag.IMAGE_MALFORMED
    return shape if prod(shape) == values and shape[0] == bands else Flag.IMAGE_MALFORMED


def _mask_cube(found: Shape, cube: Shape) -> Shape | Flag | None:
    """Shape of a mask, per band or one for all; None where the row has no mask."""
    if not any(found):
        return None
    if found == cube or (len(found) < 3 and prod(found) == prod(cube)):
        return cube
    if found == cube[1:] or (len(found) == 1 and found[0] == prod(cube[1:])):
        return cube[1:]
    return Flag.IMAGE_MALFORMED


class _Bands:
    """In which order each row holds the survey's bands."""

    def __init__(self, batch: pa.RecordBatch, columns: ColumnMap, image: ImageColumn) -> None:
        self.image = image
        self.code = np.zeros(len(batch), np.int64)
        """Row -> which of ``kinds`` it has."""
        self.kinds: list[tuple[str, ...]] = [tuple(image.bands)]
        target = columns.targets.get(f"{image.name}.band")
        self.named = bool(target and target.path)
        if target and target.constant:
            self.kinds = [target.constant]
        elif target:
            self._read(array_at(batch, target.path))

    def _read(self, names: pa.Array) -> None:
        stack_lengths = pc.list_value_length(names)
        flat = pc.dictionary_encode(names.flatten())
        count = len(names)
        if count and len(flat) and not stack_lengths.null_count:
            codes = flat.indices.to_numpy(zero_copy_only=False)
            same_length = (stack_lengths.to_numpy() * count == len(flat)).all()
            if same_length and (codes.reshape(count, -1) == codes[: len(flat) // count]).all():
                self.kinds = [tuple(names[0].as_py())]
                return
        places: dict[tuple[str, ...], int] = {}
        rows = [tuple(row or ()) for row in names.to_pylist()]
        self.code = np.array([places.setdefault(row, len(places)) for row in rows], np.int64)
        self.kinds = list(places)

    def order(self, row: int, flux: Stacks) -> list[int] | Flag:
        """For each band of the survey its plane in a row, or what is wrong."""
        found = self.kinds[self.code[row]]
        if not found or (not self.named and not flux.shapes[row].any()):
            return Flag.IMAGE_MISSING
        return band_order(found, self.image) or Flag.IMAGE_WRONG_BANDS


def _read_spectra(
    batch: pa.RecordBatch, columns: ColumnMap, spectrum: SpectrumColumn
) -> tuple[Spectra, Flags]:
    """Spectra of every row, filled up at the end to the longest; rows without one are flagged."""
    parts: dict[str, Stacks] = {}
    for part in SPECTRUM_PARTS:
        target = columns.targets.get(f"{spectrum.name}.{part}")
        if target:
            null = (not spectrum.mask_is_good) if part == "mask" else None
            parts[part] = Stacks(array_at(batch, target.path), null=null)
    lengths = np.stack([stack.shapes[:, 0] for stack in parts.values()])
    torn = (lengths != lengths[0]).any(axis=0)
    samples = np.where(torn, 0, lengths[0])
    if not samples.any():
        spectra, flags = (
            no_spectra(len(batch)),
            np.full(len(batch), Flag.SPECTRUM_MISSING, np.int32),
        )
    else:
        values = {name: _filled(stack, samples) for name, stack in parts.items()}
        spectra, flags = observe_spectra(
            values["flux"], values.get("ivar"), values.get("mask"), values["lambda"], spectrum
        )
    flags[torn] = Flag.SPECTRUM_MALFORMED
    return spectra, flags


def _filled(stack: Stacks, lengths: NDArray[np.int64]) -> NDArray[np.generic]:
    """Rows (n, longest), -1 beyond the length of each; a view where all are equally long."""
    values: NDArray[np.generic] = stack.values.numpy()
    longest = int(lengths.max())
    if (lengths == longest).all():
        return values.reshape(-1, longest)
    there = np.arange(longest) < lengths[:, None]
    source = stack.starts[:-1, None] + np.arange(longest)
    out = np.full(there.shape, -1, values.dtype)
    out[there] = values[source[there]]
    return out


def _read_coefficients(
    batch: pa.RecordBatch, columns: ColumnMap, column: CoefficientsColumn
) -> tuple[dict[str, Tensor], Flags]:
    """Coefficients of every row; a list of another length than most counts as missing."""
    stack = Stacks(array_at(batch, columns.targets[column.name].path))
    width = sum(MODALITIES[key].num_tokens for key in column.token_keys)
    found = stack.shapes.prod(axis=1)
    fitting = np.flatnonzero(found == width)
    if not len(fitting) and found.any():
        width = int(found.max())  # no row fits, so the column is another one: refused below
    values = np.full((len(batch), width), np.nan, np.float32)
    if len(fitting):
        values[fitting] = torch.cat(stack.take(fitting, (width,))).numpy()
    return observe_coefficients(values, column)
