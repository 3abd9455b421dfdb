"""What the last run of an extension left behind, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyvec.extensions.publish import is_committed, published_rows
from skyvec.stage.found_runs import found_runs, meant
from skyvec.stage.output import MANIFEST, RUN_FILE, Output
from skyvec.stage.run_record import join_outcomes
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import Provenance

_UNCOMMITTED = "complete, not published as it is now; run the same command again"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Facts of a run, as label and text."""

    lines: dict[str, str]
    exit_code: int
    """0 if the extension is complete, else that of the run."""


def read_status(catalog: str | Path, extension: str | None = None) -> RunStatus:
    """Status of one extension of a collection, published or not; of vectors, if none is named.

    Raises
    ------
    ConfigurationError
        If there is none, or several and none was named.
    """
    found = found_runs(catalog)
    extension = extension or meant(found)
    if extension not in found:
        raise ConfigurationError(
            f"no run of {extension!r}" if extension else f"{len(found)} runs to choose from",
            where=str(catalog),
            remedy=f"Name one with --extension: {', '.join(sorted(found))}"
            if found
            else "Run `skyvec embed` first",
        )
    output = found[extension]
    manifest = output.root / MANIFEST
    if manifest.is_file():
        return _finished(output, json.loads(manifest.read_text()))
    return _unfinished(output, Provenance.from_json((output.root / RUN_FILE).read_text()))


def _unfinished(output: Output, provenance: Provenance) -> RunStatus:
    """A run that was killed before it could write its manifest."""
    records = output.records().values()
    done = [record for record in records if record.finished]
    lines = {
        "extension": output.root.name,
        "state": f"unfinished, {_readable(output)}: {len(done)} HEALPix pixels with "
        f"{sum(record.rows for record in done):,} rows are done; run the same command again",
        "model": f"{provenance.model} ({provenance.model_digest[:12]})",
        "fingerprint": provenance.fingerprint()[:12],
    }
    return RunStatus(lines=lines, exit_code=20)


def _readable(output: Output) -> str:
    """What readers have of an extension that is not complete."""
    rows = published_rows(output, output.root.name)
    return "not published" if rows is None else f"published with {rows:,} rows before"


def _finished(output: Output, manifest: dict[str, Any]) -> RunStatus:
    name, exit_code = manifest["name"], manifest["exit_code"]
    state = f"incomplete, {_readable(output)}"
    if manifest["complete"]:
        done = [record for record in output.records().values() if record.finished]
        committed = is_committed(output, done, name=name)
        state, exit_code = ("complete", 0) if committed else (_UNCOMMITTED, 20)
    provenance = manifest["provenance"]
    rows, partial, failed = (manifest[k] for k in ("rows", "partial_rows", "failed_rows"))
    every = manifest.get("input_rows", 0)
    wanted = f" of {every:,}" if not manifest["complete"] and every > rows else ""
    reasons = (f"{k.replace('_', ' ')}: {v:,}" for k, v in manifest["flags"].items())
    lines = {
        "extension": name,
        "state": state,
        "rows": f"{rows:,}{wanted}: {rows - partial - failed:,} ok, {partial:,} partial, {failed:,} failed",
        "reasons": ", ".join(reasons) or "none",
        **(
            {"last run": f"{manifest['pixels']} HEALPix pixels: {chosen}"}
            if (chosen := manifest.get("selection"))
            else {}
        ),
        **(
            {"quarantined": f"{bad:,} objects, see {manifest['name']}_quarantine"}
            if (bad := manifest.get("quarantined"))
            else {}
        ),
        **{f"source {n}": join_outcomes(c) for n, c in manifest.get("sources", {}).items()},
        "model": f"{provenance['model']} ({provenance['model_digest'][:12]})",
        "fingerprint": provenance["fingerprint"][:12],
    }
    lines |= {f"problem {i + 1}": text for i, text in enumerate(manifest["problems"])}
    return RunStatus(lines=lines, exit_code=exit_code)
