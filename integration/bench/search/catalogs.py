"""A HATS collection with an embedding extension of any size; leaves that are there are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cdshealpix.nested as healpix
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import CollectionProperties, ExtensionProperties
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER, spatial_index_to_healpix
from numpy.typing import NDArray

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.stage.leaf_writer import LeafWriter
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.vectors import fixed_shape_tensor, tensor_array

NAME = "bench_v1"
"""Of the extension and its column of vectors."""
LEAF_ROWS = 25_000
DIM = 768
RANK = 48
"""Directions in which the vectors differ beyond noise, as those of trained models do."""
ORDER = 3
"""Of the partitions."""
_PROVENANCE = Provenance(
    product="embedding", model="made-up", model_digest="0" * 64, precision="float32", device="cpu",
    numerics_version=0, vector_type="float16", survey="none", inputs=("none",), layout=2,
    skyvec_version="bench",
)  # fmt: skip


def make(folder: Path, rows: int, *, dim: int = DIM) -> Path:
    """A collection of ``rows`` objects; its leaves are the first of those of a larger one.

    ``Z`` of the primary catalog is linear in the vectors, with noise.
    """
    collection = folder / f"sky-{rows}-{dim}"
    if (collection / f"{NAME}.properties").is_file():
        return collection
    spare = collection / "unfinished"
    spare.mkdir(parents=True, exist_ok=True)
    counts: dict[HealpixPixel, int] = {}
    skymap: Counter[int] = Counter()
    for number, start in enumerate(range(0, rows, LEAF_ROWS)):
        pixel = HealpixPixel(ORDER, 7 * number % (12 * 4**ORDER))
        counts[pixel] = min(LEAF_ROWS, rows - start)
        skymap.update(_leaf(collection, spare, pixel, number, counts[pixel], dim))
    spare.rmdir()
    for catalog in ("cat", NAME):
        finish_catalog(
            collection / catalog, name=catalog, rows=counts, skymap=skymap, ra_column="ra",
            dec_column="dec", builder="bench", properties={},
        )  # fmt: skip
    CollectionProperties(
        name="sky", hats_primary_table_url="cat", all_extensions={NAME: f"{NAME}.properties"}
    ).to_properties_file(collection)
    properties = ExtensionProperties(
        name=NAME, primary_catalog=collection.name, primary_column="object_id", join_catalog=NAME,
        join_column="object_id", extension_columns=[NAME], extension_join_style="left",
        shares_primary_coordinates=True, extension_product_type="embedding",
        **_PROVENANCE.properties(),
    )  # fmt: skip
    properties.to_properties_file(collection)
    return collection


def leaves(collection: Path) -> list[Path]:
    """Files of the extension."""
    return sorted((collection / NAME / "dataset").glob("Norder*/*/*.parquet"))


def _leaf(
    collection: Path, spare: Path, pixel: HealpixPixel, number: int, rows: int, dim: int
) -> Counter[int]:
    rng = np.random.default_rng(number)
    depth = SPATIAL_INDEX_ORDER - pixel.order
    index = np.sort(rng.integers(0, 4**depth, rows)) + pixel.pixel * 4**depth
    cells = spatial_index_to_healpix(index, SKYMAP_ORDER)
    theirs, ours = (
        Path(str(paths.pixel_catalog_file(str(collection / name), pixel))) for name in ("cat", NAME)
    )
    if not (theirs.exists() and ours.exists()):
        lon, lat = healpix.healpix_to_lonlat(index.astype(np.uint64), SPATIAL_INDEX_ORDER)
        place = {
            "_healpix_29": pa.array(index, pa.int64()),
            "object_id": pa.array(np.int64(10**15) + rng.permutation(rows) + number * LEAF_ROWS),
            "ra": pa.array(lon.deg),
            "dec": pa.array(lat.deg),
        }
        values = vectors(rng, rows, dim)
        truth = np.random.default_rng(10**6).normal(size=dim) / np.sqrt(dim)
        redshift = values.astype(np.float32) @ truth.astype(np.float32) + rng.normal(0, 0.1, rows)
        _write(pa.table({**place, "Z": pa.array(redshift)}), theirs, spare, plain=None)
        table = pa.table({**place, NAME: tensor_array(values)})
        _write(table, ours, spare, plain=f"{NAME}.list.element")
    return Counter(cells.tolist())


def vectors(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float16]:
    """Of a trained model's kind: few directions, noise, one norm."""
    directions = np.random.default_rng(10**6 + 1).normal(size=(RANK, dim)).astype(np.float32)
    values = rng.normal(size=(rows, RANK)).astype(np.float32) @ directions / np.float32(RANK**0.5)
    values += 0.3 * rng.standard_normal((rows, dim), dtype=np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values /= values.std(axis=1, keepdims=True)
    return values.astype(np.float16)


def _write(table: pa.Table, path: Path, spare: Path, *, plain: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = table.schema
    if plain:
        kind = fixed_shape_tensor(pa.float16(), table.schema.field(NAME).type.shape[0])
        schema = schema.set(schema.get_field_index(NAME), pa.field(NAME, kind))
        schema = schema.with_metadata({FOOTER_KEY: _PROVENANCE.to_json()})
    part = spare / f"{path.parent.parent.parent.parent.name}-{path.name}"
    with LeafWriter(part, schema, plain=plain, unique=frozenset()) as writer:
        writer.write(table.cast(schema))
    part.replace(path)


def rows_of(collection: Path) -> int:
    """Rows of the extension, by its footers."""
    return sum(pq.read_metadata(path).num_rows for path in leaves(collection))
