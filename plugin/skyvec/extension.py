"""Finished pixels -> a HATS catalog and its ``<name>.properties``, which LSDB loads as an extension.

HATS 0.11 has no writer for computed extensions; this one writes the metadata with hats' own
functions and registers the extension in the collection last, so that nobody sees half of it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hats.catalog import CollectionProperties, ExtensionProperties
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.hats_output import finish_catalog
from skyvec.quantum import STAGING, Job, QuantumRecord
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import resolved


def publish(job: Job, release: HatsRelease, records: Sequence[QuantumRecord], *, name: str) -> Path:
    """Write the metadata of a complete product and register it; returns its properties file.

    Raises
    ------
    RowTruthError
        If the files together do not hold the rows that the records count.
    """
    output = Path(job.output)
    shutil.rmtree(output / STAGING, ignore_errors=True)
    skymap: Counter[int] = Counter()
    for record in records:
        skymap.update(record.skymap)
    survey, source = job.survey, release.catalog.catalog_info
    finish_catalog(
        output,
        name=name,
        rows={HealpixPixel(r.order, r.pixel): r.rows for r in records if r.rows},
        skymap=skymap,
        ra_column=survey.ra_column,
        dec_column=survey.dec_column,
        default_columns=[survey.id_column, survey.ra_column, survey.dec_column, *job.products],
        healpix_column=release.healpix_column,
        healpix_order=source.healpix_order or 29,
        builder=_builder(job),
        properties={
            "prov_progenitor": source.catalog_name,
            "hats_progenitor_url": _relative_or_absolute(release.root, output),
            "addendum_description": f"skyvec {job.provenance.product} by {job.provenance.model}",
            **job.provenance.properties(),
        },
    )
    return _register(job, release, name=name)


def _register(job: Job, release: HatsRelease, *, name: str) -> Path:
    output = Path(job.output)
    home = output.parent
    inside = release.collection is not None and home.resolve() == resolved(release.path)
    ExtensionProperties(
        name=name,
        primary_catalog=release.path.name if inside else str(resolved(release.path)),
        primary_column=job.survey.id_column,
        join_catalog=output.name,
        join_column=job.survey.id_column,
        extension_columns=list(job.products),
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
    beside = resolved(source.parent) == output.parent.resolve()
    return f"../{source.name}" if beside else str(resolved(source))
