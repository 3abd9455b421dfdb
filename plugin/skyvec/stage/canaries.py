"""Canaries: a few rows of each pixel, read and embedded a second time, alone, and compared.

Reading ahead, batching, joining, spooling and reusing all happen between a row and its vector; a row
that went another way and comes out with the same bits shows that none of them mixed rows up.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.stage.job import Job
from skyvec.stage.leaf_writer import ROW_GROUP_ROWS
from skyvec.stage.partition import TokenizedRows, embed_rows, stored_as
from skyvec.stage.row_stream import RowStream
from skyvec.stage.written_leaf import WrittenLeaf
from skyvec_core.embedder import Model
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import RowTruthError
from skyvec_schemas.token_columns import token_array

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
    written: WrittenLeaf,
    stream: RowStream,
    model: Model,
    job: Job,
    pixel: HealpixPixel,
    *,
    where: str,
) -> None:
    """Compare canaries with what was written.

    Raises
    ------
    RowTruthError
        With the row, if it comes out otherwise.
    """
    rows = canary_rows(pixel, written.rows)
    for row, again in zip(rows, stream.again(rows), strict=True):
        same = _same_tokens(written, row, again, _token_columns(job)) if job.columns is None else (
            _same_vector(written, row, again, model, job.columns)
        )  # fmt: skip
        if not same:
            raise RowTruthError(
                f"row {row} comes out otherwise when it is read and embedded again",
                where=where,
                remedy=_REMEDY,
            )


def _token_columns(job: Job) -> tuple[str, ...]:
    labels = {*job.survey.labels.values(), *job.source_labels}
    return tuple(key for key in job.token_keys if key not in labels)


def _same_tokens(
    written: WrittenLeaf, row: int, again: TokenizedRows, columns: tuple[str, ...]
) -> bool:
    stored = _stored(written, row, columns)
    return all(
        stored[key].equals(token_array(coded.ids_BN.numpy(), coded.valid_BN.numpy()))
        for key, coded in again.tokens.items()
    )


def _same_vector(
    written: WrittenLeaf, row: int, again: TokenizedRows, model: Model, columns: EmbeddingColumns
) -> bool:
    content = columns.names[-1]
    if _stored(written, row, (content,))[content].to_pylist() != again.contents.tolist():
        return False
    stored = written.vectors.row(row) if written.vectors else None
    if stored is None or again.failed[0]:
        return stored is None and bool(again.failed[0])
    return stored.tobytes() == stored_as(embed_rows(again, model), columns.dtype).tobytes()


def _stored(written: WrittenLeaf, row: int, columns: tuple[str, ...]) -> dict[str, pa.Array]:
    """Columns of one row; its row group holds `ROW_GROUP_ROWS` like all but the last."""
    group, place = divmod(row, ROW_GROUP_ROWS)
    held = written.columns(columns, group)
    return {name: column.slice(place, 1) for name, column in held.items()}
