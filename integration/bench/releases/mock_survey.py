"""What the mock survey costs for each survey: drawn, observed and written as its own files."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
from releases.figure import Figure

from skyvec.mock.catalog import survey_table
from skyvec.mock.releases import Shard, take_census
from skyvec.mock.sky import Footprint, Sky, draw_sky

SEED = 11
OBJECTS = 48
"""Observed in each round, fewer where a survey holds fewer."""
SURVEYS = ("legacysurvey", "hsc", "sdss", "desi", "gaia")


def measure(scratch: Path, *, rounds: int) -> list[Figure]:
    """Time of one core per object, images of 160 pixels; processor time, so others do not count."""
    sky = draw_sky(1500, seed=SEED, footprint=Footprint(), stars=250, quasars=60)
    census = take_census(sky, seed=SEED, surveys=SURVEYS)
    held = {name: sky[np.flatnonzero(census.holds(name))[:OBJECTS]] for name in SURVEYS}
    both = np.flatnonzero(census.holds("legacysurvey") & census.holds("desi"))[:OBJECTS]
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in SURVEYS:
            seconds.setdefault(name, []).append(_written(scratch, name, held[name]))
        pair = sum(_written(scratch, name, sky[both]) for name in ("legacysurvey", "desi"))
        seconds.setdefault("pair", []).append(pair)
        seconds.setdefault("catalog", []).append(_tabled(sky[both]))
    cost = {name: median(taken) * 1000 for name, taken in seconds.items()}
    figures = [
        Figure(
            name="mock griz image (160 pixels) and DESI spectrum, objects/s per core",
            measured=f"{1000 / cost['pair']:.0f}",
            at_least="50",
            note=f"{cost['pair']:.1f} ms an object, latents to HDF5 files",
        ),
        Figure(
            name="mock griz image (96 pixels) and DESI spectrum, objects/s per core",
            measured=f"{1000 / (cost['catalog'] + cost['desi']):.0f}",
            at_least="50",
            note="the image as a row of the collection",
        ),
    ]
    return [
        *figures,
        *(
            Figure(name=f"mock {name}, ms an object", measured=f"{cost[name]:.1f}")
            for name in (*SURVEYS, "catalog")
        ),
    ]


def _written(scratch: Path, survey: str, sky: Sky) -> float:
    shard = Shard(
        survey=survey,
        path=scratch / f"{survey}.hdf5",
        pixel=0,
        sky=sky,
        seed=SEED,
        size=160,
        core=96,
    )
    start = process_time()
    shard.write()
    return (process_time() - start) / len(sky)


def _tabled(sky: Sky) -> float:
    start = process_time()
    survey_table(sky, seed=SEED, size=96)
    return (process_time() - start) / len(sky)
