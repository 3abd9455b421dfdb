"""Token columns: what a token extension stores, one column for each modality.

A modality with a grid is a fixed-shape tensor of int16 codes; -1 marks a token that stands for
nothing observed (padding, bad pixels). A scalar is one nullable int16. An object without the
modality is null. Columns carry the token key itself as their name. Every AION-1 vocabulary fits
int16 (the largest has 4375 codes).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyvec_schemas.vectors import fixed_shape_tensor, tensor_array, tensor_values

INVALID = -1
"""Code of a token that was not observed."""


def token_type(num_tokens: int) -> pa.DataType:
    """Arrow type of the token column of a modality with this many tokens."""
    return pa.int16() if num_tokens == 1 else fixed_shape_tensor(pa.int16(), num_tokens)


def token_array(codes: NDArray[np.int64], valid: NDArray[np.bool_]) -> pa.Array:
    """Column of codes (rows, tokens) that are real where ``valid``; a row without any is null."""
    stored = np.where(valid, codes, INVALID).astype(np.int16)
    absent = np.asarray(~valid.any(axis=1))
    if stored.shape[1] == 1:
        return pa.array(stored[:, 0], mask=absent)
    return tensor_array(stored, absent=absent)


def token_values(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Codes (rows, tokens) and validity of a column made by `token_array`."""
    if pa.types.is_int16(column.type):
        codes = column.fill_null(INVALID).to_numpy(zero_copy_only=False)[:, None]
    else:
        codes = tensor_values(column, missing=INVALID)
    return np.where(codes < 0, 0, codes).astype(np.int64), codes >= 0
