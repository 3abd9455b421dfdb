"""What the stage costs without a model, beside plain pyarrow and beside LSDB; CPU time of all threads."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from stage import peers
from stage.bare import proved_pyarrow
from stage.catalogs import write_catalog
from stage.figure import Case, Figure, cpu, ratio, rounds_in_turn
from stage.null_model import null_model

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.run import run
from skyvec.surveys import leave_out
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.survey_columns import LEGACY_SURVEY

DIM = 768
SIZES = ((12, 5000), (96, 1000), (192, 500))
"""Pixels and rows of each."""
CLOSE = 6
"""Rounds of the stage beside its limit, for each round of the others: they differ by less than noise."""
BATCH_ROWS = peers.ROW_GROUP_ROWS
"""Rows of 11 numbers: the stage's default of 128 is for rows with cutouts."""


def measure(scratch: Path, *, rounds: int, objects: int) -> list[Figure]:
    """Scalars in, float16 vectors of the base size out."""
    del objects
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    return [
        figure
        for pixels, rows in SIZES
        for figure in _figures(scratch / f"{pixels}x{rows}", pixels, rows, rounds)
    ]


def _figures(scratch: Path, pixels: int, rows: int, rounds: int) -> list[Figure]:
    catalog = write_catalog(scratch / "sky", pixels=pixels, rows=rows)
    survey = leave_out(LEGACY_SURVEY, ["image"], where="bench")
    inputs = [scalar.name for scalar in survey.scalars]
    columns = EmbeddingColumns(name="v", dim=DIM)
    ready, release = peers.ready_columns(columns, rows), HatsRelease.open(catalog)
    fast = peers.fast_options(columns)

    made = scratch / "made"

    def stage(batch_rows: int) -> None:
        record = run(catalog, name="v", out=made, survey=survey, workers=0,
                     batch_rows=batch_rows)  # fmt: skip
        assert record.rows == pixels * rows
        assert not record.failed_rows

    def lsdb(options: dict[str, object] | None) -> None:
        peers.lsdb_map_partitions(catalog, made, ready, columns, inputs, options)

    near: dict[str, Case] = {
        "plain": lambda _: peers.plain_pyarrow(release, made, ready, columns, inputs),
        "bare": lambda _: proved_pyarrow(release, made, survey, columns, model),
        "stage": lambda _: stage(BATCH_ROWS),
    }
    far: dict[str, Case] = {
        "stage": lambda _: stage(BATCH_ROWS),
        "stage, 128": lambda _: stage(128),
        "lsdb": lambda _: lsdb(None),
        "lsdb, fast": lambda _: lsdb(fast),
    }
    with null_model(DIM) as model:
        rounds_in_turn(near, 1, made=made)  # warm
        close = rounds_in_turn(near, CLOSE * rounds, there_and_back=True, made=made)
        apart = rounds_in_turn(far, rounds, made=made)
    each = {name: cpu(taken) / pixels * 1e3 for name, taken in (apart | close).items()}
    what = f"null model, {pixels} pixels of {rows:,} rows"
    return [
        Figure(
            name=f"{what}: stage over plain pyarrow, CPU",
            measured=ratio(close["stage"], close["plain"], "cpu"),
            asked="at most 1.5",
            note=f"{each['stage']:.1f} and {each['plain']:.1f} ms a pixel; with batches of 128 rows "
            f"{each['stage, 128']:.1f}",
        ),
        Figure(
            name=f"{what}: the stage's steps and proofs in a bare loop over plain pyarrow, CPU",
            measured=ratio(close["bare"], close["plain"], "cpu"),
            note=f"{each['bare']:.1f} ms a pixel: below this nothing can be proved",
        ),
        Figure(
            name=f"{what}: stage over that bare loop, CPU",
            measured=ratio(close["stage"], close["bare"], "cpu"),
            asked="at most 1.1",
            note="driver, fingerprints, records, publication",
        ),
        Figure(
            name=f"{what}: LSDB map_partitions + write_catalog over stage, CPU",
            measured=ratio(apart["lsdb"], apart["stage"], "cpu"),
            asked="at least 3",
            note=f"{each['lsdb']:.1f} ms a pixel, its default writer; with the stage's writer "
            f"options {ratio(apart['lsdb, fast'], apart['stage'], 'cpu')}, {each['lsdb, fast']:.1f} ms",
        ),
    ]
