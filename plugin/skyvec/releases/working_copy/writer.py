"""Writes one pixel's file of a working copy from readings that come in any order."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec.releases.working_copy.file import (
    CATALOGS,
    FACTS,
    FORMAT,
    LABELS,
    OBSERVATIONS,
    SPECTRA,
    Rows,
    Sequences,
)
from skyvec_core.observations import CutoutCatalogs, Images, Observed, Spectra, fit_to_grid
from skyvec_schemas.errors import ContractError

FLOAT16_MAX = 65504.0
_FAINTEST = 2.0**-4
"""Brightest pixel below which float16 is used by a scale too: its steps end at 6e-8."""
_NOISE_STEP = 3
"""Every third pixel of every third row tells the noise."""
_ALIGNED = 4096
_BLOCK_BYTES = 1 << 20
"""Of flux converted at a time: small enough to stay in the cache of a core."""


class CopyWriter:
    """The file of one pixel in the making; use it in a ``with`` statement.

    Parameters
    ----------
    path
        Where to write; the file is whole after `finish`.
    columns
        ``object_id``, ``ra``, ``dec`` and others of n rows.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, NDArray[Any]], *, window: int, dtype: str
    ) -> None:
        self.path, self.window, self.dtype = path, window, dtype
        self.columns = dict(columns)
        self.rows = len(columns["ra"])
        self.flags = np.zeros(self.rows, np.int32)
        self.written = np.zeros(self.rows, np.bool_)
        self._parts: dict[str, _Images | _Sequences | _Numbers] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with h5py.File(self.path, "w", alignment_threshold=_ALIGNED, alignment_interval=_ALIGNED):
            pass
        self._handle = os.open(self.path, os.O_RDWR)
        self._stack.callback(os.close, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def write(
        self,
        rows: Rows,
        observations: Mapping[str, Observed],
        labels: Mapping[str, Observed],
        flags: NDArray[np.int32],
    ) -> None:
        """Write observations of some rows."""
        for kind, found in ((OBSERVATIONS, observations), (LABELS, labels)):
            for key, observed in found.items():
                name = f"{kind}/{key}"
                if name not in self._parts:
                    self._parts[name] = self._part(name, observed)
                self._parts[name].write(rows, observed)  # type: ignore[arg-type]  # of its kind
        self.flags[rows] = flags
        self.written[rows] = True

    def finish(self, facts: Mapping[str, object]) -> dict[str, Any]:
        """Complete the file and give what was measured.

        Raises
        ------
        ContractError
            If a row was never written.
        """
        if not self.written.all():
            row = int(np.argmin(self.written))
            raise ContractError(
                f"the source gave no observations of {self.columns['object_id'][row]!r} and "
                f"{int((~self.written).sum()) - 1} others",
                where=str(self.path),
                remedy="Report it: a source must give every object it listed",
            )
        measured = {"rounding": 0.0, "rounding_sigma": 0.0, "scaled": 0}
        with h5py.File(self.path, "r+") as file:
            for name, values in {**self.columns, "flags": self.flags}.items():
                file[name] = values
            for name, part in self._parts.items():
                part.finish(file[name])
                if isinstance(part, _Images):
                    measured["rounding"] = max(measured["rounding"], part.error)
                    measured["rounding_sigma"] = max(measured["rounding_sigma"], part.error_sigma)
                    measured["scaled"] += int((part.scale != 1).sum())
            about = {
                "format": FORMAT,
                "layout": _layout(file),
                "groups": {
                    name: {key: _plain(value) for key, value in file[name].attrs.items()}
                    for name in self._parts
                },
            }
            text = json.dumps({**about, **facts, **measured}).encode()
            file[FACTS] = np.frombuffer(text, np.uint8)
        os.fsync(self._handle)
        return measured

    def _part(self, name: str, observed: Observed) -> _Images | _Sequences | _Numbers:
        with h5py.File(self.path, "r+") as file:
            group = file.create_group(name)
            if isinstance(observed, Images):
                return _Images(self._handle, group, observed, self)
            if isinstance(observed, Tensor):
                return _Numbers(self._handle, group, observed, self.rows)
            layout = SPECTRA if isinstance(observed, Spectra) else CATALOGS
            group.attrs["kind"] = "spectra" if layout is SPECTRA else "catalogs"
            return _Sequences(self._handle, layout, self.rows, self._stack, self.path.parent)


class _Images:
    def __init__(self, handle: int, group: h5py.Group, first: Images, writer: CopyWriter) -> None:
        self.handle, self.window, self.bands = handle, writer.window, first.bands
        self.shape = (len(first.bands), writer.window, writer.window)
        self.dtype = np.dtype(writer.dtype)
        self.step = max(1, _BLOCK_BYTES // (4 * prod(self.shape)))
        group.attrs["kind"], group.attrs["bands"] = "images", list(first.bands)
        self.flux_at = _allocate(group, "flux", (writer.rows, *self.shape), self.dtype)
        self.packed = -(-prod(self.shape) // 8)
        self.good_at = _allocate(group, "good", (writer.rows, self.packed), np.dtype(np.uint8))
        self.whole = np.zeros(writer.rows, np.bool_)
        self.scale = np.ones(writer.rows, np.float32)
        self.error = self.error_sigma = 0.0

    def write(self, rows: Rows, observed: Images) -> None:
        flux, good = observed.flux_BCHW, observed.good_BCHW
        if observed.bands != self.bands:
            raise ValueError(f"bands {observed.bands} after {self.bands}")
        for start in range(0, len(rows), self.step):
            part = slice(start, start + self.step)
            self._write(rows[part], flux[part], good[part])

    def _write(self, rows: Rows, flux: Tensor, good: Tensor) -> None:
        if tuple(flux.shape[2:]) != (self.window, self.window):
            flux, good = fit_to_grid(flux, good, size=self.window)
        flux = flux.float()
        brightest = _brightest(flux, good)
        if not np.isfinite(brightest).all():
            good = good & torch.isfinite(flux)
            brightest = _brightest(flux, good)
        if self.dtype == np.float16:
            stored, scale = to_float16(flux, brightest)
            self.scale[rows] = scale
            self._measure(flux, good, stored, scale)
        else:
            stored = flux
        _put(self.handle, self.flux_at, rows, stored.contiguous().numpy())
        bits = np.packbits(good.flatten(1).numpy(), axis=1)
        _put(self.handle, self.good_at, rows, bits)
        self.whole[rows] = good.flatten(1).all(1).numpy()

    def _measure(
        self, flux: Tensor, good: Tensor, stored: Tensor, scale: NDArray[np.float32]
    ) -> None:
        back = stored.float()
        for row in np.flatnonzero(scale != 1):
            back[row] *= float(scale[row])
        error = (back - flux).abs_().masked_fill_(~good, 0).amax((2, 3))
        sample = (..., slice(None, None, _NOISE_STEP), slice(None, None, _NOISE_STEP))
        seen = flux[sample].masked_fill(~good[sample], torch.nan).flatten(2)
        spread = (seen - seen.nanmedian(2, keepdim=True).values).abs().nanmedian(2).values * 1.4826
        noisy = spread > 0  # False where nothing is good, too
        self.error = max(self.error, float(error.max()))
        if bool(noisy.any()):
            self.error_sigma = max(self.error_sigma, float((error[noisy] / spread[noisy]).max()))

    def finish(self, group: h5py.Group) -> None:
        group["whole"] = self.whole
        if self.dtype == np.float16:
            group["scale"] = self.scale


def _brightest(flux: Tensor, good: Tensor) -> NDArray[np.float64]:
    """Largest |flux| of a good pixel of each row (n,), not finite where one of them is not."""
    return np.asarray(flux.abs().masked_fill_(~good, 0).flatten(1).amax(1).double().numpy())


def to_float16(flux: Tensor, brightest: NDArray[np.float64]) -> tuple[Tensor, NDArray[np.float32]]:
    """Flux (n, ...) as float16 and the power of two (n,) that brings each row back.

    The scale is 1 unless the brightest good pixel of a row is beyond float16 or so faint that its
    smallest steps count; then the row is brought to the top of float16's range. The error of a
    pixel is at most 2^-11 of its value or 2^-21 of the brightest of its row, whichever is more.
    Bad pixels are cut off at the range, or 0.
    """
    exponent = np.frexp(brightest)[1] - 15
    fits = (brightest == 0) | ((brightest >= _FAINTEST) & (brightest <= FLOAT16_MAX))
    scale = np.where(fits, 1.0, np.ldexp(1.0, np.maximum(exponent, -148)))
    values = flux
    if not fits.all():
        values = flux.clone()
        for row in np.flatnonzero(~fits):
            values[row] = (flux[row].double() / scale[row]).float()
    limited = values.nan_to_num(0, FLOAT16_MAX, -FLOAT16_MAX).clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return limited.half(), scale.astype(np.float32)


class _Numbers:
    def __init__(self, handle: int, group: h5py.Group, first: Tensor, rows: int) -> None:
        self.handle, self.shape = handle, tuple(first.shape[1:])
        group.attrs["kind"] = "numbers"
        self.values_at = _allocate(group, "values", (rows, *self.shape), np.dtype(np.float32))
        every = np.full((rows, *self.shape), np.nan, np.float32)
        _put(handle, self.values_at, np.arange(rows), every)

    def write(self, rows: Rows, observed: Tensor) -> None:
        if tuple(observed.shape[1:]) != self.shape:
            raise ValueError(f"rows of shape {tuple(observed.shape[1:])} after {self.shape}")
        _put(self.handle, self.values_at, rows, observed.float().contiguous().numpy())

    def finish(self, group: h5py.Group) -> None:
        """Nothing is left to write."""


class _Sequences:
    """Appends to files aside, since the sum of lengths is known at the end only."""

    def __init__(
        self, handle: int, layout: Sequences, rows: int, stack: ExitStack, aside: Path
    ) -> None:
        self.handle, self.layout = handle, layout
        self.start, self.length = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.total = 0
        self.flat: dict[str, IO[bytes]] = {
            name: stack.enter_context(tempfile.TemporaryFile(dir=aside))  # noqa: SIM115 - closed by it
            for name in (*layout.fields, "mark")
        }

    def write(self, rows: Rows, observed: Spectra | CutoutCatalogs) -> None:
        mark = getattr(observed, self.layout.mark).numpy()
        real = mark
        if isinstance(observed, Spectra):
            real = mark | (observed.wavelength_BL > 0).numpy()  # NaN is filling
        lengths = np.where(real.any(1), real.shape[1] - real[:, ::-1].argmax(1), 0)
        inside = np.arange(real.shape[1]) < lengths[:, None]
        for name, attribute in self.layout.fields.items():
            values = getattr(observed, attribute).float().numpy()
            self.flat[name].write(values[inside].tobytes())
        self.flat["mark"].write(mark[inside].astype(np.uint8).tobytes())
        self.length[rows] = lengths
        self.start[rows] = self.total + np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.total += int(lengths.sum())

    def finish(self, group: h5py.Group) -> None:
        group["start"], group["length"] = self.start, self.length
        for name, flat in self.flat.items():
            dtype = np.dtype(np.uint8 if name == "mark" else np.float32)
            offset = _allocate(group, name, (self.total,), dtype)
            flat.seek(0)
            with open(self.handle, "r+b", closefd=False) as file:
                file.seek(offset)
                shutil.copyfileobj(flat, file, 1 << 22)


def _allocate(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Create a contiguous dataset with its place in the file; give where it begins."""
    if not prod(shape):
        group.create_dataset(name, shape, dtype)
        return 0
    wish = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    wish.set_layout(h5py.h5d.CONTIGUOUS)
    wish.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    wish.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(dtype, logical=True)
    made = h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=wish)
    return int(made.get_offset())


def _layout(file: h5py.File) -> dict[str, tuple[int, str, list[int]]]:
    """Dataset -> where it begins, its type and its shape."""
    found: dict[str, tuple[int, str, list[int]]] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            offset = item.id.get_offset() if item.size else 0
            found[name] = (int(offset), item.dtype.str, list(item.shape))

    file.visititems(note)
    return found


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _put(handle: int, offset: int, rows: Rows, values: NDArray[Any]) -> None:
    """Write rows to their places; neighbours go in one write."""
    if not values.size:
        return
    size = values.nbytes // len(values)
    order = np.argsort(rows, kind="stable")
    if (np.diff(order) != 1).any():
        values, rows = values[order], rows[order]
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for first, last in pairwise(edges):
        part, place = view[first * size : last * size], offset + int(rows[first]) * size
        while part:
            count = os.pwrite(handle, part, place)
            part, place = part[count:], place + count
