"""Properties files: they describe this extension and lead nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from hats.catalog import CollectionProperties, ExtensionProperties, TableProperties
from pydantic import ValidationError

from skyvec.extensions.checks.report import Check, Findings
from skyvec.extensions.checks.subject import Subject
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import first_line

_PUBLISH = "Delete this one file and run the same `skyvec embed` again, which writes it anew"
_T = TypeVar("_T")


def check_properties(subject: Subject, source: HatsRelease | None) -> Check:
    """Registered, columns that exist, rows that are counted right, paths that stay inside."""
    findings = Findings("properties")
    if not subject.published:
        findings.note("not published: no reader sees it yet")
        return findings.check("none written yet")
    _check_extension(subject, source, findings)
    _check_table(subject, findings)
    _check_collection(subject, findings)
    return findings.check(f"{subject.properties.name}, hats.properties, collection.properties")


def _check_extension(subject: Subject, source: HatsRelease | None, findings: Findings) -> None:
    place = subject.properties
    found = _read(ExtensionProperties, place, subject, findings)
    if found is None:
        return
    where = subject.shown(place)
    if found.name != subject.name:
        findings.problem(f"describes {found.name!r}", where=where, remedy=_PUBLISH)
    if found.join_catalog != subject.name:
        findings.problem(
            f"its data are said to lie in {found.join_catalog!r}, which is not the folder "
            f"{subject.name!r} beside it",
            where=where,
            remedy=_PUBLISH,
        )
    primary = found.primary_catalog
    if not _is_absolute(primary) and primary != subject.home.name:
        inside = (subject.home / "collection.properties").is_file()
        findings.problem(
            f"its primary catalog is said to be {primary!r}, which is "
            + (f"not this collection, {subject.home.name!r}" if inside else "no absolute path"),
            where=where,
            remedy="If the folder was renamed or copied, run the same `skyvec embed` on it again, "
            "which writes this file anew",
        )
    offered = set(subject.schema.names) if subject.schema else set()
    named = {found.join_column, *(found.extension_columns or ())}
    if absent := sorted(named - offered):
        findings.problem(f"has no column {', '.join(absent)}", where=where, remedy=_PUBLISH)
    if subject.keys and found.join_column != subject.keys[1]:
        findings.problem(
            f"joins by {found.join_column!r}, where its ids are in {subject.keys[1]!r}",
            where=where,
            remedy=_PUBLISH,
        )
    if source and found.primary_column not in source.schema.names:
        findings.problem(
            f"joins to column {found.primary_column!r}, which {source.root} has not",
            where=where,
            remedy=_PUBLISH,
        )


def _check_table(subject: Subject, findings: Findings) -> None:
    place = subject.folder / "hats.properties"
    found = _read(TableProperties, place, subject, findings)
    if found is None:
        return
    where = subject.shown(place)
    rows = subject.counted_rows
    if found.total_rows != rows:
        findings.problem(
            f"hats_nrows is {found.total_rows}, the files hold {rows} rows",
            where=where,
            remedy=_PUBLISH,
        )
    if found.catalog_name != subject.name:
        findings.problem(f"describes {found.catalog_name!r}", where=where, remedy=_PUBLISH)
    if (found.npix_suffix or ".parquet") != ".parquet":
        findings.problem(
            f"its leaves are said to end in {found.npix_suffix!r}", where=where, remedy=_PUBLISH
        )
    offered = set(subject.schema.names) if subject.schema else set()
    named = {
        found.ra_column,
        found.dec_column,
        found.healpix_column,
        *(found.default_columns or ()),
    }
    if absent := sorted(str(name) for name in named if name and name not in offered):
        findings.problem(f"has no column {', '.join(absent)}", where=where, remedy=_PUBLISH)
    older = subject.folder / "properties"
    other = _read(TableProperties, older, subject, findings) if older.is_file() else None
    if other is not None and other != found:
        findings.problem(
            "differs from hats.properties", where=subject.shown(older), remedy=_PUBLISH
        )


def _check_collection(subject: Subject, findings: Findings) -> None:
    place = subject.home / "collection.properties"
    if not place.is_file():
        findings.note(f"in no collection: it is loaded by the path of {subject.properties.name}")
        return
    found = _read(CollectionProperties, place, subject, findings)
    if found is None:
        return
    where = subject.shown(place)
    listed: Mapping[str, str] = found.all_extensions or {}
    told = listed.get(subject.name)
    if told is None:
        findings.problem(
            f"does not list {subject.name!r} in all_extensions",
            where=where,
            remedy="Run the same `skyvec embed` again, which registers it",
        )
    elif told != subject.properties.name:
        findings.problem(
            f"lists {subject.name!r} as {told!r}, not {subject.properties.name!r}",
            where=where,
            remedy=_PUBLISH,
        )
    for name in [found.hats_primary_table_url, *(found.all_margins or ())]:
        if not _stays_inside(name):
            findings.problem(
                f"leads out of the collection: {name!r}", where=where, remedy="Mend it by hand"
            )


def _read(kind: type[_T], place: Path, subject: Subject, findings: Findings) -> _T | None:
    try:
        found: _T = kind.read_from_file(place)  # type: ignore[attr-defined]
    except (OSError, ValueError, TypeError, ValidationError) as problem:
        findings.problem(
            f"cannot be read ({first_line(problem)})", where=subject.shown(place), remedy=_PUBLISH
        )
        return None
    return found


def _is_absolute(path: str) -> bool:
    return "://" in path or PurePosixPath(path).is_absolute()


def _stays_inside(path: str) -> bool:
    return not _is_absolute(path) and ".." not in PurePosixPath(path).parts
