"""Where the values of a column of vectors lie in its file, by the headers and levels of its pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.vector_pages.data_pages import DataPages, Form
from skyvec.vector_pages.levels import OtherLayoutError, PageRows
from skyvec.vector_pages.reading import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Rows whose values lie in one piece, or one row that pages share."""

    first_row: int
    null: NDArray[np.bool_]
    pieces: tuple[tuple[int, int], ...]
    """Place in the file and number of values."""

    def parts(self, rows: int, *, dim: int, size: int) -> Iterator[Span]:
        """The same in spans of so many rows at most; a vector has ``dim`` values of ``size``."""
        if len(self.pieces) > 1 or len(self.null) <= rows:
            yield self
            return
        place, _ = self.pieces[0]
        for start in range(0, len(self.null), rows):
            null = self.null[start : start + rows]
            count = dim * (len(null) - int(null.sum()))
            yield Span(first_row=self.first_row + start, null=null, pieces=((place, count),))
            place += count * size


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the vectors of a file lie."""

    groups: tuple[list[Span], ...]
    """Of each row group."""
    dim: int
    dtype: np.dtype[Any]


def find_layout(content: Window, file: pq.ParquetFile, form: Form) -> Layout:
    """Read every page header of a column and no value.

    Raises
    ------
    OtherLayoutError
        If values are not plain, or are no vectors of one width.
    ValueError
        If a page is damaged.
    """
    groups, first_row, pages = [], 0, DataPages(form, content)
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        spans = Chunk(form, group.column(form.index), pages, first_row).spans()
        rows = sum(len(span.null) for span in spans)
        if rows != group.num_rows:
            raise ValueError(f"{rows} rows in row group {number}, its footer says {group.num_rows}")
        groups.append(spans)
        first_row += rows
    return Layout(groups=tuple(groups), dim=form.dim, dtype=form.dtype)


class Chunk:
    """Walks through the pages of one row group."""

    def __init__(
        self, form: Form, chunk: pq.ColumnChunkMetaData, pages: DataPages, first_row: int
    ) -> None:
        if chunk.compression != "UNCOMPRESSED":
            raise OtherLayoutError(f"is compressed ({chunk.compression})")
        if chunk.has_dictionary_page:
            raise OtherLayoutError("is dictionary encoded")
        self.form, self.row = form, first_row
        self.left = chunk.num_values
        self.place = chunk.data_page_offset
        self.stop = self.place + chunk.total_compressed_size
        if not 0 <= self.place <= self.stop <= len(pages.content):
            raise ValueError("the file is shorter than its footer says")
        self.pages = pages
        self.found: list[Span] = []
        self.shared: list[tuple[int, int]] = []
        """Pieces so far of a row that goes on in the next page."""

    def spans(self) -> list[Span]:
        """Of all its pages; see `find_layout`."""
        while self.left > 0:
            page = self.pages.at(self.place, self.stop, most=self.left)
            if page.rows is not None:
                self._place(page.rows, self.place + len(page.head), page.values)
            self.place += page.size
            self.left -= page.entries
        if self.left or self.shared:
            raise ValueError("pages and footer count different values")
        return self.found

    def _place(self, rows: PageRows, at: int, values: int) -> None:
        """Note which rows the values of a page from here on belong to."""
        if rows.whole and not self.shared:
            self._add(rows.null, ((at, values),))
            return
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
        self.found.append(Span(first_row=self.row, null=null, pieces=pieces))
        self.row += len(null)
