"""The stage's own steps in a bare loop: what is left without driver, records and publishing.

A plain pyarrow loop writes vectors that lie ready. Here they come from the same model as in the stage,
and each file is proved as the stage proves it, brought to the disk and named in one step. Nothing can be
left out without giving a promise up.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
from stage.peers import KEYS, fast_writer

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.canaries import canary_rows
from skyvec.stage.leaf_writer import ROW_GROUP_ROWS, file_digest
from skyvec.stage.partition import columns_of, embed_rows, stored_as, tokenize_rows
from skyvec.stage.row_truth import RowTruth
from skyvec.stage.written_leaf import WrittenLeaf
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.survey_columns import Survey


def proved_pyarrow(
    release: HatsRelease, out: Path, survey: Survey, columns: EmbeddingColumns, model: object
) -> None:
    """Read, tokenize, embed and write each pixel; prove ids, order, vectors, canaries and bytes."""
    out.mkdir(parents=True)
    fields = [release.schema.field(key) for key in KEYS]
    schema = pa.schema([*fields, *columns.fields()])
    for place, pixel in enumerate(release.pixels):
        release.identity(pixel)  # of the fingerprint
        truth = RowTruth.of(release, pixel, survey.id_column)
        path, found = out / f"{place}.aside", None
        with fast_writer(path, schema, columns) as writer:
            for batch in release.batches(pixel, survey, rows=ROW_GROUP_ROWS):
                found = found or columns_of(batch, survey)
                rows = tokenize_rows(batch, survey, model, columns=found)
                arrays = columns.arrays(
                    stored_as(embed_rows(rows, model), columns.dtype),
                    flags=rows.flags,
                    modality_bits=rows.modality_bits,
                    token_counts=rows.token_counts,
                    contents=rows.contents,
                    failed=rows.failed,
                )
                table = pa.Table.from_arrays([*batch.select(KEYS).columns, *arrays], schema=schema)
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        with WrittenLeaf(path, columns.name) as written:
            truth.verify(written, columns)
            chosen = canary_rows(pixel, written.rows)
            for row, batch in zip(chosen, release.single_rows(pixel, survey, chosen), strict=True):
                again = tokenize_rows(batch, survey, model, columns=found)
                group, at = divmod(row, ROW_GROUP_ROWS)
                (content,) = written.columns(columns.names[-1:], group).values()
                assert content[at].as_py() == again.contents[0]
                vector = stored_as(embed_rows(again, model), columns.dtype)
                stored = written.vectors.row(row) if written.vectors else None
                assert stored is not None
                assert stored.tobytes() == vector.tobytes()
        file_digest(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(out / f"{place}.parquet")
