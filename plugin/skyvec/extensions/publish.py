"""Finished pixels -> a HATS catalog and its ``<name>.properties``, which LSDB loads as an extension.

HATS 0.11 has no writer for computed extensions; this one writes the metadata with hats' own
functions, then ``<name>.properties``, which is the commit, then the entry in the collection. Killed
at any point it leaves what was published before, or nothing, and the same call heals it: the commit
carries a seal over the records and the metadata that it was made for.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hats.catalog import ExtensionProperties, TableProperties
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.extensions.hats_output import METADATA_FILES, finish_catalog, provenance_of
from skyvec.extensions.properties_file import replace_properties, text_of
from skyvec.extensions.registration import is_registered, register
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import is_remote, resolved
from skyvec.stage.output import Output
from skyvec.stage.quantum_record import QuantumRecord

if TYPE_CHECKING:
    from skyvec.stage.job import Job

_SEAL = "skyvec_seal"
"""Last property of an extension: digest of everything that has to be there with it."""


def publish(job: Job, release: HatsRelease, records: Sequence[QuantumRecord], *, name: str) -> Path:
    """Write the metadata of a complete product and register it; returns its properties file.

    Raises
    ------
    RowTruthError
        If a file does not hold the rows that its record counts.
    InfrastructureError
        If the collection cannot be made to list it.
    """
    output = Output(job.output)
    skymap: Counter[int] = Counter()
    for record in records:
        skymap.update(record.skymap)
    survey, source = job.survey, release.catalog.catalog_info
    finish_catalog(
        output.root,
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
            "hats_progenitor_url": _relative_or_absolute(release.root, output.root),
            "addendum_description": f"skyvec {job.provenance.product} by {job.provenance.model}",
            **job.provenance.properties(),
        },
    )
    place = properties_file(output, name)
    facts = _facts(output, records)
    replace_properties(
        _extension(job, release, records, name=name),
        place,
        comment="HATS Extension",
        closing=lambda text: f"{_SEAL}={_seal(text, facts)}\n",
    )
    if _is_inside(output, release):
        register(release.path, name)
    return place


def is_published(
    job: Job, release: HatsRelease, records: Sequence[QuantumRecord], *, name: str
) -> bool:
    """Whether `publish` has nothing to do; a few small files are looked at, no leaf."""
    output = Output(job.output)
    if not is_committed(output, records, name=name):
        return False
    properties = ExtensionProperties.read_from_file(properties_file(output, name))
    return properties.primary_catalog == _primary(output, release) and (
        not _is_inside(output, release) or is_registered(release.path, name)
    )


def is_committed(output: Output, records: Sequence[QuantumRecord], *, name: str) -> bool:
    """Whether ``<name>.properties`` is whole, made for these records, and its metadata are there."""
    text = text_of(properties_file(output, name))
    if text is None:
        return False
    body, found, seal = text.rpartition(f"{_SEAL}=")
    return bool(found) and seal.strip() == _seal(body, _facts(output, records))


def published_rows(output: Output, name: str) -> int | None:
    """Rows that readers of ``<name>.properties`` find, of an earlier run perhaps; None if there is none."""
    if text_of(properties_file(output, name)) is None:
        return None
    try:
        found = TableProperties.read_from_file(output.root / "hats.properties")
        return int(found.total_rows or 0)
    except (OSError, ValueError, TypeError):
        return 0


def properties_file(output: Output, name: str) -> Path:
    """Where an extension is committed."""
    return output.root.parent / f"{name}.properties"


def _extension(
    job: Job, release: HatsRelease, records: Sequence[QuantumRecord], *, name: str
) -> ExtensionProperties:
    output = Output(job.output)
    return ExtensionProperties(
        name=name,
        primary_catalog=_primary(output, release),
        primary_column=job.survey.id_column,
        join_catalog=output.root.name,
        join_column=job.survey.id_column,
        extension_columns=list(job.products),
        extension_join_style="left",
        shares_primary_coordinates=True,
        extension_product_type=job.provenance.product,
        **job.provenance.properties(),
        **provenance_of(_builder(job), sum(record.bytes for record in records)),
    )


def _facts(output: Output, records: Sequence[QuantumRecord]) -> list[object]:
    """What a commit stands for: the leaves by their records, the metadata by their lengths."""
    leaves = sorted((r.order, r.pixel, r.rows, r.bytes, r.digest) for r in records)
    return [leaves, [output.size(output.root / file) for file in METADATA_FILES]]


def _seal(text: str, facts: list[object]) -> str:
    return hashlib.sha256(json.dumps([text, facts]).encode()).hexdigest()


def _is_inside(output: Output, release: HatsRelease) -> bool:
    """Whether the extension lies in the collection that was embedded."""
    return release.collection is not None and _same(output.root.parent, release.path)


def _primary(output: Output, release: HatsRelease) -> str:
    inside = _is_inside(output, release)
    return release.path.name if inside else str(resolved(release.path))


def _builder(job: Job) -> str:
    return f"skyvec v{job.provenance.skyvec_version}"


def _relative_or_absolute(source: Path, output: Path) -> str:
    """Keep a collection movable: name a catalog beside the output by its folder alone."""
    beside = _same(source.parent, output.parent)
    return f"../{source.name}" if beside else str(resolved(source))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder; how each was opened does not matter."""
    if is_remote(one) != is_remote(other):
        return False
    return str(resolved(one)).rstrip("/") == str(resolved(other)).rstrip("/")
