"""Data pages of a column of vectors: how it is stored, and what the head of a page says of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skyvec.vector_pages.levels import OtherLayoutError, PageRows, page_rows
from skyvec.vector_pages.reading import Window
from skyvec.vector_pages.thrift import Fields, read_struct
from skyvec_schemas.errors import MissingColumnError

_STORED = {
    pa.float16(): ("FIXED_LEN_BYTE_ARRAY", "<f2"),
    pa.float32(): ("FLOAT", "<f4"),
    pa.float64(): ("DOUBLE", "<f8"),
}
"""Arrow type -> physical type in Parquet, and numpy's name of the same bytes."""
_PLAIN, _RLE = 0, 3
_DATA_PAGE, _INDEX_PAGE, _DATA_PAGE_V2 = 0, 1, 3
_HEADER = (64, 1 << 16)
"""Bytes that a page's header usually fits in, and at most."""
_BEGINNING = 24
"""Bytes that tell most heads apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a column is stored."""

    index: int
    """Among the columns of each row group."""
    dim: int
    dtype: np.dtype[Any]
    highest: int
    """Definition level of a value."""
    nullable: bool

    @classmethod
    def of(cls, file: pq.ParquetFile, column: str, *, where: str) -> Form:
        """By the schema and the footer.

        Raises
        ------
        MissingColumnError
            If there is no such column.
        OtherLayoutError
            If it holds no vectors of one width.
        """
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPage:
    """One page, wherever it lies."""

    head: bytes
    """Header and levels; the values follow."""
    size: int
    """In bytes, with its head."""
    entries: int
    """Values and null rows."""
    values: int
    rows: PageRows | None
    """None: it holds no data."""


class DataPages:
    """Reads heads of pages, and decodes each kind once."""

    def __init__(self, form: Form, content: Window) -> None:
        self.form, self.content = form, content
        # The full pages of a column have one head, the last of each row group another.
        self._known: dict[bytes, DataPage] = {}

    def at(self, place: int, stop: int, *, most: int) -> DataPage:
        """The page that begins at a place, of a column that ends at another.

        Parameters
        ----------
        most
            Entries that the column has left.

        Raises
        ------
        OtherLayoutError
            If its values are not plain, or no vectors of one width.
        ValueError
            If it is damaged.
        """
        beginning = self.content[place : place + _BEGINNING]
        page = self._known.get(beginning)
        if (
            page is None
            or place + page.size > stop
            or page.entries > most
            or self.content[place : place + len(page.head)] != page.head
        ):
            page = self._known[beginning] = self._decode(place, stop, most)
        return page

    def _decode(self, place: int, stop: int, most: int) -> DataPage:
        header, length = self._header(place, stop)
        start = place + length
        size = length + _number(header, 3)
        if not length <= size <= stop - place:
            raise ValueError("a page ends beyond its column")
        kind = _number(header, 1)
        if kind == _INDEX_PAGE:
            head = self.content[place:start]
            return DataPage(head=head, size=size, entries=0, values=0, rows=None)
        if kind not in {_DATA_PAGE, _DATA_PAGE_V2}:
            raise OtherLayoutError("has a dictionary page")
        described = header.get(5 if kind == _DATA_PAGE else 8)
        if not isinstance(described, dict):
            raise ValueError("a page without a header of its kind")
        entries = _number(described, 1)
        if not 0 < entries <= most:
            raise ValueError("pages and footer count different values")
        levels = self._levels_v1 if kind == _DATA_PAGE else self._levels_v2
        repetition, definition, at = levels(described, start, place + size)
        rows = page_rows(
            repetition, definition, entries, dim=self.form.dim, highest=self.form.highest,
            nullable=self.form.nullable,
        )  # fmt: skip
        values, rest = divmod(place + size - at, self.form.dtype.itemsize)
        if rest or values != entries - int(rows.null.sum()):
            raise ValueError("a page holds more or fewer values than it counts")
        head = self.content[place:at]
        return DataPage(head=head, size=size, entries=entries, values=values, rows=rows)

    def _header(self, place: int, stop: int) -> tuple[Fields, int]:
        for most in _HEADER:
            content = self.content[place : min(place + most, stop)]
            try:
                return read_struct(content)
            except ValueError:
                if len(content) < most or most == _HEADER[-1]:
                    raise
        raise ValueError("no header")

    def _levels_v1(self, header: Fields, at: int, stop: int) -> tuple[bytes, bytes, int]:
        """Repetition levels, definition levels, and where the values begin."""
        if (encoding := _number(header, 2)) != _PLAIN:
            raise OtherLayoutError(f"is not plain (Parquet encoding {encoding})")
        if (_number(header, 3), _number(header, 4)) != (_RLE, _RLE):
            raise OtherLayoutError("has levels of an old encoding")
        found = []
        for _ in range(2):
            size = int.from_bytes(self.content[at : at + 4], "little")
            at += 4 + size
            if at > stop:
                raise ValueError("levels end beyond their page")
            found.append(self.content[at - size : at])
        return found[0], found[1], at

    def _levels_v2(self, header: Fields, at: int, stop: int) -> tuple[bytes, bytes, int]:
        if (encoding := _number(header, 4)) != _PLAIN:
            raise OtherLayoutError(f"is not plain (Parquet encoding {encoding})")
        defined, repeated = _number(header, 5), _number(header, 6)
        middle, end = at + repeated, at + repeated + defined
        if min(defined, repeated) < 0 or end > stop:
            raise ValueError("levels end beyond their page")
        return self.content[at:middle], self.content[middle:end], end


def _number(fields: Fields, field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int):
        raise ValueError(f"a header without its field {field}")
    return value
