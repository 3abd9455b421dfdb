"""What a chaos run embeds: two releases of a mock survey, in many small HATS pixels."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import CollectionProperties
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import spatial_index_to_healpix

import skyvec
from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.mock.survey import write_mock_survey
from skyvec.releases.hats.catalog import HatsRelease

NAME = "chaos_v1"
TOKENS = "chaos_tokens"
SKY_SEED = 5
EARLIER, LATER = "earlier", "later"


def build(folder: Path, *, rows: int, order: int) -> None:
    """Write both releases, cut at one HEALPix order.

    The folder appears when all of it is there. Its later release has a tenth more rows than the
    earlier one, 3% changed and 1% withdrawn; pixels without any of these are the same files.
    """
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for release, name in ((1, EARLIER), (2, LATER)):
        mock = write_mock_survey(
            draft / f"mock{release}", rows=rows, seed=SKY_SEED, release=release, workers=1
        )
        _cut(mock, draft / name, order=order)
        shutil.rmtree(mock)
    draft.rename(folder)


def prepare(folder: Path, way: str) -> None:
    """Make the extension that a way through the stage starts from, if it is not there."""
    if way == "reuse":
        skyvec.run(folder / EARLIER, name=NAME, workers=0)
    elif way == "tokens":
        skyvec.run(folder / LATER, name=TOKENS, product="tokens", workers=0)


def _cut(mock: Path, collection: Path, *, order: int) -> None:
    """The same rows in pixels of one order."""
    release = HatsRelease.open(mock)
    table = pa.concat_tables(
        pq.read_table(release.leaf(pixel), partitioning=None) for pixel in release.pixels
    ).sort_by(release.healpix_column)
    index = table.column(release.healpix_column).to_numpy()
    cell = spatial_index_to_healpix(index, order)
    catalog, counts = collection / "cat", {}
    for number in np.unique(cell):
        place = HealpixPixel(order, int(number))
        leaf = Path(str(paths.pixel_catalog_file(str(catalog), place)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        part = table.filter(pa.array(cell == number))
        pq.write_table(part, leaf, row_group_size=64)
        counts[place] = len(part)
    finish_catalog(
        catalog, name="cat", rows=counts,
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()),
        ra_column="ra", dec_column="dec", builder="chaos run", properties={},
    )  # fmt: skip
    properties = CollectionProperties(name=collection.name, hats_primary_table_url="cat")
    properties.to_properties_file(str(collection))


def command(collection: Path, way: str) -> list[str]:
    """Arguments of ``skyvec`` for one of the ways through the stage."""
    more = {
        "plain": [],
        "reuse": ["--reuse", str(collection.parent / EARLIER / f"{NAME}.properties")],
        "tokens": ["--tokens", TOKENS],
    }[way]
    return ["embed", str(collection), "--name", NAME, *more]
