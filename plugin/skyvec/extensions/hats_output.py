"""Finished leaves -> a HATS catalog: the metadata that hats writes around ``dataset/``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import PartitionInfo, TableProperties
from hats.io import file_io, paths
from hats.io.skymap import write_skymap
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_pixel_function import sort_pixels
from numpy.typing import NDArray

from skyvec.releases.hats.remote import open_bytes
from skyvec.stage.output import Output
from skyvec_schemas.errors import ContractError, RowTruthError

SKYMAP_ORDER = 8
"""HEALPix order of the count map that a catalog carries."""
METADATA_FILES = (
    "dataset/_metadata",
    "dataset/_common_metadata",
    "point_map.fits",
    "skymap.fits",
    "partition_info.csv",
    "hats.properties",
    "properties",
)
"""What lies round the leaves, in the order of writing: what a reader opens first comes last."""
_FOOTERS_AT_A_TIME = 16
"""Of an object store, where each is a request."""


def finish_catalog(
    catalog: Path,
    *,
    name: str,
    rows: Mapping[HealpixPixel, int],
    skymap: Mapping[int, int],
    ra_column: str,
    dec_column: str,
    default_columns: list[str] | None = None,
    healpix_column: str = "_healpix_29",
    healpix_order: int = 29,
    builder: str,
    properties: Mapping[str, object],
) -> None:
    """Write metadata, partition list, sky map and properties of finished leaves.

    Each file appears whole, over an older one if there is one. Leaves that are not counted, such as
    that of a pixel which was killed before its record, are no part of the catalog.

    Parameters
    ----------
    catalog
        Folder, local or on an object store, whose ``dataset/`` holds the leaves.
    rows
        Rows of each leaf.
    skymap
        Rows by HEALPix pixel of order `SKYMAP_ORDER`.
    properties
        Extra keys for ``hats.properties``.

    Raises
    ------
    RowTruthError
        If a leaf is not there or does not hold the rows that were counted, or there is none.
    """
    output = Output(catalog)
    pixels = list(sort_pixels(list(rows)))
    footers, size = _footers(output, pixels, rows)
    partitions = PartitionInfo.from_healpix(pixels)
    histogram = _histogram(skymap)
    with output.workshop() as made:
        schema = footers[0].schema.to_arrow_schema()
        (made / "dataset").mkdir()
        file_io.write_parquet_metadata(
            schema, paths.get_parquet_metadata_pointer(made), metadata_collector=footers
        )
        file_io.write_parquet_metadata(schema, paths.get_common_metadata_pointer(made))
        partitions.write_to_file(str(paths.get_partition_info_pointer(made)))
        # hats 0.11 still reads the coverage from the older of these two files.
        file_io.write_fits_image(histogram, paths.get_point_map_file_pointer(made))
        write_skymap(histogram=histogram, catalog_dir=made, orders=None)
        TableProperties(
            catalog_name=name,
            catalog_type="object",
            total_rows=sum(rows.values()),
            ra_column=ra_column,
            dec_column=dec_column,
            healpix_column=healpix_column,
            healpix_order=healpix_order,
            default_columns=default_columns,
            skymap_order=SKYMAP_ORDER,
            hats_order=partitions.get_highest_order(),
            hats_max_rows=max(rows.values()),
            moc_sky_fraction=partitions.calculate_fractional_coverage(),
            **properties,
            **provenance_of(builder, size),
        ).to_properties_file(made)
        for file in METADATA_FILES:
            output.put(made / file, output.root / file)


def provenance_of(builder: str, size: int) -> dict[str, object]:
    """What hats says of who wrote a catalog and when, for data of so many bytes."""
    # hats would walk through all files for the size, on an object store by a request for each.
    return {**TableProperties.new_provenance_dict(builder=builder), "hats_estsize": size // 1024}


def _footers(
    output: Output, pixels: Sequence[HealpixPixel], rows: Mapping[HealpixPixel, int]
) -> tuple[list[pq.FileMetaData], int]:
    """Footers of all leaves in order, and the bytes of the files."""
    if not pixels:
        raise RowTruthError(
            "holds no row", where=str(output.root), remedy="Choose pixels that hold some"
        )
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) if output.remote else nullcontext() as threads:
        # On a disk a footer takes less than to hand it to a thread.
        each = threads.map if threads else map
        found = list(each(lambda pixel: _footer(output, pixel, rows[pixel]), pixels))
    first = found[0][0].schema
    for pixel, (footer, _) in zip(pixels, found, strict=True):
        if not footer.schema.equals(first):
            raise RowTruthError(
                f"has other columns than {output.leaf(pixels[0]).name}",
                where=str(output.leaf(pixel)),
                remedy=_AGAIN,
            )
    return [footer for footer, _ in found], sum(size for _, size in found)


_AGAIN = "Run the same command again without a choice of pixels, which makes this one anew"


def _footer(output: Output, pixel: HealpixPixel, rows: int) -> tuple[pq.FileMetaData, int]:
    leaf = output.leaf(pixel)
    try:
        with open_bytes(leaf) as handle:
            size = handle.seek(0, os.SEEK_END)
            footer = pq.read_metadata(handle)
    except (OSError, ContractError, pa.ArrowInvalid) as problem:
        raise RowTruthError(
            f"cannot be read ({problem})", where=str(leaf), remedy=_AGAIN
        ) from problem
    if footer.num_rows != rows:
        raise RowTruthError(
            f"holds {footer.num_rows} rows, {rows} were written", where=str(leaf), remedy=_AGAIN
        )
    footer.set_file_path(str(leaf.relative_to(output.root / "dataset")))
    return footer, int(size)


def _histogram(skymap: Mapping[int, int]) -> NDArray[np.int64]:
    histogram = np.zeros(12 * 4**SKYMAP_ORDER, np.int64)
    histogram[list(skymap)] = list(skymap.values())
    return histogram
