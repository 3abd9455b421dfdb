"""The stage beside its model alone, on skyvec-tiny and the mock survey; and a run with nothing to do."""

from __future__ import annotations

from pathlib import Path

import torch
from stage.figure import Case, Figure, cpu, ratio, rounds_in_turn, wall

from skyvec.mock.survey import write_mock_survey
from skyvec.models import load_model
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.partition import embed_rows, tokenize_rows
from skyvec.stage.run import run
from skyvec.stage.selection import PixelRange, Selection
from skyvec_schemas.survey_columns import LEGACY_SURVEY

BATCH_ROWS = 128
LARGEST = 3
"""Pixels of the mock survey that are embedded."""
SMALL = 160
"""Objects of a mock survey that is cut into pixels of at most 40."""


def measure(scratch: Path, *, rounds: int, objects: int) -> list[Figure]:
    """Usual pixels, then small ones, of each of which one row is embedded twice."""
    torch.set_num_threads(1)
    usual = _figures(scratch / "usual", objects, rounds, asked="at most 1.05")
    return [*usual, *_figures(scratch / "small", SMALL, rounds, asked="")[:1]]


def _figures(scratch: Path, objects: int, rounds: int, *, asked: str) -> list[Figure]:
    sky = write_mock_survey(scratch / "sky", rows=objects, seed=11)
    release, model = HatsRelease.open(sky), load_model()
    sizes = {pixel: release.rows([pixel]) for pixel in release.pixels}
    pixels = sorted(sizes, key=sizes.__getitem__)[-LARGEST:]
    chosen = Selection(
        pixels=tuple(PixelRange(order=p.order, first=p.pixel, last=p.pixel) for p in pixels)
    )
    batches = [
        batch
        for pixel in pixels
        for batch in release.batches(pixel, LEGACY_SURVEY, rows=BATCH_ROWS)
    ]

    def alone(_: int) -> None:
        for batch in batches:
            embed_rows(tokenize_rows(batch, LEGACY_SURVEY, model), model)

    def stage(turn: int) -> None:
        run(sky, name=f"v{turn}", out=scratch / "out", selection=chosen, workers=0,
            batch_rows=BATCH_ROWS)  # fmt: skip

    cases: dict[str, Case] = {"alone": alone, "stage": stage, "again": stage}
    embed_rows(tokenize_rows(batches[0], LEGACY_SURVEY, model), model)  # warm
    spent = rounds_in_turn(cases, rounds)
    rows = sum(map(len, batches))
    what = f"skyvec-tiny, {LARGEST} pixels of {sizes[pixels[0]]} to {sizes[pixels[-1]]} objects"
    return [
        Figure(
            name=f"{what}: stage over model alone, wall",
            measured=ratio(spent["stage"], spent["alone"], "wall"),
            asked=asked,
            note=f"CPU {ratio(spent['stage'], spent['alone'], 'cpu')}; "
            f"{rows / cpu(spent['stage']):.1f} and {rows / cpu(spent['alone']):.1f} objects a CPU "
            "second",
        ),
        Figure(
            name="the same run again, over the first, wall",
            measured=ratio(spent["again"], spent["stage"], "wall"),
            asked="under 0.01",
            note=f"{wall(spent['again']):.2f} s, most of it loading and proving the model",
        ),
    ]
