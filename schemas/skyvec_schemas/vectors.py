"""Fixed-shape tensor columns: one vector per row, null where there is none.

Arrow's canonical ``arrow.fixed_shape_tensor``, which nested-pandas and LSDB 0.11 read as
``TensorDtype``. Built from storage, since ``FixedShapeTensorArray.from_numpy_ndarray`` stamps a
permutation with which a HATS catalog cannot be opened again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def fixed_shape_tensor(value: pa.DataType, width: int) -> pa.DataType:
    """Type of a column with ``width`` values per row."""
    return pa.fixed_shape_tensor(value, [width])


def tensor_array(values: NDArray[Any], *, absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """Column of the rows of ``values`` (rows, width); null where ``absent``."""
    width = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    mask = None if absent is None or not absent.any() else pa.array(absent)
    storage = pa.FixedSizeListArray.from_arrays(flat, width, mask=mask)
    return pa.ExtensionArray.from_storage(fixed_shape_tensor(flat.type, width), storage)


def tensor_values(column: pa.ChunkedArray | pa.Array, *, missing: float) -> NDArray[Any]:
    """(rows, width) array of a tensor column; ``missing`` in null rows.

    A view of the Arrow memory (read-only) where the column is one chunk without nulls.
    ``TensorExtensionArray.to_stack`` raises on nulls, which a left join makes.
    """
    if isinstance(column, pa.ChunkedArray):
        chunks = [tensor_values(chunk, missing=missing) for chunk in column.chunks]
        if len(chunks) == 1:
            return chunks[0]
        width = column.type.shape[0]
        empty = np.empty((0, width), column.type.value_type.to_pandas_dtype())
        return np.concatenate([empty, *chunks])
    storage = column.storage
    width = storage.type.list_size
    # `values` ignores both the offset of a slice and its nulls.
    flat = storage.values.slice(storage.offset * width, len(storage) * width)
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(storage), width)
    if not storage.null_count:
        return values
    filled: NDArray[Any] = values.copy()
    filled[storage.is_null().to_numpy(zero_copy_only=False)] = missing
    return filled
