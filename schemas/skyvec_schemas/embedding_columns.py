"""The columns that an embedding extension appends: names, Arrow types and their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyvec_schemas.quality_flags import status_of
from skyvec_schemas.vectors import fixed_shape_tensor, tensor_array

VectorType = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingColumns:
    """One vector column and the four that say what it is worth."""

    name: str
    """Name of the extension and of its vector column."""
    dim: int
    """Width of a vector."""
    dtype: VectorType = "float16"

    @property
    def names(self) -> tuple[str, ...]:
        """Vector, status, flags, modalities, tokens."""
        return tuple(self.name + end for end in ("", "_status", "_flags", "_modalities", "_tokens"))

    @property
    def vector_leaf(self) -> str:
        """Path of the vector's values inside Parquet."""
        return f"{self.name}.list.element"

    def fields(self) -> list[pa.Field]:
        """Arrow fields; the vector is null where nothing could be embedded."""
        value = pa.float16() if self.dtype == "float16" else pa.float32()
        kinds = [fixed_shape_tensor(value, self.dim), pa.string(), pa.int32(), pa.int64(),
                 pa.int32()]  # fmt: skip
        return [pa.field(name, kind) for name, kind in zip(self.names, kinds, strict=True)]

    def arrays(
        self,
        vectors: NDArray[np.float32],
        *,
        flags: NDArray[np.int32],
        modality_bits: NDArray[np.int64],
        token_counts: NDArray[np.int32],
        failed: NDArray[np.bool_],
    ) -> list[pa.Array]:
        """Columns of these rows, in the order of `fields`.

        Parameters
        ----------
        vectors
            (rows, dim); rows that failed are ignored.
        flags
            Bits of `skyvec_schemas.quality_flags.Flag`.
        modality_bits
            Bit i is set where the i-th entry of the modality registry was used.
        token_counts
            Tokens that the vector is the mean of.
        failed
            Rows whose vector is null.
        """
        stored = np.where(failed[:, None], 0, vectors).astype(self.dtype)
        return [
            tensor_array(stored, absent=failed),
            pa.array([str(status_of(int(bits))) for bits in flags], pa.string()),
            pa.array(flags, pa.int32()),
            pa.array(modality_bits, pa.int64()),
            pa.array(token_counts, pa.int32()),
        ]
