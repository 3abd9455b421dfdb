"""The match beside the pixels that it is for: pairs of Legacy Survey and HSC cutouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index
from releases.figure import Figure, medians

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.ids import canonical_ids
from skyvec.releases.joining.catalog_keys import CatalogKeys, read_catalog_keys
from skyvec.releases.joining.join import JoinRule, margin_needed, match
from skyvec.releases.sky import pixels_around
from skyvec.releases.source import SourceObjects
from skyvec_schemas.survey_columns import GAIA, HSC, Survey

PAIRS = 1024
BANDS = {"legacysurvey": 4, "hsc": 5}
STAMP = (160, 160)
MANY = 100_000
LIMIT = "under 5%"
PIXEL = HealpixPixel(4, 583)
CENTRE = (253.125, 32.8)
"""Right ascension and declination of its middle, in degrees."""
BLOCK = 1 << 24


def measure(scratch: Path, *, rounds: int) -> list[Figure]:
    """Seconds of the match per 1,024 rows as a share of reading their pairs once, page cache warm."""
    files = [_stamps(scratch / f"{survey}.hdf5", bands) for survey, bands in BANDS.items()]
    release = _catalog(scratch / "catalog")
    cases: dict[str, Callable[[], object]] = {"read": partial(_read_all, files)}
    for rows in (PAIRS, MANY):
        keys, objects = _sky(rows)
        for by in ("position", "id"):
            rule = JoinRule(by=by)
            cases[f"match by {by}, {rows:,} rows"] = partial(match, keys, objects, rule, survey=HSC)
        rule = JoinRule(by="position", epoch=2000.0)
        cases[f"match by position and epoch, {rows:,} rows"] = partial(
            match, keys, objects, rule, survey=GAIA
        )
    margin = margin_needed(JoinRule(), HSC)
    cases[f"keys of a pixel and its border, {PAIRS:,} rows"] = partial(
        read_catalog_keys, release, PIXEL, Survey(name="catalog"), margin_arcsec=margin
    )
    seconds = medians(cases, rounds)
    read = seconds.pop("read")
    size = sum(file.stat().st_size for file in files)
    note = (
        f"raw sequential read of {PAIRS:,} pairs, {size / 1e6:.0f} MB contiguous HDF5, "
        f"page cache warm: {read:.3f} s, {size / read / 1e6:,.0f} MB/s"
    )
    figures = []
    for name, taken in seconds.items():
        per_batch = taken * PAIRS / (MANY if f"{MANY:,}" in name else PAIRS)
        figures.append(
            Figure(
                name=f"{name}, share of the read",
                measured=f"{100 * per_batch / read:.1f}% ({taken * 1e3:.1f} ms)",
                at_least=LIMIT if name.startswith("match") else "",
                note=note,
            )
        )
    return figures


def _stamps(path: Path, bands: int) -> Path:
    """Contiguous HDF5 of true size, filled in blocks, which also warms the page cache."""
    with h5py.File(path, "w") as file:
        shape = (PAIRS, bands, *STAMP)
        images = file.create_dataset("image_array", shape, np.float32)
        few = np.random.default_rng(0).normal(size=(64, bands, *STAMP)).astype(np.float32)
        for start in range(0, PAIRS, len(few)):
            images[start : start + len(few)] = few
    return path


def _read_all(files: list[Path]) -> None:
    block = bytearray(BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _sky(rows: int) -> tuple[CatalogKeys, SourceObjects]:
    """Rows and objects of one pixel, as dense as HSC's deep fields, moving like stars."""
    rng = np.random.default_rng(1)
    width = np.sqrt(rows / 30_000)  # degrees
    ra, dec = (c + rng.uniform(-width / 2, width / 2, rows) for c in CENTRE)
    ids = canonical_ids(70_000_000_000_000_000 + rng.permutation(rows))
    keys = CatalogKeys(pixel=PIXEL, rows=rows, ids=ids, ra=ra, dec=dec)
    order = rng.permutation(rows)
    away = rng.normal(0, 0.1 / 3600, (2, rows))
    pm_ra, pm_dec = rng.normal(0, 5, (2, rows))
    objects = SourceObjects(
        ids=ids[order],
        ra=ra[order] + away[0],
        dec=dec[order] + away[1],
        file=np.zeros(rows, np.int32),
        row=np.arange(rows),
        pm_ra=pm_ra,
        pm_dec=pm_dec,
    )
    return keys, objects


def _catalog(folder: Path) -> HatsRelease:
    """A HATS catalog of one pixel and its neighbours, 1,024 rows and 13 numbers each."""
    rng = np.random.default_rng(2)
    ra, dec = (c + rng.uniform(-7, 7, 60 * PAIRS) for c in CENTRE)
    index = np.sort(compute_spatial_index(ra, dec))
    order = np.argsort(compute_spatial_index(ra, dec))
    cells = index >> 2 * (29 - PIXEL.order)
    rows = {}
    for cell in pixels_around(PIXEL, order=PIXEL.order, margin_arcsec=1):
        part = np.flatnonzero(cells == cell)[:PAIRS]
        table = {"_healpix_29": index[part], "object_id": part}
        table |= {"ra": ra[order][part], "dec": dec[order][part]}
        table |= {f"FLUX_{i}": rng.normal(size=len(part)) for i in range(13)}
        pixel = HealpixPixel(PIXEL.order, cell)
        leaf = Path(str(paths.pixel_catalog_file(str(folder), pixel)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), leaf, row_group_size=128)
        rows[pixel] = len(part)
    finish_catalog(
        folder, name="catalog", rows=rows, ra_column="ra", dec_column="dec", builder="bench",
        skymap=Counter(compute_spatial_index(ra, dec, SKYMAP_ORDER).tolist()), properties={},
    )  # fmt: skip
    return HatsRelease.open(folder)
