"""Predictions as a HATS extension, which LSDB joins to its catalog like any other."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import ExtensionProperties
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import spatial_index_to_healpix

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog, provenance_of
from skyvec.extensions.properties_file import replace_properties
from skyvec.extensions.registration import register
from skyvec.probes.storage import digest_of
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import is_remote, open_parquet
from skyvec.stage.output import Output
from skyvec.version import __version__
from skyvec_schemas.errors import ConfigurationError, OutputExistsError

if TYPE_CHECKING:
    from skyvec.probes.applying import Predicting

PRODUCT = "predictions"
"""Kind of the extension, which its properties name."""


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    pixel: HealpixPixel
    rows: int
    skymap: Counter[int]
    bytes: int


def publish_predictions(predicting: Predicting, name: str, *, workers: int) -> Path:
    """Write, finish and register the extension ``name``; returns its properties file.

    Raises
    ------
    OutputExistsError
        If there is something of that name.
    """
    catalog, probe = predicting.catalog, predicting.probe
    if not name.isidentifier():
        raise ConfigurationError(
            "is no name for an extension", where=repr(name), remedy="Use letters, digits and _"
        )
    home = HatsRelease.open(catalog.primary)
    folder = catalog.release.root.parent
    root, place = folder / name, folder / f"{name}.properties"
    if is_remote(folder):
        raise ConfigurationError(
            "is not on a local disk", where=str(folder),
            remedy="Save the table that apply gives instead",
        )  # fmt: skip
    if root.exists() or place.exists():
        raise OutputExistsError(
            "is there already", where=str(root),
            remedy="Choose another name, or remove it with `skyvec drop`",
        )  # fmt: skip
    output = Output(root)
    with ThreadPoolExecutor(workers) as threads:
        leaves = list(
            threads.map(lambda pixel: _write(predicting, output, pixel), catalog.release.pixels)
        )
    skymap: Counter[int] = Counter()
    for leaf in leaves:
        skymap.update(leaf.skymap)
    info = catalog.release.catalog.catalog_info
    columns = list(predicting.empty())
    told: dict[str, Any] = {
        "skyvec_probe": digest_of(probe), "skyvec_probe_target": ", ".join(probe.targets),
        "skyvec_probe_kind": probe.kind, "skyvec_vectors": catalog.name,
        "skyvec_vectors_fingerprint": catalog.provenance.fingerprint(),
        "skyvec_model": predicting.inputs.model["model"], "skyvec_version": __version__,
    }  # fmt: skip
    builder = f"skyvec v{__version__}"
    finish_catalog(
        root, name=name, rows={leaf.pixel: leaf.rows for leaf in leaves}, skymap=skymap,
        ra_column=info.ra_column, dec_column=info.dec_column,
        default_columns=[catalog.id_column, info.ra_column, info.dec_column, *columns],
        healpix_column=catalog.release.healpix_column, healpix_order=info.healpix_order or 29,
        builder=builder, properties={"prov_progenitor": catalog.name, **told},
    )  # fmt: skip
    inside = home.collection is not None and folder.resolve() == Path(home.path).resolve()
    replace_properties(
        ExtensionProperties(
            name=name, primary_catalog=home.path.name if inside else str(home.path.resolve()),
            primary_column=catalog.id_column, join_catalog=name, join_column=catalog.id_column,
            extension_columns=columns, extension_join_style="left",
            shares_primary_coordinates=True, extension_product_type=PRODUCT,
            **told, **provenance_of(builder, sum(leaf.bytes for leaf in leaves)),
        ),
        place,
        comment="HATS Extension",
    )  # fmt: skip
    if inside:
        register(home.path, name)
    return place


def _write(predicting: Predicting, output: Output, pixel: HealpixPixel) -> _Leaf:
    catalog = predicting.catalog
    info, index = catalog.release.catalog.catalog_info, catalog.release.healpix_column
    names = [index, catalog.id_column, info.ra_column, info.dec_column]
    with open_parquet(catalog.release.leaf(pixel)) as leaf:
        table = leaf.read(columns=names).replace_schema_metadata(None)
    columns = predicting.rows(pixel, np.ones(len(table), np.bool_), len(table))
    for name, values in columns.items():
        words = values.dtype == object
        array = pa.array(values, pa.string()) if words else pa.array(values, from_pandas=True)
        table = table.append_column(name, array)
    with output.staged(pixel) as staged:
        pq.write_table(table, staged, compression="zstd", row_group_size=1 << 17)
        size = staged.stat().st_size
        output.commit(staged, pixel)
    order = info.healpix_order or 29
    places = table.column(index).to_numpy() << 2 * (29 - order)
    cells, counts = np.unique(spatial_index_to_healpix(places, SKYMAP_ORDER), return_counts=True)
    return _Leaf(pixel=pixel, rows=len(table), bytes=size,
                 skymap=Counter(dict(zip(cells.tolist(), counts.tolist(), strict=True))))  # fmt: skip
