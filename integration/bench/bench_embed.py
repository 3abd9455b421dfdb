"""How fast the stage is, beside the model alone and beside plain pyarrow, in one run.

`make bench` prints the table of docs/benchmarks.md: CPU seconds of this process, best of several
rounds, the contestants in turn, one torch thread, page cache warm.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from skyvec.mock.survey import write_mock_survey
from skyvec.models import load_model
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.partition import embed_rows, tokenize_rows
from skyvec.stage.run import run
from skyvec_schemas.survey_columns import LEGACY_SURVEY
from skyvec_schemas.vectors import tensor_array

BATCH_ROWS = 128


def model_alone(batches, model):
    """Tokenize and encode batches that are in memory."""
    for batch in batches:
        embed_rows(tokenize_rows(batch, LEGACY_SURVEY, model), model)


def tokens_alone(batches, model):
    """Tokenize batches that are in memory."""
    for batch in batches:
        tokenize_rows(batch, LEGACY_SURVEY, model)


def plain_pyarrow(release, folder, dim):
    """Read the same columns and write vectors of zeros: what the files alone cost."""
    folder.mkdir()
    for place, pixel in enumerate(release.pixels):
        writer = None
        for batch in release.batches(pixel, LEGACY_SURVEY, rows=BATCH_ROWS):
            table = pa.table(
                {
                    "object_id": batch.column("object_id"),
                    "ra": batch.column("ra"),
                    "dec": batch.column("dec"),
                    "vector": tensor_array(np.zeros((len(batch), dim), np.float16)),
                }
            )
            if writer is None:
                writer = pq.ParquetWriter(
                    folder / f"{place}.parquet", table.schema, use_dictionary=False,
                    compression="none",
                )  # fmt: skip
            writer.write_table(table)
        if writer is not None:
            writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        seconds = measure(Path(place), rows=options.rows, rounds=options.rounds)
    report(seconds, options.rows)


def measure(place, *, rows, rounds):
    """CPU seconds of every contestant, one entry per round."""
    collection = write_mock_survey(place / "sky", rows=rows, seed=11)
    release, model = HatsRelease.open(collection), load_model()
    batches = [b for p in release.pixels
               for b in release.batches(p, LEGACY_SURVEY, rows=BATCH_ROWS)]  # fmt: skip
    contestants = {
        "model alone, batches in memory": lambda _: model_alone(batches, model),
        "its tokenization": lambda _: tokens_alone(batches, model),
        "the stage, pixels to published extension": lambda i: run(
            collection, name=f"v{i}", out=place / "out", workers=0, batch_rows=BATCH_ROWS
        ),
        "plain pyarrow, same columns, no model": lambda i: plain_pyarrow(
            release, place / f"plain{i}", model.dim
        ),
        "the stage again, nothing to do": lambda i: run(
            collection, name=f"v{i}", out=place / "out", workers=0
        ),
    }
    seconds = {name: [] for name in contestants}
    model_alone(batches[:1], model)
    for turn in range(rounds):
        for name, contestant in contestants.items():
            started = time.process_time()
            contestant(turn)
            seconds[name].append(time.process_time() - started)
    return seconds


def report(seconds, rows):
    """Print the table."""
    alone = statistics.median(seconds["model alone, batches in memory"])
    table = Table("what", "CPU s (median, min-max)", "objects/s", "over the model alone")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        spread = f"{middle:.2f} ({min(taken):.2f}-{max(taken):.2f})"
        table.add_row(name, spread, f"{rows / middle:.0f}", f"{middle / alone:.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
