"""Columns of numbers of a survey, batch by batch: never more than `ROWS_PER_READ` rows in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_schemas.errors import ContractError
from skyvec_training.data import parts

ROWS_PER_READ = 65_536

Numbers = Mapping[str, NDArray[np.float64]]
"""Column -> (rows,) or (rows, k); NaN where null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberStream:
    """Some columns of a survey; may be gone through more than once."""

    source: Path
    columns: tuple[str, ...]

    def rows(self) -> int:
        """Rows in all files; a file that lacks a column is an error."""
        found = parts.parts_of(self.source)
        for part in found:
            parts.require(part, self.columns, remedy="Add the column, leave it out by `without` in "
                          "the recipe, or choose another survey")  # fmt: skip
        return sum(parts.rows_of(part, self.columns[0]) for part in found)

    def batches(self, *, start: int = 0, stop: int | None = None) -> Iterator[Numbers]:
        """Rows from ``start`` up to ``stop``, in the order of the files."""
        seen = 0
        for part in parts.parts_of(self.source):
            if stop is not None and seen >= stop:
                return
            rows = parts.rows_of(part, self.columns[0])
            if seen + rows > start:
                yield from self._of_part(part, seen, start, stop)
            seen += rows

    def _of_part(self, part: Path, seen: int, start: int, stop: int | None) -> Iterator[Numbers]:
        for batch in _batches(part, self.columns):
            count = len(batch[self.columns[0]])
            kept = slice(max(0, start - seen), None if stop is None else max(0, stop - seen))
            seen += count
            chosen = {name: values[kept] for name, values in batch.items()}
            if len(chosen[self.columns[0]]):
                yield chosen


def _batches(part: Path, columns: Sequence[str]) -> Iterator[Numbers]:
    if parts.is_hdf5(part):
        for batch in parts.hdf5_batches(part, columns, ROWS_PER_READ):
            yield {name: values.astype(np.float64) for name, values in batch.items()}
        return
    for table in pq.ParquetFile(part).iter_batches(ROWS_PER_READ, columns=list(columns)):
        yield {name: _numbers(table[name], f"{part}, column {name!r}") for name in columns}


def _numbers(column: pa.Array, where: str) -> NDArray[np.float64]:
    if not pa.types.is_nested(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    lengths = pc.list_value_length(column)
    width = pc.max(lengths).as_py() or 0
    if pc.any(pc.not_equal(lengths, width)).as_py():
        raise ContractError(
            "its lists differ in length", where=where, remedy="Store as many numbers in every row"
        )
    out = np.full((len(column), width), np.nan)
    absent = column.is_null().to_numpy(zero_copy_only=False)
    flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    out[~absent] = flat.reshape(-1, width)
    return out
