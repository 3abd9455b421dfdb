"""Some rows of an HDF5 dataset, in ascending order, in bounded memory, as fast as its layout allows.

Contiguous: whole rows straight from the file by ``preadv``, neighbours at one go; never ``mmap``,
under which a file that shrinks kills the process. Chunked: slab by slab (the rows that share
chunks), so that each chunk is decoded once, and only the chunks under the centre window.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from skyvec.releases.batch_memory import BatchMemory
from skyvec_schemas.errors import ContractError

Values = NDArray[np.generic]

SPAN_BYTES = 1 << 20
"""Bytes asked for at one go: enough to hide the call, few enough to stay in the CPU's cache."""
GAP_BYTES = 1 << 16
"""Unwanted bytes between two rows that are read along, which is cheaper than another call."""
MARGIN_BYTES = 1 << 13
"""Bytes above and below the window of a plane from which they are left out."""
SLAB_BYTES = 1 << 27
"""Most bytes of decoded rows that are kept; a larger slab is decoded several times."""
_SAMPLES = 32
_JOINED_BYTES = 1 << 23
"""Slabs smaller than this are read several at one go."""


class Rows(Protocol):
    """Chosen rows of one dataset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row, after the crop."""

    @property
    def dtype(self) -> np.dtype:
        """As in the file, in the machine's byte order."""

    def take(self, start: int, stop: int) -> Values:
        """The chosen rows from place ``start`` up to ``stop``, as a new array; see `fill`."""

    def fill(self, out: Values, start: int) -> Iterator[slice]:
        """Write the chosen rows from place ``start`` on over all of an array.

        Fastest if called for ascending places.

        Parameters
        ----------
        out
            (n, ...) of this shape and dtype, contiguous.

        Yields
        ------
        slice
            Of ``out``, each stretch as soon as it is written: whoever goes over the values at
            once finds them in the processor's cache.

        Raises
        ------
        ContractError
            If the file ends before, or does not decode; names file, dataset and row.
        """


def open_rows(
    dataset: h5py.Dataset, rows: NDArray[np.int64], *, descriptor: int, window: int | None = None
) -> Rows:
    """Rows of a dataset, by the way that suits its layout.

    Parameters
    ----------
    rows
        Which, ascending; one may come more than once.
    descriptor
        The same file, open for reading.
    window
        Of the last two axes, only the centre ``window`` x ``window``; all of them if they are
        shorter than that.
    """
    shape, dtype = dataset.shape, dataset.dtype
    if not shape:
        return _TheOneRow(dataset, rows)
    offset = dataset.id.get_offset()
    if offset is not None and math.prod(shape) and not dtype.hasobject:
        return ContiguousRows(dataset, rows, descriptor, offset, window)
    return SlabRows(dataset, rows, window)


def centre(shape: tuple[int, ...], window: int | None) -> tuple[slice, ...]:
    """The part of a row (..., H, W) under the window, as `fit_to_grid` would crop it."""
    whole = tuple(slice(0, length) for length in shape)
    if window is None or len(shape) < 2 or min(shape[-2:]) < window:
        return whole
    tops = [(length - window) // 2 for length in shape[-2:]]
    return (*whole[:-2], *(slice(top, top + window) for top in tops))


class _Chosen(ABC):
    """What all ways have in common."""

    def __init__(self, dataset: h5py.Dataset, rows: NDArray[np.int64], window: int | None) -> None:
        self.dataset, self.rows, self.memory = dataset, rows, BatchMemory()
        self.count, *row = dataset.shape
        self.whole, self.stored = tuple(row), dataset.dtype
        self.part = centre(self.whole, window)
        self.shape = tuple(cut.stop - cut.start for cut in self.part)
        self.cropped = self.shape != self.whole
        self.dtype: np.dtype = self.stored.newbyteorder("=")

    def take(self, start: int, stop: int) -> Values:
        """See `Rows.take`."""
        out: Values
        (out,) = self.memory.empty(((len(self.rows[start:stop]), *self.shape), self.dtype))
        for _ in self.fill(out, start):
            pass
        return out

    @abstractmethod
    def fill(self, out: Values, start: int) -> Iterator[slice]:
        """See `Rows.fill`."""

    def unreadable(self, row: int, why: str) -> ContractError:
        """The error of a row that does not come out of the file."""
        name = str(self.dataset.name).strip("/")
        return ContractError(
            f"row {row} cannot be read ({why})",
            where=f"{self.dataset.file.filename}, dataset {name!r}",
            remedy="Copy this file again and compare its checksum with the release",
        )


class ContiguousRows(_Chosen):
    """Rows that lie one after the other in the file.

    Of stamps in the page cache only the lines under the window are copied out, plane by plane.
    From a disk whole rows are faster, since the system reads ahead only what is read in sequence.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        rows: NDArray[np.int64],
        descriptor: int,
        offset: int,
        window: int | None,
    ) -> None:
        super().__init__(dataset, rows, window)
        self.descriptor, self.offset = descriptor, offset
        stored = self.stored if self.stored.kind != "b" else np.dtype(np.uint8)
        shape = self.whole
        self.row_bytes = stored.itemsize * math.prod(shape)
        self.straight = not self.cropped and stored.isnative
        self.planes = 0
        """Pieces of a row that are read one by one; 0 if rows are read whole."""
        if self.cropped and len(rows):
            line = stored.itemsize * shape[-1]
            lines = self.part[-2]
            self.plane_bytes, self.skipped = shape[-2] * line, lines.start * line
            spared = self.plane_bytes - (lines.stop - lines.start) * line
            if spared >= MARGIN_BYTES and self._in_memory():
                self.planes = self.row_bytes // self.plane_bytes
                shape = (*shape[:-2], lines.stop - lines.start, shape[-1])
                self.part = (*self.part[:-2], slice(0, shape[-2]), self.part[-1])
        self.most = max(1, SPAN_BYTES // max(1, stored.itemsize * math.prod(shape)))
        self._scratch = np.empty((min(self.most, self.count), *shape), stored)
        self._window = self._scratch[(slice(None), *self.part)]
        self._pieces: list[list[memoryview]] = []
        if self.planes:
            pieces = self._scratch.reshape(len(self._scratch), self.planes, -1)
            self._pieces = [[_bytes_of(piece) for piece in row] for row in pieces]

    def fill(self, out: Values, start: int) -> Iterator[slice]:
        """See `Rows.fill`."""
        rows = self.rows[start : start + len(out)]
        if self.dtype.kind != "b":
            yield from self._fill(out, rows)
            return
        marks = out.view(np.uint8)
        for stretch in self._fill(marks, rows):
            if marks[stretch].max(initial=0) > 1:  # a byte that is neither is no numpy bool
                np.not_equal(marks[stretch], 0, out=out[stretch])
            yield stretch

    def _fill(self, out: Values, rows: NDArray[np.int64]) -> Iterator[slice]:
        if not self.planes:
            yield from self._fill_whole(out, rows)
            return
        for at in range(0, len(rows), len(self._scratch)):
            stretch = slice(at, min(at + len(self._scratch), len(rows)))
            self._read_planes(rows[stretch])
            out[stretch] = self._window[: stretch.stop - at]
            yield stretch

    def _fill_whole(self, out: Values, rows: NDArray[np.int64]) -> Iterator[slice]:
        apart = np.flatnonzero((np.diff(rows) - 1) * self.row_bytes > GAP_BYTES) + 1
        for first, last in zip([0, *apart.tolist()], [*apart.tolist(), len(rows)], strict=True):
            at = first
            while at < last:
                upto = int(np.searchsorted(rows[at:last], rows[at] + self.most)) + at
                self._read_span(rows[at:upto], out[at:upto])
                yield slice(at, upto)
                at = upto

    def _read_span(self, rows: NDArray[np.int64], out: Values) -> None:
        first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
        consecutive = _consecutive(rows)
        straight = consecutive and self.straight
        span = out if straight else self._scratch[:count]
        self._read(_bytes_of(span), self.offset + first * self.row_bytes, first)
        if not straight:
            window = self._window[:count]
            out[...] = window if consecutive else window[rows - first]

    def _read_planes(self, rows: NDArray[np.int64]) -> None:
        for row, pieces in zip(rows.tolist(), self._pieces, strict=False):
            position = self.offset + row * self.row_bytes + self.skipped
            for piece in pieces:
                try:
                    got = os.preadv(self.descriptor, (piece,), position)
                except OSError:
                    got = 0
                if got < len(piece):
                    self._read(piece, position, row)  # from its start, and with care
                position += self.plane_bytes

    def _read(self, room: memoryview, position: int, row: int) -> None:
        done = 0
        while done < len(room):
            try:
                got = os.preadv(self.descriptor, [room[done:] if done else room], position + done)
            except OSError as problem:
                reached = row + done // self.row_bytes
                raise self.unreadable(reached, str(problem)) from problem
            if not got:
                raise self.unreadable(row + done // self.row_bytes, "the file ends before it")
            done += got

    def _in_memory(self) -> bool:
        """Whether samples of the chosen stretch of the file are in the page cache."""
        if not hasattr(os, "RWF_NOWAIT"):
            return False
        ends = self.offset + self.rows[[0, -1]] * self.row_bytes
        for position in np.linspace(ends[0], ends[1], _SAMPLES, dtype=np.int64).tolist():
            try:
                os.preadv(self.descriptor, [bytearray(1)], position, os.RWF_NOWAIT)
            except OSError:  # it would block, or the file system cannot tell
                return False
        return True


def _consecutive(rows: NDArray[np.int64]) -> bool:
    return bool((np.diff(rows) == 1).all())


def _bytes_of(values: Values) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


class SlabRows(_Chosen):
    """Rows in chunks, or in any other layout that HDF5 alone knows how to read."""

    def __init__(self, dataset: h5py.Dataset, rows: NDArray[np.int64], window: int | None) -> None:
        super().__init__(dataset, rows, window)
        row_bytes = max(1, self.dtype.itemsize * math.prod(self.shape))
        self.height = dataset.chunks[0] if dataset.chunks else max(1, dataset.shape[0])
        self.most = max(1, SLAB_BYTES // row_bytes)
        self.joined = max(1, _JOINED_BYTES // row_bytes)
        self._first = self._stop = 0
        self._slab: Values = np.empty((0, *self.shape), dataset.dtype)

    def fill(self, out: Values, start: int) -> Iterator[slice]:
        """See `Rows.fill`."""
        rows = self.rows[start : start + len(out)]
        at = 0
        while at < len(rows):
            row = int(rows[at])
            if not self._first <= row < self._stop:
                self._load(start + at)
            upto = int(np.searchsorted(rows, self._stop))
            wanted = rows[at:upto] - self._first
            alike = slice(wanted[0], wanted[-1] + 1) if _consecutive(wanted) else wanted
            out[at:upto] = self._slab[alike]
            yield slice(at, upto)
            at = upto

    def _load(self, place: int) -> None:
        """Decode the slab of a chosen row, from that row to the last chosen one in it.

        Low slabs (one object to a chunk) that follow one another are read together.
        """
        first = int(self.rows[place])
        slab = first // self.height
        reach = (slab + 1) * self.height
        while reach - first < self.joined:
            after = int(np.searchsorted(self.rows, reach))
            if after == len(self.rows) or self.rows[after] // self.height != reach // self.height:
                break
            reach += self.height
        reach = min(reach, first + self.most)
        last = int(self.rows[np.searchsorted(self.rows, reach) - 1])
        count = last + 1 - first
        self._first = self._stop = first
        try:
            if self.dtype.hasobject:
                self._slab = self.dataset[first : last + 1]
            else:
                if len(self._slab) < count:
                    self._slab = np.empty((count, *self.shape), self.dataset.dtype)
                # Read as stored: HDF5's own conversion of half and swapped floats is slow.
                source = (slice(first, last + 1), *self.part)
                self.dataset.read_direct(self._slab, source, slice(0, count))
        except (OSError, RuntimeError, ValueError) as problem:
            raise self.unreadable(first, str(problem)) from problem
        self._stop = last + 1


class _TheOneRow:
    """A dataset without axes: a file of one object."""

    def __init__(self, dataset: h5py.Dataset, rows: NDArray[np.int64]) -> None:
        self.rows, self.shape = rows, ()
        self.value = np.asarray(dataset[()])
        self.dtype: np.dtype = self.value.dtype.newbyteorder("=")

    def take(self, start: int, stop: int) -> Values:
        """See `Rows.take`."""
        return np.full(len(self.rows[start:stop]), self.value, self.dtype)

    def fill(self, out: Values, start: int) -> Iterator[slice]:
        """See `Rows.fill`."""
        out[...] = self.value
        yield slice(0, len(self.rows[start : start + len(out)]))
