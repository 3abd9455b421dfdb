"""Leaves on disk -> a HATS catalog: the metadata that hats writes around ``dataset/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import hats.io
import numpy as np
from hats.catalog import PartitionInfo, TableProperties
from hats.io import file_io, paths
from hats.io.skymap import write_skymap
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec_schemas.errors import RowTruthError

SKYMAP_ORDER = 8
"""HEALPix order of the count map that a catalog carries."""


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

    Parameters
    ----------
    catalog
        Folder whose ``dataset/`` holds the leaves and nothing else.
    rows
        Rows of each leaf; their sum must be what the files hold.
    skymap
        Rows by HEALPix pixel of order `SKYMAP_ORDER`.
    properties
        Extra keys for ``hats.properties``.

    Raises
    ------
    RowTruthError
        If the files do not hold the rows that were counted.
    """
    total = sum(rows.values())
    written = hats.io.write_parquet_metadata(str(catalog), create_per_partition_stats=False)
    if written != total:
        raise RowTruthError(
            f"the files hold {written} rows, {total} were written",
            where=str(catalog),
            remedy="Remove this folder and run again",
        )
    partitions = PartitionInfo.from_healpix(list(rows))
    partitions.write_to_file(str(paths.get_partition_info_pointer(str(catalog))))
    histogram = _histogram(skymap)
    # hats 0.11 still reads the coverage from the older of these two files.
    file_io.write_fits_image(histogram, paths.get_point_map_file_pointer(str(catalog)))
    write_skymap(histogram=histogram, catalog_dir=str(catalog), orders=None)
    TableProperties(
        catalog_name=name,
        catalog_type="object",
        total_rows=total,
        ra_column=ra_column,
        dec_column=dec_column,
        healpix_column=healpix_column,
        healpix_order=healpix_order,
        default_columns=default_columns,
        skymap_order=SKYMAP_ORDER,
        hats_order=partitions.get_highest_order(),
        hats_max_rows=max(rows.values(), default=0),
        moc_sky_fraction=partitions.calculate_fractional_coverage(),
        **properties,
        **TableProperties.new_provenance_dict(str(catalog), builder=builder),
    ).to_properties_file(str(catalog))


def _histogram(skymap: Mapping[int, int]) -> NDArray[np.int64]:
    histogram = np.zeros(12 * 4**SKYMAP_ORDER, np.int64)
    histogram[list(skymap)] = list(skymap.values())
    return histogram
