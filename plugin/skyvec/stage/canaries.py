"""Canaries: a few rows of each pixel, read and embedded a second time, alone, and compared.

Reading ahead, batching, joining, spooling and reusing all happen between a row and its vector; a row
that went another way and comes out with the same bits shows that none of them mixed rows up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.stage.job import Job
from skyvec.stage.leaf_writer import ROW_GROUP_ROWS
from skyvec.stage.partition import TokenizedRows, embed_rows, stored_as
from skyvec.stage.row_stream import RowStream
from skyvec_core.embedder import Model
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import RowTruthError
from skyvec_schemas.token_columns import token_array
from skyvec_schemas.vectors import tensor_values

MOST = 8
"""Canaries of one pixel."""
NEAR = 256
"""A canary lies among the first so many rows of its stretch, so that reading it costs little."""
_REMEDY = (
    "Nothing was published; if this comes back, report it with the file: rows are being mixed up, "
    "or the worker computes wrong numbers"
)


def canary_rows(pixel: HealpixPixel, rows: int) -> list[int]:
    """Rows to look at again: one for each `ROW_GROUP_ROWS`, the same for the same pixel."""
    draw = np.random.default_rng((pixel.order, pixel.pixel, rows))
    stretches = max(1, -(-rows // ROW_GROUP_ROWS))
    chosen = draw.choice(stretches, min(stretches, MOST), replace=False)
    starts = chosen * ROW_GROUP_ROWS
    return sorted(int(s + draw.integers(min(NEAR, rows - s))) for s in starts)


def prove_canaries(
    written: Path, stream: RowStream, model: Model, job: Job, pixel: HealpixPixel, *, where: str
) -> None:
    """Compare canaries with what was written.

    Raises
    ------
    RowTruthError
        With the row, if it comes out otherwise.
    """
    with pq.ParquetFile(written) as file:
        for row in canary_rows(pixel, file.metadata.num_rows):
            group, place = divmod(row, ROW_GROUP_ROWS)
            # Decodes no row beyond this one.
            batches = file.iter_batches(place + 1, row_groups=[group], columns=list(_columns(job)))
            stored = pa.Table.from_batches([next(batches).slice(place)])
            again = stream.again(row)
            same = _same_tokens(stored, again) if job.columns is None else (
                _same_vector(stored, again, model, job.columns)
            )  # fmt: skip
            if not same:
                raise RowTruthError(
                    f"row {row} comes out otherwise when it is read and embedded again",
                    where=where,
                    remedy=_REMEDY,
                )


def _columns(job: Job) -> tuple[str, ...]:
    if job.columns is None:
        labels = {*job.survey.labels.values(), *job.source_labels}
        return tuple(key for key in job.token_keys if key not in labels)
    return (job.columns.name, job.columns.names[-1])


def _same_tokens(stored: pa.Table, again: TokenizedRows) -> bool:
    return all(
        stored.column(key).combine_chunks().equals(
            token_array(coded.ids_BN.numpy(), coded.valid_BN.numpy())
        )
        for key, coded in again.tokens.items()
    )  # fmt: skip


def _same_vector(
    stored: pa.Table, again: TokenizedRows, model: Model, columns: EmbeddingColumns
) -> bool:
    if stored.column(1).to_pylist() != again.contents.tolist():
        return False
    if again.failed[0]:
        return bool(stored.column(0).null_count == 1)
    vector = stored_as(embed_rows(again, model), columns.dtype)
    return tensor_values(stored.column(0), missing=np.nan).tobytes() == vector.tobytes()
