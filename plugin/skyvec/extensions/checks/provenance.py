"""Provenance: properties, manifest and every footer name one and the same run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import ExtensionProperties, TableProperties

from skyvec.extensions.checks.report import Check, Findings
from skyvec.extensions.checks.subject import REDO, Subject
from skyvec.releases.hats.remote import first_line
from skyvec.stage.output import MANIFEST, RUN_FILE
from skyvec_schemas.provenance import FOOTER_KEY, Provenance

_TOLD = ("skyvec_fingerprint", "skyvec_model_digest", "skyvec_precision")
_MANIFEST_REMEDY = "Run the same `skyvec embed` again, which writes it anew"
_FOREIGN = (
    "It was written by another run, with another model or other settings: delete the extension "
    "and embed again"
)


def check_provenance(subject: Subject) -> Check:
    """One fingerprint in run, manifest, properties and footers; counts that agree."""
    findings = Findings("provenance")
    run = subject.provenance.fingerprint()
    _check_text(subject.folder / RUN_FILE, subject, findings)
    _check_manifest(subject, findings)
    if subject.published:
        for place in (subject.properties, subject.folder / "hats.properties"):
            _check_properties(place, subject, findings)
        _check_common(subject, run, findings)
    for leaf in subject.leaves:
        if leaf.error or leaf.fingerprint == run:
            continue
        told = f"fingerprint {leaf.fingerprint[:12]}" if leaf.fingerprint else "no fingerprint"
        findings.problem(
            f"{told} in its footer, the run has {run[:12]}",
            where=subject.shown(leaf.path),
            remedy=_FOREIGN,
        )
    return findings.check(f"fingerprint {run[:12]} in {len(subject.leaves):,} footers")


def _check_text(place: Path, subject: Subject, findings: Findings) -> None:
    """The fingerprint that a record states is that of its own facts."""
    told = json.loads(place.read_text()).get("fingerprint")
    if told != subject.provenance.fingerprint():
        findings.problem(
            "its fingerprint is not that of its own facts",
            where=subject.shown(place),
            remedy=_FOREIGN,
        )


def _check_manifest(subject: Subject, findings: Findings) -> None:
    place = subject.folder / MANIFEST
    where = subject.shown(place)
    if not place.is_file():
        findings.note("no manifest: the last run goes on, or was killed")
        return
    try:
        manifest = json.loads(place.read_text())
        told: dict[str, Any] = dict(manifest["provenance"])
        provenance = Provenance.from_json(json.dumps(told))
    except (OSError, ValueError, TypeError, KeyError) as problem:
        findings.problem(
            f"cannot be read ({first_line(problem)})", where=where, remedy=_MANIFEST_REMEDY
        )
        return
    run = subject.provenance
    if differences := run.differences(provenance):
        findings.problem(
            f"differs in {', '.join(differences)}", where=where, remedy=_MANIFEST_REMEDY
        )
    elif told.get("fingerprint") != run.fingerprint():
        findings.problem(
            f"fingerprint {str(told.get('fingerprint'))[:12]}, the run has {run.fingerprint()[:12]}",
            where=where,
            remedy=_MANIFEST_REMEDY,
        )
    for name, counted in _totals(subject).items():
        if name in manifest and manifest[name] != counted:
            findings.problem(
                f"{name} is {manifest[name]}, the records of its pixels have {counted}",
                where=where,
                remedy=_MANIFEST_REMEDY,
            )
    if manifest.get("exit_code") in {0, 10} and manifest.get("complete") is not True:
        findings.problem(
            f"complete is {manifest.get('complete')}, the exit code {manifest.get('exit_code')}",
            where=where,
            remedy=_MANIFEST_REMEDY,
        )
    if manifest.get("name") != subject.name:
        findings.problem(
            f"describes {manifest.get('name')!r}", where=where, remedy=_MANIFEST_REMEDY
        )


def _totals(subject: Subject) -> dict[str, object]:
    records = list(subject.records.values())
    flags: Counter[str] = Counter()
    for record in records:
        flags.update(record.flags)
    return {
        "rows": sum(record.rows for record in records),
        "failed_rows": sum(record.failed_rows for record in records),
        "partial_rows": sum(record.partial_rows for record in records),
        "flags": dict(flags),
    }


def _check_properties(place: Path, subject: Subject, findings: Findings) -> None:
    kind = ExtensionProperties if place == subject.properties else TableProperties
    try:
        told: Mapping[str, Any] = kind.read_from_file(place).model_extra or {}
    except (OSError, ValueError, TypeError):
        return  # said by the check of the properties themselves
    expected = subject.provenance.properties()
    # Tokens are the same under another transformer, so that the last run may name another one.
    told_names = _TOLD[:1] if subject.provenance.product == "tokens" else _TOLD
    for name in told_names:
        if name in expected and told.get(name) != expected[name]:
            findings.problem(
                f"{name} is {str(told.get(name))[:12]}, the run has {expected[name][:12]}",
                where=subject.shown(place),
                remedy=_MANIFEST_REMEDY,
            )


def _check_common(subject: Subject, run: str, findings: Findings) -> None:
    place = subject.folder / "dataset" / "_common_metadata"
    try:
        text = (pq.read_schema(place).metadata or {}).get(FOOTER_KEY.encode())
        told = Provenance.from_json(text).fingerprint() if text else None
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as problem:
        findings.problem(
            f"cannot be read ({first_line(problem)})", where=subject.shown(place), remedy=REDO
        )
        return
    if told is not None and told != run:
        findings.problem(
            f"fingerprint {told[:12]} in its footer, the run has {run[:12]}",
            where=subject.shown(place),
            remedy=REDO,
        )
