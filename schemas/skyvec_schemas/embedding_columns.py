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
    """One vector column and the five that say what it is worth and what it was made of."""

    name: str
    """Name of the extension and of its vector column."""
    dim: int
    """Width of a vector."""
    dtype: VectorType = "float16"

    @property
    def names(self) -> tuple[str, ...]:
        """Vector, status, flags, modalities, tokens, content."""
        ends = ("", "_status", "_flags", "_modalities", "_tokens", "_content")
        return tuple(self.name + end for end in ends)

    @property
    def vector_leaf(self) -> str:
        """Path of the vector's values inside Parquet."""
        return f"{self.name}.list.element"

    def fields(self) -> list[pa.Field]:
        """Arrow fields; the vector is null where nothing could be embedded."""
        value = pa.float16() if self.dtype == "float16" else pa.float32()
        kinds = [fixed_shape_tensor(value, self.dim), pa.string(), pa.int32(), pa.int64(),
                 pa.int32(), pa.int64()]  # fmt: skip
        return [pa.field(name, kind) for name, kind in zip(self.names, kinds, strict=True)]

    def arrays(
        self,
        vectors: NDArray[np.floating],
        *,
        flags: NDArray[np.int32],
        modality_bits: NDArray[np.int64],
        token_counts: NDArray[np.int32],
        contents: NDArray[np.int64],
        failed: NDArray[np.bool_],
    ) -> list[pa.Array]:
        """Columns of these rows, in the order of `fields`.

        Parameters
        ----------
        vectors
            (rows, dim), of any floating type; rows that failed are ignored.
        flags
            Bits of `skyvec_schemas.quality_flags.Flag`.
        modality_bits
            Bit i is set where the i-th entry of the modality registry was used.
        token_counts
            Tokens that the vector is the mean of.
        contents
            Digest of each row's tokens, by `skyvec_schemas.token_columns.content_digests`: rows of
            one id and one content have one vector.
        failed
            Rows whose vector is null.
        """
        stored = vectors.astype(self.dtype, copy=False)
        if failed.any():
            stored = np.where(failed[:, None], stored.dtype.type(0), stored)
        return [
            tensor_array(stored, absent=failed),
            _statuses(flags),
            pa.array(flags, pa.int32()),
            pa.array(modality_bits, pa.int64()),
            pa.array(token_counts, pa.int32()),
            pa.array(contents, pa.int64()),
        ]


def _statuses(flags: NDArray[np.int32]) -> pa.Array:
    """One word for each row; rows differ in few ways."""
    kinds, which = np.unique(flags, return_inverse=True)
    words = pa.array([str(status_of(bits)) for bits in kinds.tolist()], pa.string())
    return words.take(pa.array(which))
