"""Nested cutouts of the Multimodal Universe's HATS port, beside what pyarrow's decoding takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from releases.figure import Figure, medians

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.releases.hats.remote import BUFFER_BYTES
from skyvec.releases.hats.source import HatsSource
from skyvec_schemas.survey_columns import HSC, LEGACY_SURVEY, Survey, image_struct

ROWS, SIDE = 512, 160
BATCH = 128
GROUPS = {"one group per file, as the port is": ROWS, "groups of 128, as its makers advise": 128}
PIXEL = HealpixPixel(4, 583)
CENTRE = (253.125, 32.8)
"""Right ascension and declination of its middle, in degrees."""
BLOCK = 1 << 24
AT_LEAST = "90% of pyarrow's decode"


def measure(scratch: Path, *, rounds: int) -> list[Figure]:
    """Rows per second into batches of observations, by row group size and share of rows wanted."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    figures = []
    for survey in (LEGACY_SURVEY, HSC):
        for name, group in GROUPS.items():
            catalog = _write(scratch / f"{survey.name}-{group}", survey, group=group)
            figures += _figures(catalog, survey, name, rounds)
    return figures


def _figures(catalog: Path, survey: Survey, name: str, rounds: int) -> list[Figure]:
    source = HatsSource.open(catalog, survey)
    leaf = source.release.leaf(PIXEL)
    columns = source.columns.paths((*source.columns.inputs, *source.columns.labels))
    objects = source.objects(PIXEL, margin_arcsec=0)
    every, tenth = np.arange(ROWS), np.arange(0, ROWS, 10)

    def ours(wanted: np.ndarray) -> None:
        got = sum(len(reading.index) for reading in source.read(objects, wanted, rows=BATCH))
        assert got == len(wanted)

    cases: dict[str, Callable[[], object]] = {
        "raw": partial(_read_all, leaf),
        "pyarrow": partial(_decode, leaf, columns),
        "pyarrow, buffered": partial(_decode, leaf, columns, buffer_size=BUFFER_BYTES),
        "ours": partial(ours, every),
        "tenth": partial(ours, tenth),
    }
    for case in cases.values():  # warm
        case()
    seconds = medians(cases, rounds)
    rate = {case: ROWS / spent for case, spent in seconds.items()}
    limit = max(rate["pyarrow"], rate["pyarrow, buffered"])
    share = rate["ours"] / limit
    size = leaf.stat().st_size
    what = f"HATS {survey.name} {len(survey.image.bands)} x {SIDE} x {SIDE}, {name}"
    return [
        Figure(
            name=what,
            measured=f"{rate['ours']:,.0f} rows/s, {share:.0%}",
            at_least=AT_LEAST,
            note=f"warm, batches of {BATCH}; pyarrow decodes {rate['pyarrow']:,.0f} rows/s of the "
            f"same columns, {rate['pyarrow, buffered']:,.0f} with our buffers; raw read of the "
            f"whole file {size / seconds['raw'] / 1e6:,.0f} MB/s",
        ),
        Figure(
            name=f"{what}, every 10th row",
            measured=f"{seconds['tenth'] * limit / ROWS:.2f} of the time of decoding all",
            note=f"{len(tenth) / seconds['tenth']:,.0f} wanted rows/s, warm; nested lists cannot be "
            "skipped within a row group",
        ),
    ]


def _decode(leaf: Path, columns: list[str], **options: int) -> None:
    """What pyarrow takes for the same columns; each batch is let go at once."""
    with pq.ParquetFile(leaf, **options) as file:
        for _ in file.iter_batches(BATCH, columns=columns):
            pass


def _read_all(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def _write(folder: Path, survey: Survey, *, group: int) -> Path:
    """A catalog of one leaf in the port's schema and the codec that hats writes by default."""
    rng = np.random.default_rng(0)
    ra = CENTRE[0] + rng.uniform(-0.5, 0.5, ROWS)
    dec = CENTRE[1] + rng.uniform(-0.5, 0.5, ROWS)
    index = np.sort(compute_spatial_index(ra, dec))
    leaf = Path(str(paths.pixel_catalog_file(str(folder), PIXEL)))
    leaf.parent.mkdir(parents=True)
    numbers = [*(scalar.name for scalar in survey.scalars), *survey.labels]
    schema = pa.schema(
        [("_healpix_29", pa.int64()), ("object_id", pa.string()), ("ra", pa.float64()),
         ("dec", pa.float64()), ("image", image_struct()), *((n, pa.float32()) for n in numbers)]
    )  # fmt: skip
    with pq.ParquetWriter(leaf, schema, compression="zstd", use_dictionary=["object_id"]) as out:
        for start in range(0, ROWS, group):
            part = slice(start, start + group)
            columns = {
                "_healpix_29": index[part],
                "object_id": [f"b'{i}'" for i in range(start, start + group)],
                "ra": ra[part],
                "dec": dec[part],
                "image": _images(group, survey, rng),
                **{n: rng.random(group).astype(np.float32) for n in numbers},
            }
            out.write_table(pa.table(columns, schema=schema), row_group_size=group)
    finish_catalog(
        folder, name=survey.name, rows={PIXEL: ROWS},
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()),
        ra_column="ra", dec_column="dec", builder="bench", properties={},
    )  # fmt: skip
    return folder


def _images(rows: int, survey: Survey, rng: np.random.Generator) -> pa.StructArray:
    bands = list(survey.image.bands)
    shape = (rows, len(bands), SIDE, SIDE)
    flux = rng.normal(0, 0.02, shape).astype(np.float32)
    good = rng.random(shape) > 0.01
    per_band = np.full((rows, len(bands)), 1.2, np.float32)
    parts = {
        "band": _nested(np.tile(np.array(bands, object), (rows, 1))),
        "flux": _nested(flux),
        "ivar": _nested(np.abs(flux)),
        "mask": _nested(good),
        "psf_fwhm": _nested(per_band),
        "scale": _nested(per_band),
    }
    return pa.StructArray.from_arrays(list(parts.values()), fields=list(image_struct()))


def _nested(values: np.ndarray) -> pa.Array:
    """Lists of lists, one level for every axis after the first."""
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        ends = np.arange(np.prod(values.shape[:axis]) + 1, dtype=np.int32) * values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(ends), array)
    return array
