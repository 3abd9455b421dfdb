"""Columns of one Multimodal Universe file -> observations of chosen rows, some at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec.releases.batch_memory import BatchMemory
from skyvec.releases.hats.catalog import band_order
from skyvec.releases.mmu.file import MmuFile
from skyvec.releases.mmu.layout import image_name, pick
from skyvec.releases.mmu.rows import Rows
from skyvec.releases.observing import (
    Counts,
    Marks,
    Planes,
    Power,
    judge_images,
    mark_good,
    observe_coefficients,
    observe_labels,
    observe_scalars,
    observe_spectra,
    plane_power,
)
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Observed
from skyvec_schemas.errors import BandError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import CoefficientsColumn, ImageColumn, SpectrumColumn, Survey

Places = NDArray[np.int64]
Flags = NDArray[np.int32]
Some = tuple[Mapping[str, Observed], Flags]

_IMAGE_DOUBTS = np.int32(
    Flag.IMAGE_BAD_PIXELS | Flag.IMAGE_UNUSABLE | Flag.IMAGE_TOKENS_DROPPED | Flag.IMAGE_PADDED
)
_FLOAT, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)
_REBUILD = "Build this file again, or leave the column out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Rows that are wanted of one open file."""

    file: MmuFile
    rows: Places
    """Ascending."""
    count: int
    """Rows of the file."""

    def column(self, name: str, window: int | None = None) -> Rows:
        """One dataset at these rows."""
        return self.file.rows(name, self.rows, count=self.count, window=window)


class Part(Protocol):
    """One kind of observation in one file."""

    def observe(self, start: int, stop: int) -> Some:
        """Token key -> observations of the chosen rows ``start`` to ``stop``, and their flags."""


def parts_of(survey: Survey, chosen: Chosen, *, window: int | None) -> list[Part]:
    """Everything that the survey declares, each checked against the file.

    Raises
    ------
    ContractError
        If a dataset is absent or its shape or type is not what the survey declares.
    """
    parts: list[Part] = []
    if survey.image:
        parts.append(_Images(survey, survey.image, chosen, window))
    if survey.spectrum:
        parts.append(_Spectra(survey.spectrum, chosen))
    if survey.coefficients:
        parts.append(_Coefficients(survey.coefficients, chosen))
    if survey.scalars:
        parts.append(_Scalars(survey, chosen))
    return parts


class _Images:
    def __init__(
        self, survey: Survey, image: ImageColumn, chosen: Chosen, window: int | None
    ) -> None:
        self.image, file = image, chosen.file
        self.file = file
        options = (f"{image.name}_array", f"{image.name}_flux")
        self.name = image_name(survey, file.names) or file.named(options, remedy=_REBUILD)
        self.flux = chosen.column(self.name, window)
        shape = file.dataset(self.name).shape[1:]
        if len(shape) != 3 or shape[1] != shape[2] or not shape[1]:
            raise file.refused(
                f"stamps have shape {shape}, not (bands, side, side)",
                dataset=self.name,
                remedy=_REBUILD,
            )
        _check_kind(file, self.name, self.flux, "fiu")
        self.size = window or shape[1]
        self.mask_name = pick((f"{image.name}_mask",), file.names)
        self.mask = chosen.column(self.mask_name, window) if self.mask_name else None
        if self.mask_name:
            own = file.dataset(self.mask_name).shape[1:]
            if own not in (shape, shape[1:]):
                raise file.refused(
                    f"masks have shape {own}, stamps have {shape}",
                    dataset=self.mask_name,
                    remedy=_REBUILD,
                )
        self.rows = chosen.rows
        self.memory = BatchMemory()
        self.orders, self.which = self._orders(chosen, shape[0])
        self.foreign = np.array([order is None for order in self.orders], np.bool_)
        self.unusual = any(order is None or order != sorted(order) for order in self.orders)

    def _orders(self, chosen: Chosen, planes: int) -> tuple[list[list[int] | None], Places]:
        """Orders of bands that occur, None for wrong ones, and which of them each row has."""
        remedy = "Write the band of every plane, des-g ..."
        name = self.file.named((f"{self.image.name}_band",), remedy=remedy)
        column = chosen.column(name)
        if column.shape != (planes,):
            raise BandError(
                f"{column.shape[0] if column.shape else 1} bands for {planes} planes",
                where=self.file.where(name),
                remedy=remedy,
            )
        if column.dtype.kind not in "SUO":
            raise self.file.refused(f"is {column.dtype}, not text", dataset=name, remedy=remedy)
        bands = column.take(0, len(chosen.rows))
        first, which = _distinct(bands)
        found = [_texts(bands[row]) for row in first]
        orders = [band_order(names, self.image) for names in found]
        if len(chosen.rows) > 1 and not any(orders):
            raise BandError(
                f"row {chosen.rows[first[0]]}: bands {', '.join(found[0])} where the survey has "
                f"{', '.join(self.image.bands)}",
                where=self.file.where(name),
                remedy="Choose the right --survey, or rename the bands",
            )
        return orders, which

    def observe(self, start: int, stop: int) -> Some:
        shape = (stop - start, *self.flux.shape)
        planes, good = self.memory.empty((shape, _FLOAT), (shape, _BOOL))
        power = self._read(planes, start)
        bad = self._mark(good, start)
        foreign = self._put_in_order(planes, good, start) if self.unusual else None
        images, flags = judge_images(
            torch.from_numpy(planes), good, self.image, size=self.size, power=power, bad=bad
        )
        if foreign is not None:
            images.good_BCHW[np.flatnonzero(foreign)] = False
            flags[foreign] = flags[foreign] & ~_IMAGE_DOUBTS | Flag.IMAGE_WRONG_BANDS
        return {self.image.token_key: images}, flags

    def _put_in_order(self, planes: Planes, good: Marks, start: int) -> Marks:
        """Bring the bands into the survey's order; returns which rows have other bands."""
        which = self.which[start : start + len(planes)]
        for kind, order in enumerate(self.orders):
            if order is not None and order != sorted(order):
                rows = which == kind
                planes[rows] = planes[rows][:, order]
                good[rows] = good[rows][:, order]
        foreign = self.foreign[which]
        planes[foreign] = 0
        return foreign

    @np.errstate(over="ignore", invalid="ignore")
    def _read(self, planes: Planes, start: int) -> Power:
        """Fill in the pixels of some rows; returns the power of each plane.

        It is taken piece by piece, while the pixels are in the processor's cache.
        """
        power = np.empty(planes.shape[:2], np.float32)
        values: NDArray[np.generic] = planes
        if self.flux.dtype != _FLOAT:
            (values,) = self.memory.empty((planes.shape, self.flux.dtype))
        for some in self.flux.fill(values, start):
            if values is not planes:  # by torch: numpy takes twenty times as long for half floats
                torch.from_numpy(planes[some]).copy_(torch.from_numpy(values[some]))
            power[some] = plane_power(planes[some])
        return power

    def _mark(self, good: Marks, start: int) -> Counts:
        """Fill in which pixels of some rows are good; returns how many of each are not."""
        bad = np.zeros(len(good), np.int64)
        if self.mask is None:
            good[...] = True
        elif self.mask.dtype.kind != "b":
            mask = self._checked(self.mask.take(start, start + len(good)), start)
            bad = mark_good(good, mask, self.image)
        elif self.mask.shape == good.shape[1:]:
            for some in self.mask.fill(good, start):
                bad[some] = mark_good(good[some], None, self.image)
        else:
            (mask,) = self.memory.empty(((len(good), *self.mask.shape), _BOOL))
            for some in self.mask.fill(mask, start):
                bad[some] = mark_good(good[some], mask[some], self.image)
        return bad

    def _checked(self, values: NDArray[np.generic], start: int) -> Marks:
        if values.size and not np.isin(values, (0, 1)).all():
            row = int(np.flatnonzero(~np.isin(values, (0, 1)).reshape(len(values), -1).all(1))[0])
            raise self.file.refused(
                f"row {self.rows[start + row]}: holds other values than 0 and 1",
                dataset=self.mask_name or "",
                remedy="Write True for good pixels and False for others",
            )
        return np.asarray(values != 0)


class _Spectra:
    def __init__(self, spectrum: SpectrumColumn, chosen: Chosen) -> None:
        self.spectrum, file = spectrum, chosen.file
        prefix = spectrum.name
        names = {
            part: file.named((f"{prefix}_{part}",), remedy=_REBUILD)
            for part in ("flux", "ivar", "lambda")
        }
        if mask := pick((f"{prefix}_mask",), file.names):
            names["mask"] = mask
        self.columns = {part: chosen.column(name) for part, name in names.items()}
        length = self.columns["flux"].shape
        for part, column in self.columns.items():
            if len(column.shape) != 1 or column.shape != length:
                raise file.refused(
                    f"has {column.shape} samples, {names['flux']!r} has {length}",
                    dataset=names[part],
                    remedy=_REBUILD,
                )
            _check_kind(file, names[part], column, "biu" if part == "mask" else "f")

    def observe(self, start: int, stop: int) -> Some:
        values = {part: column.take(start, stop) for part, column in self.columns.items()}
        spectra, flags = observe_spectra(
            values["flux"], values["ivar"], values.get("mask"), values["lambda"], self.spectrum
        )
        return {self.spectrum.token_key: spectra}, flags


class _Coefficients:
    def __init__(self, column: CoefficientsColumn, chosen: Chosen) -> None:
        name = chosen.file.named((column.name,), remedy=_REBUILD)
        self.column, self.values = column, chosen.column(name)
        width = sum(MODALITIES[key].num_tokens for key in column.token_keys)
        if self.values.shape != (width,):
            raise chosen.file.refused(
                f"has shape {self.values.shape}, {width} coefficients are needed",
                dataset=name,
                remedy=_REBUILD,
            )
        _check_kind(chosen.file, name, self.values, "f")

    def observe(self, start: int, stop: int) -> Some:
        return observe_coefficients(self.values.take(start, stop), self.column)


class _Scalars:
    """Numbers of all chosen rows at once: a few bytes a row, and a call for each column."""

    def __init__(self, survey: Survey, chosen: Chosen) -> None:
        remedy = "Build this file again, or embed without the column by --without"
        columns = {
            scalar.name: _number(chosen, chosen.file.named((scalar.name,), remedy=remedy))
            for scalar in survey.scalars
        }
        values = {name: column.take(0, len(chosen.rows)) for name, column in columns.items()}
        self.observed, self.flags = observe_scalars(values, survey)

    def observe(self, start: int, stop: int) -> Some:
        rows = slice(start, stop)
        return {key: values[rows] for key, values in self.observed.items()}, self.flags[rows]


class Labels:
    """Columns that training may predict, of those that the file has."""

    def __init__(self, survey: Survey, chosen: Chosen) -> None:
        self.survey = survey
        found = {column: pick((column,), chosen.file.names) for column in survey.labels}
        self.columns = {column: _number(chosen, name) for column, name in found.items() if name}

    def take(self, start: int, stop: int) -> Mapping[str, Observed]:
        """Token key -> values of the chosen rows ``start`` to ``stop``."""
        values = {column: rows.take(start, stop) for column, rows in self.columns.items()}
        return observe_labels(values, self.survey)


def _number(chosen: Chosen, name: str) -> Rows:
    column = chosen.column(name)
    if column.shape:
        raise chosen.file.refused(
            f"has shape {column.shape} where one number is needed", dataset=name, remedy=_REBUILD
        )
    _check_kind(chosen.file, name, column, "fiub")
    return column


def _check_kind(file: MmuFile, name: str, column: Rows, kinds: str) -> None:
    if column.dtype.kind not in kinds:
        raise file.refused(f"is {column.dtype}, not numbers", dataset=name, remedy=_REBUILD)


def _distinct(values: NDArray[np.generic]) -> tuple[list[int], Places]:
    """First row of each kind of rows that occurs, and the kind of every row."""
    same = (values == values[:1]).all(axis=1)
    if same.all():
        return ([0] if len(values) else []), np.zeros(len(values), np.int64)
    texts = np.array(["\0".join(_texts(row)) for row in values])
    _, first, which = np.unique(texts, return_index=True, return_inverse=True)
    return first.tolist(), which.reshape(-1)


def _texts(values: NDArray[np.generic]) -> list[str]:
    decoded = (v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)
               for v in values.tolist())  # fmt: skip
    return [text.strip() for text in decoded]
