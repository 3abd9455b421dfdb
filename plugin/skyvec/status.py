"""What the last run of an extension left behind, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from skyvec.quantum import RECORDS, QuantumRecord
from skyvec.run_record import MANIFEST, RUN_FILE, join_outcomes
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Facts of a run, as label and text."""

    lines: dict[str, str]
    exit_code: int
    """0 if the extension is complete, 20 if a run should be repeated."""


def read_status(catalog: str | Path, extension: str | None = None) -> RunStatus:
    """Status of one extension of a collection, published or not.

    Raises
    ------
    ConfigurationError
        If there is none, or several and none was named.
    """
    if not Path(catalog).is_dir():
        raise ConfigurationError(
            "there is no such folder", where=str(catalog), remedy="Name a HATS collection"
        )
    found = {
        place.parent.parent.name: place.parent for place in Path(catalog).glob(f"*/{RUN_FILE}")
    }
    if extension is None and len(found) == 1:
        extension = next(iter(found))
    if extension not in found:
        raise ConfigurationError(
            f"no run of {extension!r}" if extension else f"{len(found)} runs to choose from",
            where=str(catalog),
            remedy=f"Name one with --extension: {', '.join(sorted(found))}"
            if found
            else "Run `skyvec embed` first",
        )
    manifest = found[extension] / MANIFEST.name
    return _finished(manifest) if manifest.is_file() else _unfinished(extension, found[extension])


def _unfinished(extension: str, folder: Path) -> RunStatus:
    """A run that was interrupted before it could write its manifest."""
    provenance = Provenance.from_json((folder / RUN_FILE.name).read_text())
    records = [QuantumRecord.load(p) for p in sorted((folder / RECORDS.name).glob("*.json"))]
    done = [record for record in records if record.outcome in {"done", "empty"}]
    lines = {
        "extension": extension,
        "state": f"unfinished, not published: {len(done)} HEALPix pixels with "
        f"{sum(record.rows for record in done):,} rows are done; run the same command again",
        "model": f"{provenance.model} ({provenance.model_digest[:12]})",
        "fingerprint": provenance.fingerprint()[:12],
    }
    return RunStatus(lines=lines, exit_code=20)


def _finished(place: Path) -> RunStatus:
    manifest = json.loads(place.read_text())
    provenance = manifest["provenance"]
    rows, partial, failed = (manifest[k] for k in ("rows", "partial_rows", "failed_rows"))
    reasons = (f"{k.replace('_', ' ')}: {v:,}" for k, v in manifest["flags"].items())
    lines = {
        "extension": manifest["name"],
        "state": "complete" if manifest["complete"] else "incomplete, not published",
        "rows": f"{rows:,}: {rows - partial - failed:,} ok, {partial:,} partial, {failed:,} failed",
        "reasons": ", ".join(reasons) or "none",
        **{f"source {n}": join_outcomes(c) for n, c in manifest.get("sources", {}).items()},
        "model": f"{provenance['model']} ({provenance['model_digest'][:12]})",
        "fingerprint": provenance["fingerprint"][:12],
    }
    lines |= {f"problem {i + 1}": text for i, text in enumerate(manifest["problems"])}
    return RunStatus(lines=lines, exit_code=0 if manifest["complete"] else 20)
