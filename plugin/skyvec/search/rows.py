"""Chosen rows of a Parquet file, in the order asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def read_rows(file: pq.ParquetFile, columns: Sequence[str], rows: NDArray[np.int64]) -> pa.Table:
    """Some columns of some rows; decodes only the row groups that hold them."""
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    group = np.searchsorted(bounds, rows, side="right") - 1
    groups, place = np.unique(group, return_inverse=True)
    # Without threads, which take longer to start than so little takes to decode.
    table = file.read_row_groups(groups.tolist(), columns=list(columns), use_threads=False)
    table = table.select(list(columns))
    first = np.concatenate([[0], np.cumsum(np.diff(bounds)[groups])]).astype(np.int64)
    return table.take(pa.array(rows - bounds[group] + first[place]))
