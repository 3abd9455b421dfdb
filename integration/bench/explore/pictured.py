"""A made-up catalog in which chosen objects have cutouts, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.io.parquet_metadata import write_parquet_metadata
from search import catalogs

from skyvec.releases.hats.catalog import HatsRelease
from skyvec_schemas.survey_columns import image_struct


def make(work: Path, rows: int, *, dim: int = catalogs.DIM) -> Path:
    """Made-up vectors that say of themselves that they saw a column of cutouts."""
    plain = catalogs._PROVENANCE  # noqa: SLF001
    catalogs._PROVENANCE = replace(  # noqa: SLF001
        plain, survey="legacysurvey", inputs=("image=tok_image",)
    )
    try:
        return catalogs.make(work, rows, dim=dim)
    finally:
        catalogs._PROVENANCE = plain  # noqa: SLF001


def give_pictures(collection: Path, ids: Sequence[str], *, side: int = 96) -> None:
    """A column of cutouts, null but for these objects; row groups as a catalog of cutouts has."""
    release = HatsRelease.open(collection)
    wanted = pa.array([int(name) for name in ids])
    rng = np.random.default_rng(0)
    for pixel in release.pixels:
        path = release.leaf(pixel)
        table = pq.read_table(path, partitioning=None)
        theirs = pc.is_in(table.column("object_id"), wanted).to_numpy()
        cells: list[object] = [None] * len(table)
        for row in np.flatnonzero(theirs).tolist():
            cells[row] = _cutout(rng, side)
        column = pa.array(cells, image_struct(with_ivar=False))
        if "image" in table.column_names:
            table = table.drop_columns(["image"])
        pq.write_table(table.append_column("image", column), path, row_group_size=1024)
    write_parquet_metadata(collection / "cat")


def _cutout(rng: np.random.Generator, side: int) -> dict[str, object]:
    y, x = np.mgrid[:side, :side] - side / 2
    galaxy = np.exp(-np.hypot(x, y * rng.uniform(1, 3)) / rng.uniform(2, 9))
    flux = galaxy * rng.uniform(0.5, 2, (4, 1, 1)) + rng.normal(0, 0.02, (4, side, side))
    return {
        "band": ["des-g", "des-r", "des-i", "des-z"], "flux": flux.astype(np.float32).tolist(),
        "mask": np.ones(flux.shape, bool).tolist(), "psf_fwhm": [1.2] * 4, "scale": [0.262] * 4,
    }  # fmt: skip
