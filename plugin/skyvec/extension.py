"""Finished pixels -> a HATS catalog and its ``<name>.properties``, which LSDB loads as an extension.

HATS 0.11 has no writer for computed extensions; this one writes the metadata with hats' own
functions and registers the extension in the collection last, so that nobody sees half of it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import hats.io
import numpy as np
from hats.catalog import (
    CollectionProperties,
    ExtensionProperties,
    PartitionInfo,
    TableProperties,
)
from hats.io import file_io, paths
from hats.io.skymap import write_skymap
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.quantum import SKYMAP_ORDER, STAGING, Job, QuantumRecord
from skyvec.releases.hats_catalog import HatsRelease
from skyvec_schemas.errors import RowTruthError


def publish(
    job: Job, release: HatsRelease, records: Sequence[QuantumRecord], *, name: str
) -> Path:
    """Write the metadata of a complete product and register it; returns its properties file.

    Raises
    ------
    RowTruthError
        If the files together do not hold the rows that the records count.
    """
    output = Path(job.output)
    shutil.rmtree(output / STAGING, ignore_errors=True)
    filled = [record for record in records if record.rows]
    rows = sum(record.rows for record in filled)
    written = hats.io.write_parquet_metadata(str(output), create_per_partition_stats=False)
    if written != rows:
        raise RowTruthError(
            f"the files hold {written} rows, the records count {rows}",
            where=str(output),
            remedy="Remove this folder and run again",
        )
    pixels = [HealpixPixel(record.order, record.pixel) for record in filled]
    partitions = PartitionInfo.from_healpix(pixels)
    partitions.write_to_file(str(output / "partition_info.csv"))
    _write_skymap(output, filled)
    _write_properties(job, release, records, name=name, partitions=partitions)
    return _register(job, release, name=name)


def _write_skymap(output: Path, records: Sequence[QuantumRecord]) -> None:
    total: Counter[int] = Counter()
    for record in records:
        total.update(record.skymap)
    histogram = np.zeros(12 * 4**SKYMAP_ORDER, np.int64)
    histogram[list(total)] = list(total.values())
    # hats 0.11 still reads the coverage from the older of the two files.
    file_io.write_fits_image(histogram, paths.get_point_map_file_pointer(str(output)))
    write_skymap(histogram=histogram, catalog_dir=str(output), orders=None)


def _write_properties(
    job: Job,
    release: HatsRelease,
    records: Sequence[QuantumRecord],
    *,
    name: str,
    partitions: PartitionInfo,
) -> None:
    source = release.catalog.catalog_info
    survey = job.survey
    products = list(job.columns.names) if job.columns else list(job.token_keys)
    TableProperties(
        catalog_name=name,
        catalog_type="object",
        total_rows=sum(record.rows for record in records),
        ra_column=survey.ra_column,
        dec_column=survey.dec_column,
        healpix_column=release.healpix_column,
        healpix_order=source.healpix_order or 29,
        default_columns=[survey.id_column, survey.ra_column, survey.dec_column, *products],
        skymap_order=SKYMAP_ORDER,
        hats_max_rows=max((record.rows for record in records), default=0),
        moc_sky_fraction=partitions.calculate_fractional_coverage(),
        prov_progenitor=source.catalog_name,
        hats_progenitor_url=_relative_or_absolute(release.root, Path(job.output)),
        addendum_description=f"skyvec {job.provenance.product} by {job.provenance.model}",
        **job.provenance.properties(),
        **TableProperties.new_provenance_dict(job.output, builder=_builder(job)),
    ).to_properties_file(job.output)


def _register(job: Job, release: HatsRelease, *, name: str) -> Path:
    output = Path(job.output)
    home = output.parent
    inside = release.collection is not None and home.resolve() == release.path.resolve()
    ExtensionProperties(
        name=name,
        primary_catalog=release.path.name if inside else str(release.path.resolve()),
        primary_column=job.survey.id_column,
        join_catalog=output.name,
        join_column=job.survey.id_column,
        extension_columns=list(job.columns.names) if job.columns else list(job.token_keys),
        extension_join_style="left",
        shares_primary_coordinates=True,
        extension_product_type=job.provenance.product,
        **job.provenance.properties(),
        **ExtensionProperties.new_provenance_dict(job.output, builder=_builder(job)),
    ).to_properties_file(str(home))
    if inside:
        properties = CollectionProperties.read_from_dir(str(release.path))
        listed = {**(properties.all_extensions or {}), name: f"{name}.properties"}
        properties.all_extensions = listed
        properties.to_properties_file(str(release.path))
    return home / f"{name}.properties"


def _builder(job: Job) -> str:
    return f"skyvec v{job.provenance.skyvec_version}"


def _relative_or_absolute(source: Path, output: Path) -> str:
    """Keep a collection movable: name a catalog beside the output by its folder alone."""
    beside = source.parent.resolve() == output.parent.resolve()
    return f"../{source.name}" if beside else str(source.resolve())
