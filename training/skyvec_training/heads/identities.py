"""Who an object is: ids of any type as int64, so that tables are joined without words in memory."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_schemas.errors import MissingColumnError
from skyvec_training.data.token_leaves import ID_COLUMNS


def id_column_of(leaf: Path) -> str:
    """Name of a leaf's id column.

    Raises
    ------
    MissingColumnError
        If it has none that a survey declares.
    """
    names = set(pq.read_schema(leaf).names)
    for column in ID_COLUMNS:
        if column in names:
            return column
    raise MissingColumnError(
        f"there is no column {' or '.join(ID_COLUMNS)}",
        where=str(leaf),
        remedy="Give a catalog of a known survey",
    )


def identities(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Whole numbers as they are, words by eight bytes of their BLAKE2b."""
    if pa.types.is_integer(ids.type):
        return ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
    digests = [blake2b(str(one).encode(), digest_size=8).digest() for one in ids.to_pylist()]
    return np.frombuffer(b"".join(digests), "<i8")
