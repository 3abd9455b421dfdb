"""What a run costs that need not do everything: from stored tokens, and after a small change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from stage.figure import Case, Figure, cpu, ratio, rounds_in_turn

from skyvec.mock.survey import write_mock_survey
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.run import run

EVERY = 20
"""One row in so many is changed: 5%, in every pixel."""


def measure(scratch: Path, *, rounds: int, objects: int) -> list[Figure]:
    """CPU time of skyvec-tiny on the mock survey."""
    torch.set_num_threads(1)
    sky, out = write_mock_survey(scratch / "sky", rows=objects, seed=11), scratch / "out"
    later = _changed(sky, scratch / "later")
    tokens = out / "tok"
    run(sky, name="tok", out=out, product="tokens", workers=0)
    run(sky, name="before", out=out, workers=0)

    def after(turn: int) -> None:
        record = run(later, name=f"r{turn}", out=out, reuse=out / "before", workers=0)
        assert 0.9 < sum(quantum.reused_rows for quantum in record.quanta) / record.rows < 1

    cases: dict[str, Case] = {
        "direct": lambda i: run(sky, name=f"d{i}", out=out, workers=0),
        "tokenize": lambda i: run(sky, name=f"t{i}", out=out, product="tokens", workers=0),
        "tokens": lambda i: run(sky, name=f"e{i}", out=out, tokens=tokens, workers=0),
        "reuse": after,
    }
    spent = rounds_in_turn(cases, rounds)
    direct = spent["direct"]
    return [
        Figure(
            name=f"skyvec-tiny, {objects} objects: embedding from stored tokens over directly, CPU",
            measured=ratio(spent["tokens"], direct, "cpu"),
            note=f"tokenizing alone {ratio(spent['tokenize'], direct, 'cpu')}; directly "
            f"{cpu(direct):.1f} s",
        ),
        Figure(
            name=f"a new release with {1 / EVERY:.0%} of the rows changed, over a full run, CPU",
            measured=ratio(spent["reuse"], direct, "cpu"),
            note="every pixel is changed, so all rows are read and tokenized, and 5% encoded",
        ),
    ]


def _changed(sky: Path, later: Path) -> Path:
    """A copy of a collection in which some rows have another flux."""
    shutil.copytree(sky, later)
    release = HatsRelease.open(later)
    for leaf in map(release.leaf, release.pixels):
        with pq.ParquetFile(leaf) as file:
            table, group = file.read(), file.metadata.row_group(0).num_rows
        flux = table.column("FLUX_G").to_numpy().copy()
        flux[::EVERY] = flux[::EVERY] * 1.5 + 1
        place = table.schema.get_field_index("FLUX_G")
        table = table.set_column(
            place, table.schema.field(place), pa.array(flux.astype(np.float32))
        )
        pq.write_table(table, leaf, row_group_size=group, compression="zstd")
    return later
