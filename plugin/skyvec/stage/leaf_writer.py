"""One output leaf: row groups of a fixed size, so that its bytes do not depend on the batches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 2048
"""3 MB of a float16 vector of 768; a reader of single rows decodes one of these."""
PAGE_BYTES = 1 << 24
"""A page for each row group, of vectors up to 4,096 wide in float16: a scan reads the head of each page."""


class LeafWriter:
    """Writes tables to a Parquet file, whatever pieces they come in.

    Parameters
    ----------
    plain
        Column path that is stored plain and uncompressed: a scan reads its pages without decoding.
        HATS' default (zstd 15 and byte-stream split) costs twenty times the CPU for nothing, and
        DuckDB cannot read it in float16. All others are zstd 1.
    unique
        Text columns without repeats, for which a dictionary would be waste.
    """

    def __init__(
        self, place: Path, schema: pa.Schema, *, plain: str | None, unique: frozenset[str]
    ) -> None:
        leaves = [f"{f.name}.list.element" if _is_tensor(f.type) else f.name for f in schema]
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._writer = pq.ParquetWriter(
            place,
            schema,
            compression={leaf: "none" if leaf == plain else "zstd" for leaf in leaves},
            compression_level={leaf: 1 for leaf in leaves if leaf != plain},
            use_dictionary=[
                f.name for f in schema if pa.types.is_string(f.type) and f.name not in unique
            ],
            write_statistics=[f.name for f in schema if not _is_tensor(f.type)],
            data_page_size=PAGE_BYTES,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush(self._rows)
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(table)
        self._rows += len(table)
        while self._rows >= ROW_GROUP_ROWS:
            self._flush(ROW_GROUP_ROWS)

    def _flush(self, rows: int) -> None:
        if not rows:
            return
        joined = pa.concat_tables(self._waiting)
        # One piece: pages must not follow the batches either.
        self._writer.write_table(joined.slice(0, rows).combine_chunks(), row_group_size=rows)
        rest = joined.slice(rows)
        self._waiting, self._rows = [rest] if len(rest) else [], len(rest)


def file_digest(place: Path) -> str:
    """SHA-256 of a file, 1 MB at a time."""
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_tensor(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedShapeTensorType)
