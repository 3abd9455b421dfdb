"""HATS catalogs to run over: any number of pixels of any size, with the Legacy Survey's columns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import spatial_index_to_healpix

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct

ORDER = 5
GROUP = 256
"""Rows of a row group where there are cutouts; the mock survey's."""


def write_catalog(folder: Path, *, pixels: int, rows: int, side: int = 0) -> Path:
    """A catalog of random rows.

    Parameters
    ----------
    pixels
        HEALPix pixels of order `ORDER`.
    rows
        Of each pixel.
    side
        Of a cutout; 0 leaves the image out.
    """
    skymap: Counter[int] = Counter()
    written = {HealpixPixel(ORDER, number): rows for number in range(pixels)}
    for pixel in written:
        leaf = Path(str(paths.pixel_catalog_file(str(folder), pixel)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        skymap.update(_write_leaf(leaf, pixel.pixel, rows, side))
    finish_catalog(
        folder, name=folder.name, rows=written, skymap=skymap, ra_column="ra", dec_column="dec",
        builder="bench", properties={},
    )  # fmt: skip
    return folder


def _write_leaf(leaf: Path, number: int, rows: int, side: int) -> Counter[int]:
    rng = np.random.default_rng(number)
    # Spatial index, right ascension and declination need not agree: nothing here looks at the sky.
    first = number << 2 * (29 - ORDER)
    index = np.sort(first + rng.integers(1 << 2 * (29 - ORDER), size=rows))
    step = GROUP if side else rows
    writer: pq.ParquetWriter | None = None
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        count = part.stop - part.start
        columns = {
            "_healpix_29": index[part],
            "object_id": pa.array(number * 10**6 + np.arange(part.start, part.stop)),
            "ra": rng.uniform(0, 360, count),
            "dec": rng.uniform(-90, 90, count),
            **{s.name: _numbers(s.name, rng, count) for s in LEGACY_SURVEY.scalars},
        }
        if side:
            columns["image"] = _cutouts(rng, count, side)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(leaf, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=step)
    if writer:
        writer.close()
    return Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist())


def _numbers(name: str, rng: np.random.Generator, rows: int) -> np.ndarray:
    values = rng.uniform(-0.5, 0.5, rows) if "_E" in name else rng.lognormal(1, 1, rows)
    return values.astype(np.float32)


def _cutouts(rng: np.random.Generator, rows: int, side: int) -> pa.StructArray:
    assert LEGACY_SURVEY.image
    bands = list(LEGACY_SURVEY.image.bands)
    shape = (rows, len(bands), side, side)
    each = np.ones((rows, len(bands)), np.float32)
    parts = {
        "band": nested(np.tile(np.array(bands, object), (rows, 1))),
        "flux": nested(rng.normal(0, 0.02, shape).astype(np.float32)),
        "mask": nested(np.ones(shape, bool)),
        "psf_fwhm": nested(each),
        "scale": nested(each),
    }
    fields = list(image_struct(with_ivar=False))
    return pa.StructArray.from_arrays(list(parts.values()), fields=fields)


def nested(values: np.ndarray) -> pa.Array:
    """Lists of lists, one level for every axis after the first."""
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        ends = np.arange(np.prod(values.shape[:axis]) + 1, dtype=np.int32) * values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(ends), array)
    return array
