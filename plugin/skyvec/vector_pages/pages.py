"""A column of vectors as arrays over the file's own pages.

Parquet has no lists of fixed width: to decode vectors takes readers ten times what it takes to look
at them. Where the values lie plain and uncompressed, as the stage writes them, each page holds the
rows of a matrix, and only its header and levels need decoding.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.releases.hats.remote import is_remote, unreadable
from skyvec.vector_pages.levels import OtherLayoutError, PageRows, page_rows
from skyvec.vector_pages.thrift import Fields, read_struct
from skyvec_schemas.errors import ContractError, MissingColumnError

BLOCK_ROWS = 4096
"""Rows handed out at a time, at most."""
_STORED = {
    pa.float16(): ("FIXED_LEN_BYTE_ARRAY", "<f2"),
    pa.float32(): ("FLOAT", "<f4"),
    pa.float64(): ("DOUBLE", "<f8"),
}
"""Arrow type -> physical type in Parquet, and numpy's name of the same bytes."""
_PLAIN, _RLE = 0, 3
_DATA_PAGE, _INDEX_PAGE, _DATA_PAGE_V2 = 0, 1, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows that lie together."""

    first_row: int
    """Of the file."""
    values: NDArray[np.floating]
    """(rows that have a vector, dim), read-only."""
    null: NDArray[np.bool_]
    """(rows,); for each False one row of `values`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotMappable:
    """A healthy file whose vectors have to be decoded."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """Rows whose values lie in one piece, or one row that pages share."""

    first_row: int
    null: NDArray[np.bool_]
    pieces: tuple[tuple[int, int], ...]
    """Place in the file and number of values."""


class VectorPages:
    """The vectors of one local file.

    Arrays stay valid as long as they are held. The file must not be cut short meanwhile, which the
    operating system answers by ending the process; one that is replaced by a rename does no harm.
    """

    def __init__(
        self, mapped: mmap.mmap, spans: Sequence[Sequence[_Span]], *, dim: int, dtype: np.dtype[Any]
    ) -> None:
        self._mapped, self._groups = mapped, spans
        self._spans = [span for group in spans for span in group]
        self._starts = [span.first_row for span in self._spans]
        self.dim, self.dtype = dim, dtype

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
        try:
            if file is None:
                with pq.ParquetFile(path) as opened:
                    return cls.open(path, column, file=opened)
            form = _Form.of(file, column, where=str(path))
            with path.open("rb") as handle:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, pa.ArrowException) as problem:
            raise unreadable(problem, path) from problem
        except OtherLayoutError as problem:
            return NotMappable(reason=str(problem))
        try:
            return cls(mapped, _spans(mapped, file, form), dim=form.dim, dtype=form.dtype)
        except OtherLayoutError as problem:
            return NotMappable(reason=str(problem))
        except ValueError as problem:
            raise ContractError(
                f"pages of column {column!r} are damaged ({problem})",
                where=str(path),
                remedy="Copy or write this file again",
            ) from problem

    def blocks(
        self, *, groups: Sequence[int] | None = None, rows: int = BLOCK_ROWS
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
        """
        for group in range(len(self._groups)) if groups is None else groups:
            for span in self._groups[group]:
                values, done = self._values(span), 0
                for start in range(0, len(span.null), rows):
                    null = span.null[start : start + rows]
                    some = values[done : done + int((~null).sum())]
                    done += len(some)
                    yield Block(first_row=span.first_row + start, values=some, null=null)
                self._release(span)

    def row(self, row: int) -> NDArray[np.floating] | None:
        """The vector (dim,) of one row, None if it is null.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        span = (
            self._spans[bisect_right(self._starts, row) - 1] if self._spans and row >= 0 else None
        )
        place = row - span.first_row if span else 0
        if span is None or place >= len(span.null):
            raise IndexError(row)
        if span.null[place]:
            return None
        vector: NDArray[np.floating] = self._values(span)[int((~span.null[:place]).sum())]
        return vector

    def _values(self, span: _Span) -> NDArray[np.floating]:
        pieces = [
            np.frombuffer(self._mapped, self.dtype, count, place) for place, count in span.pieces
        ]
        values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        values.setflags(write=False)
        return values.reshape(-1, self.dim)

    def _release(self, span: _Span) -> None:
        """Let go of the mapped pages; memory of a scan must not grow with the file."""
        if not hasattr(mmap, "MADV_DONTNEED") or not span.pieces:
            return
        (first, _), (last, count) = span.pieces[0], span.pieces[-1]
        start = first // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_DONTNEED, start, last + count * self.dtype.itemsize - start)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """How a column is stored."""

    index: int
    """Among the columns of each row group."""
    dim: int
    dtype: np.dtype[Any]
    highest: int
    """Definition level of a value."""
    nullable: bool

    @classmethod
    def of(cls, file: pq.ParquetFile, column: str, *, where: str) -> _Form:
        if column not in file.schema_arrow.names:
            raise MissingColumnError(
                f"no column {column!r}", where=where, remedy="Name a column of vectors"
            )
        field = file.schema_arrow.field(column)
        kind = field.type
        if isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) == 1:
            kind = kind.storage_type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type not in _STORED:
            raise OtherLayoutError(f"is {kind}, no vectors of one width and of floats")
        leaves = [file.schema.column(place) for place in range(len(file.schema))]
        index = [
            place for place, leaf in enumerate(leaves)
            if leaf.path == column or leaf.path.startswith(f"{column}.")
        ]  # fmt: skip
        physical, dtype = _STORED[kind.value_type]
        stored = [(leaves[place].max_repetition_level, leaves[place].physical_type)
                  for place in index]  # fmt: skip
        if stored != [(1, physical)]:
            raise OtherLayoutError("is stored otherwise than its type says")
        leaf = leaves[index[0]]
        return cls(
            index=index[0], dim=kind.list_size, dtype=np.dtype(dtype),
            highest=leaf.max_definition_level, nullable=field.nullable,
        )  # fmt: skip


def _spans(mapped: mmap.mmap, file: pq.ParquetFile, form: _Form) -> list[list[_Span]]:
    groups, first_row = [], 0
    with memoryview(mapped) as content:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            spans = _Chunk(form, group.column(form.index), content, first_row).spans()
            rows = sum(len(span.null) for span in spans)
            if rows != group.num_rows:
                raise ValueError(
                    f"{rows} rows in row group {number}, its footer says {group.num_rows}"
                )
            groups.append(spans)
            first_row += rows
    return groups


class _Chunk:
    """Walks through the pages of one row group."""

    def __init__(
        self, form: _Form, chunk: pq.ColumnChunkMetaData, content: memoryview, first_row: int
    ) -> None:
        if chunk.compression != "UNCOMPRESSED":
            raise OtherLayoutError(f"is compressed ({chunk.compression})")
        if chunk.has_dictionary_page:
            raise OtherLayoutError("is dictionary encoded")
        self.form, self.row = form, first_row
        self.left = chunk.num_values
        self.place = chunk.data_page_offset
        stop = self.place + chunk.total_compressed_size
        if not 0 <= self.place <= stop <= len(content):
            raise ValueError("the file is shorter than its footer says")
        self.content = content[:stop]
        self.found: list[_Span] = []
        self.shared: list[tuple[int, int]] = []
        """Pieces so far of a row that goes on in the next page."""

    def spans(self) -> list[_Span]:
        while self.left > 0:
            header, start = read_struct(self.content, self.place)
            self.place = start + _number(header, 3)
            if not start <= self.place <= len(self.content):
                raise ValueError("a page ends beyond its column")
            self._take(header, self.content[start : self.place], start)
        if self.left or self.shared:
            raise ValueError("pages and footer count different values")
        return self.found

    def _take(self, header: Fields, page: memoryview, start: int) -> None:
        kind = _number(header, 1)
        if kind == _INDEX_PAGE:
            return
        if kind not in {_DATA_PAGE, _DATA_PAGE_V2}:
            raise OtherLayoutError("has a dictionary page")
        described = header.get(5 if kind == _DATA_PAGE else 8)
        if not isinstance(described, dict):
            raise ValueError("a page without a header of its kind")
        entries = _number(described, 1)
        if not 0 < entries <= self.left:
            raise ValueError("pages and footer count different values")
        read = _levels_v1 if kind == _DATA_PAGE else _levels_v2
        repetition, definition, at = read(described, page)
        rows = page_rows(
            repetition, definition, entries, dim=self.form.dim, highest=self.form.highest,
            nullable=self.form.nullable,
        )  # fmt: skip
        values, rest = divmod(len(page) - at, self.form.dtype.itemsize)
        if rest or values != entries - int(rows.null.sum()):
            raise ValueError("a page holds more or fewer values than it counts")
        self._place(rows, start + at, values)
        self.left -= entries

    def _place(self, rows: PageRows, at: int, values: int) -> None:
        """Note which rows the values of a page from here on belong to."""
        dim, size = self.form.dim, self.form.dtype.itemsize
        missing = dim - sum(count for _, count in self.shared) if self.shared else 0
        if rows.leading != missing and (len(rows.null) or rows.leading > missing):
            raise OtherLayoutError(f"has vectors that are not {dim} wide")
        if rows.leading:
            self.shared.append((at, rows.leading))
            if rows.leading == missing:
                self._add(np.zeros(1, np.bool_), tuple(self.shared))
                self.shared = []
        begun = dim - rows.lacking if rows.lacking else 0
        null = rows.null[:-1] if begun else rows.null
        whole = values - rows.leading - begun
        if len(null):
            self._add(null, ((at + rows.leading * size, whole),))
        if begun:
            self.shared = [(at + (values - begun) * size, begun)]

    def _add(self, null: NDArray[np.bool_], pieces: tuple[tuple[int, int], ...]) -> None:
        self.found.append(_Span(first_row=self.row, null=null, pieces=pieces))
        self.row += len(null)


def _levels_v1(header: Fields, page: memoryview) -> tuple[bytes, bytes, int]:
    """Repetition levels, definition levels, and where the values begin."""
    if (encoding := _number(header, 2)) != _PLAIN:
        raise OtherLayoutError(f"is not plain (Parquet encoding {encoding})")
    if (_number(header, 3), _number(header, 4)) != (_RLE, _RLE):
        raise OtherLayoutError("has levels of an old encoding")
    found, at = [], 0
    for _ in range(2):
        size = int.from_bytes(page[at : at + 4], "little")
        found.append(bytes(page[at + 4 : at + 4 + size]))
        at += 4 + size
    if at > len(page):
        raise ValueError("levels end beyond their page")
    return found[0], found[1], at


def _levels_v2(header: Fields, page: memoryview) -> tuple[bytes, bytes, int]:
    if (encoding := _number(header, 4)) != _PLAIN:
        raise OtherLayoutError(f"is not plain (Parquet encoding {encoding})")
    defined, repeated = _number(header, 5), _number(header, 6)
    at = defined + repeated
    if min(defined, repeated) < 0 or at > len(page):
        raise ValueError("levels end beyond their page")
    return bytes(page[:repeated]), bytes(page[repeated:at]), at


def _number(fields: Fields, field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int):
        raise ValueError(f"a header without its field {field}")
    return value
