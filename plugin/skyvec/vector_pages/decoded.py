"""Vectors of files that cannot be mapped: compressed, remote, or written otherwise; by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skyvec.releases.hats.leaf import ParquetPlace
from skyvec.vector_pages.pages import BLOCK_ROWS, Block
from skyvec.vector_pages.reading import Memory
from skyvec_schemas.errors import ContractError


class DecodedVectors:
    """The vectors of one file, with the methods of `VectorPages` and the same answers.

    Lists of any length are taken too, if all are of one.

    Parameters
    ----------
    reason
        Why they are decoded, for people.
    place
        The same file, where the caller has it open.

    Raises
    ------
    ContractError
        If the file cannot be read, has no such column, or that holds no vectors of one width.
    """

    def __init__(
        self, path: Path, column: str, *, reason: str, place: ParquetPlace | None = None
    ) -> None:
        self.path, self.column, self.reason = path, column, reason
        self._place = place or ParquetPlace(path)
        self._chunks = self._place.chunks([column])
        metadata = self._place.file.metadata
        groups = range(metadata.num_row_groups)
        self._ends = np.cumsum([metadata.row_group(g).num_rows for g in groups], dtype=np.int64)
        kind = self._place.file.schema_arrow.field(column).type
        kind = kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind
        if not _is_list(kind) or not pa.types.is_floating(kind.value_type):
            raise self._refusal(f"is {kind}, not vectors of floating-point numbers")
        self.dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
        fixed = pa.types.is_fixed_size_list(kind)
        self.dim: int = kind.list_size if fixed else self._width_of_first()

    def blocks(
        self,
        *,
        groups: Sequence[int] | None = None,
        rows: int = BLOCK_ROWS,
        memory: Memory | None = None,  # noqa: ARG002
    ) -> Iterator[Block]:
        """All vectors in order; see `VectorPages.blocks`. Each has memory of its own."""
        for group in range(len(self._ends)) if groups is None else groups:
            first_row = self._first_row(group)
            for batch in self._place.batches(self._chunks, rows=rows, groups=[group]):
                yield self._block(batch.column(0), first_row)
                first_row += len(batch)

    def row(self, row: int) -> NDArray[np.floating] | None:
        """The vector (dim,) of one row, None if it is null; decodes no row beyond it."""
        if not 0 <= row < (self._ends[-1] if len(self._ends) else 0):
            raise IndexError(row)
        group = int(np.searchsorted(self._ends, row, side="right"))
        place = row - self._first_row(group)
        batches = self._place.batches(self._chunks, rows=place + 1, groups=[group])
        block = self._block(next(batches).column(0).slice(place, 1), row)
        vector: NDArray[np.floating] | None = None if block.null[0] else block.values[0]
        return vector

    def _first_row(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _block(self, column: pa.Array, first_row: int) -> Block:
        storage = column.storage if isinstance(column, pa.ExtensionArray) else column
        null = storage.is_null().to_numpy(zero_copy_only=False)
        there = storage.drop_null() if storage.null_count else storage
        if (pc.list_value_length(there).to_numpy(zero_copy_only=False) != self.dim).any():
            raise self._refusal(f"has vectors that are not {self.dim} wide")
        values = there.flatten().to_numpy(zero_copy_only=False).astype(self.dtype, copy=False)
        if len(values) != len(there) * self.dim:
            raise self._refusal(f"has vectors that are not {self.dim} wide")
        return Block(first_row=first_row, values=values.reshape(-1, self.dim), null=null)

    def _width_of_first(self) -> int:
        for group in range(len(self._ends)):
            for batch in self._place.batches(self._chunks, rows=BLOCK_ROWS, groups=[group]):
                lengths = pc.list_value_length(batch.column(0)).drop_null()
                if len(lengths):
                    return int(lengths[0].as_py())
        return 0

    def _refusal(self, what: str) -> ContractError:
        return ContractError(
            f"column {self.column!r} {what}",
            where=str(self.path),
            remedy="Name a column whose rows are vectors of one width",
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
