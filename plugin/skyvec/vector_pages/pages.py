"""A column of vectors as arrays over the file's own pages.

Parquet has no lists of fixed width: to decode vectors takes readers ten times what it takes to look
at them. Where the values lie plain and uncompressed, as the stage writes them, each page holds the
rows of a matrix, and only its header and levels need decoding.
"""

from __future__ import annotations

import mmap
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.releases.hats.remote import is_remote, unreadable
from skyvec.vector_pages.chunks import Layout, Span, find_layout
from skyvec.vector_pages.data_pages import Form
from skyvec.vector_pages.levels import OtherLayoutError
from skyvec.vector_pages.reading import AVAILABLE, Memory, Reader, Window
from skyvec_schemas.errors import ContractError

BLOCK_ROWS = 4096
"""Rows handed out at a time, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows that lie together."""

    first_row: int
    """Of the file."""
    values: NDArray[np.floating]
    """(rows that have a vector, dim), only to be read."""
    null: NDArray[np.bool_]
    """(rows,); for each False one row of `values`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotMappable:
    """A healthy file whose vectors have to be decoded."""

    reason: str


class VectorPages:
    """The vectors of one local file.

    Arrays that are views of the file stay valid as long as they are held. It must not be cut short
    meanwhile, which the operating system answers by ending the process; one that is replaced by a
    rename does no harm.
    """

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file, self.layout = file, layout
        self.dim, self.dtype = layout.dim, layout.dtype

    @classmethod
    def open(
        cls, path: Path, column: str, *, file: pq.ParquetFile | None = None
    ) -> Self | NotMappable:
        """Find the vectors of a column; reads every page header and no value.

        Parameters
        ----------
        column
            Fixed-shape tensors of one axis, or fixed-size lists, of floating-point numbers.
        file
            The same file, where the caller has it open.

        Raises
        ------
        ContractError
            If the file is cut short or its pages are damaged.
        MissingColumnError
            If there is no such column.
        """
        if is_remote(path):
            return NotMappable(reason="is not on a local disk")
        with ExitStack() as held:
            try:
                # What is read later is of the same file, if another takes its name meanwhile.
                handle = path.open("rb", buffering=0)
                closing = held.enter_context(ExitStack())
                closing.callback(handle.close)
                if file is None:
                    file = held.enter_context(pq.ParquetFile(path))
            except (OSError, ValueError, pa.ArrowException) as problem:
                raise unreadable(problem, path) from problem
            pages = cls.of(handle, column, file=file, path=path)
            if isinstance(pages, VectorPages):
                weakref.finalize(pages, closing.pop_all().close)
        return pages

    @classmethod
    def of(
        cls, handle: BinaryIO, column: str, *, file: pq.ParquetFile, path: Path
    ) -> Self | NotMappable:
        """The same of a local file that the caller has open, not buffered, and closes."""
        try:
            form = Form.of(file, column, where=str(path))
            layout = find_layout(Window(handle), file, form)
        except (OSError, pa.ArrowException) as problem:
            raise unreadable(problem, path) from problem
        except OtherLayoutError as problem:
            return NotMappable(reason=str(problem))
        except ValueError as problem:
            raise ContractError(
                f"pages of column {column!r} are damaged ({problem})",
                where=str(path),
                remedy="Copy or write this file again",
            ) from problem
        return cls(handle, layout)

    def blocks(
        self,
        *,
        groups: Sequence[int] | None = None,
        rows: int = BLOCK_ROWS,
        memory: Memory | None = None,
    ) -> Iterator[Block]:
        """All vectors in order, as views of the file; a row that two pages share is copied.

        What was handed out may leave memory once the next block is asked for, so that a scan holds
        no more than its block; it is read again if it is looked at again.

        Parameters
        ----------
        groups
            Row groups; all by default.
        rows
            Of one block at most.
        memory
            Read each block into it, over the one before: for a scan that keeps none. Pages and row
            groups whose rows follow each other share a block.

        Raises
        ------
        ContractError
            If the file was cut short meanwhile; only with ``memory``.
        """
        every = self.layout.groups
        wanted = every if groups is None else [every[group] for group in groups]
        spans = chain.from_iterable(wanted)
        if memory is not None and AVAILABLE:
            yield from self._read(spans, rows, Reader(self._file, memory))
        else:
            yield from self._viewed(spans, rows)

    def row(self, row: int) -> NDArray[np.floating] | None:
        """The vector (dim,) of one row, None if it is null.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        spans, starts = self._in_order
        span = spans[bisect_right(starts, row) - 1] if spans and row >= 0 else None
        place = row - span.first_row if span else 0
        if span is None or place >= len(span.null):
            raise IndexError(row)
        if span.null[place]:
            return None
        vector: NDArray[np.floating] = self._values(span)[int((~span.null[:place]).sum())]
        return vector

    def rows(self, rows: NDArray[np.int64], memory: Memory) -> NDArray[np.floating]:
        """Vectors (p, dim) of some rows in ascending order, none of them null; see `Memory`.

        Raises
        ------
        ContractError
            If the file was cut short meanwhile.
        """
        spans, starts = self._in_order
        size, pieces = self.dtype.itemsize, list[tuple[int, int]]()
        for row in rows.tolist():
            span = spans[bisect_right(starts, row) - 1]
            if len(span.pieces) > 1:
                pieces.extend((place, count * size) for place, count in span.pieces)
                continue
            before = int((~span.null[: row - span.first_row]).sum())
            pieces.append((span.pieces[0][0] + before * self.dim * size, self.dim * size))
        return Reader(self._file, memory).read(pieces).view(self.dtype).reshape(-1, self.dim)

    def _viewed(self, spans: Iterable[Span], rows: int) -> Iterator[Block]:
        for span in spans:
            for part in span.parts(rows, dim=self.dim, size=self.dtype.itemsize):
                yield Block(first_row=part.first_row, values=self._values(part), null=part.null)
            self._release(span)

    def _read(self, spans: Iterable[Span], rows: int, reader: Reader) -> Iterator[Block]:
        held: list[Span] = []
        next_row = count = 0
        for span in spans:
            for part in span.parts(rows, dim=self.dim, size=self.dtype.itemsize):
                # Each block of a scan has its price.
                if held and (part.first_row != next_row or count + len(part.null) > rows):
                    yield self._joined(held, reader)
                    held, count = [], 0
                held.append(part)
                count += len(part.null)
                next_row = part.first_row + len(part.null)
        if held:
            yield self._joined(held, reader)

    def _joined(self, spans: Sequence[Span], reader: Reader) -> Block:
        size = self.dtype.itemsize
        pieces = [(place, count * size) for span in spans for place, count in span.pieces]
        return Block(
            first_row=spans[0].first_row,
            values=reader.read(pieces).view(self.dtype).reshape(-1, self.dim),
            null=np.concatenate([span.null for span in spans]) if spans[1:] else spans[0].null,
        )

    @cached_property
    def _in_order(self) -> tuple[list[Span], list[int]]:
        """Spans of all row groups, and their first rows."""
        spans = list(chain.from_iterable(self.layout.groups))
        return spans, [span.first_row for span in spans]

    @cached_property
    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def _values(self, span: Span) -> NDArray[np.floating]:
        pieces = [
            np.frombuffer(self._mapped, self.dtype, count, place) for place, count in span.pieces
        ]
        values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        values.setflags(write=False)
        return values.reshape(-1, self.dim)

    def _release(self, span: Span) -> None:
        """Let go of the mapped pages; memory of a scan must not grow with the file."""
        if not hasattr(mmap, "MADV_DONTNEED") or not span.pieces:
            return
        (first, _), (last, count) = span.pieces[0], span.pieces[-1]
        start = first // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_DONTNEED, start, last + count * self.dtype.itemsize - start)
