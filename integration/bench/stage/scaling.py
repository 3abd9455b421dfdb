"""One worker and two, with skyvec-tiny, beside the model alone in one process and in two.

What two processes of the model alone gain is the machine's limit: two threads of one core share its
arithmetic units. Wall time, so the machine must be quiet.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import torch
from stage.catalogs import write_catalog
from stage.figure import Case, Figure, ratio, rounds_in_turn, wall

from skyvec.models import load_model
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.cluster import dask_client
from skyvec.stage.partition import embed_rows, tokenize_rows
from skyvec.stage.run import run
from skyvec_core.embedder import Model
from skyvec_schemas.survey_columns import LEGACY_SURVEY

PIXELS = 16
"""Of equal size, so that no worker waits long for the other's last one."""
SIDE = 96


def measure(scratch: Path, *, rounds: int, objects: int) -> list[Figure]:
    """Clusters and pools are up and have the model before the clock starts."""
    rows = max(8, objects // PIXELS)
    sky = write_catalog(scratch / "sky", pixels=PIXELS, rows=rows, side=SIDE)
    warm = write_catalog(scratch / "warm", pixels=8, rows=8, side=SIDE)
    spawn = get_context("spawn")
    with (
        dask_client(None, 1) as one,
        dask_client(None, 2) as two,
        ProcessPoolExecutor(1, mp_context=spawn) as alone,
        ProcessPoolExecutor(2, mp_context=spawn) as beside,
    ):
        for count, client in ((1, one), (2, two)):
            run(warm, name=f"warm{count}", out=scratch / "out", client=client)
        for pool in (alone, beside):
            _encode_everywhere(pool, sky)
        cases: dict[str, Case] = {
            "one": lambda i: run(sky, name=f"one{i}", out=scratch / "out", client=one),
            "two": lambda i: run(sky, name=f"two{i}", out=scratch / "out", client=two),
            "alone": lambda _: _encode_everywhere(alone, sky),
            "beside": lambda _: _encode_everywhere(beside, sky),
        }
        spent = rounds_in_turn(cases, rounds)
    return [
        Figure(
            name=f"skyvec-tiny, {PIXELS} pixels of {rows} objects: one worker over two, wall",
            measured=ratio(spent["one"], spent["two"], "wall"),
            asked="at least 1.8",
            note=f"{wall(spent['one']):.1f} and {wall(spent['two']):.1f} s, planning and publishing "
            "included",
        ),
        Figure(
            name="the model alone on the same objects: one process over two, wall",
            measured=ratio(spent["alone"], spent["beside"], "wall"),
            note=f"{wall(spent['alone']):.1f} and {wall(spent['beside']):.1f} s: what this machine "
            "has to give",
        ),
    ]


def _encode_everywhere(pool: ProcessPoolExecutor, sky: Path) -> None:
    """Encode each pixel once, by whichever process is free."""
    wait([pool.submit(_encode, sky, place) for place in range(PIXELS)])


def _encode(sky: Path, place: int) -> None:
    model, batches = _loaded(sky)
    embed_rows(tokenize_rows(batches[place], LEGACY_SURVEY, model), model)


@lru_cache(maxsize=1)
def _loaded(sky: Path) -> tuple[Model, list[pa.RecordBatch]]:
    """Model and pixels in memory, once in each process."""
    torch.set_num_threads(1)
    release = HatsRelease.open(sky)
    batches = [
        batch
        for pixel in release.pixels
        for batch in release.batches(pixel, LEGACY_SURVEY, rows=128)
    ]
    return load_model(), batches
