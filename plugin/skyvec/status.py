"""What the last run of an extension left behind, read from its manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from skyvec.run_record import MANIFEST
from skyvec_schemas.errors import ConfigurationError


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
    found = {place.parent.parent.name: place for place in Path(catalog).glob(f"*/{MANIFEST}")}
    if extension is None and len(found) == 1:
        extension = next(iter(found))
    if extension not in found:
        raise ConfigurationError(
            f"no run of {extension!r}" if extension else f"{len(found)} runs to choose from",
            where=str(catalog),
            remedy=f"Name one with --extension: {', '.join(sorted(found)) or 'there is none yet'}",
        )
    manifest = json.loads(found[extension].read_text())
    provenance = manifest["provenance"]
    lines = {
        "extension": manifest["name"],
        "state": "complete" if manifest["complete"] else "incomplete, not published",
        "rows": f"{manifest['rows']:,}: {manifest['partial_rows']:,} partial, "
        f"{manifest['failed_rows']:,} failed",
        "reasons": ", ".join(f"{k}: {v:,}" for k, v in manifest["flags"].items()) or "none",
        "model": f"{provenance['model']} ({provenance['model_digest'][:12]})",
        "fingerprint": provenance["fingerprint"][:12],
    }
    lines |= {f"problem {i + 1}": text for i, text in enumerate(manifest["problems"])}
    return RunStatus(lines=lines, exit_code=0 if manifest["complete"] else 20)
