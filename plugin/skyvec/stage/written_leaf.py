"""An output file, opened once for everything that is proved of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from skyvec.releases.hats.leaf import ParquetPlace
from skyvec.releases.hats.remote import unreadable
from skyvec.vector_pages.opening import Vectors, open_vectors
from skyvec.vector_pages.pages import Block
from skyvec_schemas.vectors import fixed_shape_tensor, tensor_array

BATCH_ROWS = 2048
"""Vectors in memory at a time."""


class WrittenLeaf:
    """Reads back what lies on disk; vectors without decoding them.

    Parameters
    ----------
    vector
        Name of the vector column; None where there is none.

    Raises
    ------
    ContractError
        If it is no complete Parquet file, or its vectors cannot be read.
    """

    def __init__(self, path: Path, vector: str | None) -> None:
        self._place = ParquetPlace(path)
        self.file = self._place.file
        self._vector = vector
        self.vectors: Vectors | None = None
        if vector is not None:
            self.vectors = open_vectors(path, vector, file=self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.file.metadata.num_rows)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows in order, never the file at once.

        Raises
        ------
        ContractError
            If they cannot be decoded, or the file was written again meanwhile.
        """
        for group in range(self.file.metadata.num_row_groups):
            held = self.columns(columns, group)
            if self.vectors is None or self._vector is None or self._vector not in columns:
                yield _batch(columns, held)
                continue
            done = 0
            for block in self.vectors.blocks(groups=[group], rows=BATCH_ROWS):
                rows = len(block.null)
                part = {name: column.slice(done, rows) for name, column in held.items()}
                part[self._vector] = _tensors(block)
                done += rows
                yield _batch(columns, part)
        self._place.refuse_change()

    def columns(self, columns: Sequence[str], group: int) -> dict[str, pa.Array]:
        """Columns of one row group; of the vector there are `vectors`.

        Raises
        ------
        ContractError
            If they cannot be decoded.
        """
        names = [name for name in columns if name != self._vector]
        try:
            table = self.file.read_row_group(
                group, columns=self._place.chunks(names), use_threads=False
            )
        except (OSError, pa.ArrowException) as problem:
            raise unreadable(problem, self._place.path) from problem
        return {name: table.column(name).combine_chunks() for name in names}


def _batch(columns: Sequence[str], arrays: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([arrays[name] for name in columns], names=list(columns))


def _tensors(block: Block) -> pa.Array:
    """A tensor column over the block's own memory, if no row is null."""
    rows, dim = len(block.null), block.values.shape[1]
    if block.null.any():
        values = np.zeros((rows, dim), block.values.dtype)
        values[~block.null] = block.values
        return tensor_array(values, absent=block.null)
    kind = fixed_shape_tensor(pa.from_numpy_dtype(block.values.dtype), dim)
    # `pa.array` copies what does not lie at a multiple of its size, as pages do not.
    flat = pa.Array.from_buffers(kind.value_type, rows * dim, [None, pa.py_buffer(block.values)])
    storage = pa.FixedSizeListArray.from_arrays(flat, dim)
    return pa.ExtensionArray.from_storage(kind, storage)
