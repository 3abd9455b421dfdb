"""Token columns: what a token extension stores, one column for each modality.

A modality with a grid is a fixed-shape tensor of int16 codes; -1 marks a token that stands for
nothing observed (padding, bad pixels). A scalar is one nullable int16. An object without the
modality is null. Columns carry the token key itself as their name. Every AION-1 vocabulary fits
int16 (the largest has 4375 codes).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyvec_schemas.vectors import fixed_shape_tensor, tensor_array, tensor_values

INVALID = -1
"""Code of a token that was not observed."""
FLAGS = "flags"
"""Column of a token extension with the reasons of each row (int32), so that vectors made from it get
the status that they have when made from pixels."""


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


def content_digests(
    tokens: Mapping[str, tuple[NDArray[np.int64], NDArray[np.bool_]]],
) -> NDArray[np.int64]:
    """Eight bytes of BLAKE2b over each row's tokens: equal where a model sees equal input.

    Parameters
    ----------
    tokens
        Token key -> codes and validity, both (rows, tokens).
    """
    keys = sorted(tokens)
    stored = [np.where(tokens[key][1], tokens[key][0], INVALID).astype("<i2") for key in keys]
    seed = blake2b(",".join(f"{k}:{c.shape[1]}" for k, c in zip(keys, stored, strict=True)).encode(),
                   digest_size=8)  # fmt: skip
    rows = np.concatenate(stored, axis=1) if stored else np.zeros((0, 1), "<i2")
    content, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    digests = []
    for start in range(0, len(content), width):
        digest = seed.copy()
        digest.update(content[start : start + width])
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), "<i8")
