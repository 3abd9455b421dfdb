"""A run as it lies on disk: who wrote it, what it was told, and a record of every pixel so far."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from skyvec.extensions.vector_catalog import extension_names
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import located
from skyvec.stage.found_runs import found_runs, meant
from skyvec.stage.output import JOB_FILE, MANIFEST, RUN_FILE, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.record_table import Key
from skyvec_schemas.errors import ConfigurationError, ContractError, SkyvecError
from skyvec_schemas.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """One extension with its records, published or not."""

    catalog: str
    """As named by the user."""
    output: Output
    provenance: Provenance
    job: dict[str, Any]
    """Where the inputs lay; empty where that is not known."""
    manifest: dict[str, Any] | None
    """What the last run said when it ended; None while it goes on, or if it was killed."""
    records: dict[Key, QuantumRecord]

    @property
    def name(self) -> str:
        """Of the extension."""
        return self.output.root.name

    @cached_property
    def source(self) -> Path | None:
        """The catalog that was embedded, where it is still found."""
        named = self.job.get("source", "")
        beside = self.output.root.parent / Path(named).name
        places = [located(named), beside] if named else []
        return next((place for place in places if _is_folder(place)), None)

    @cached_property
    def input_pixels(self) -> tuple[Key, ...] | None:
        """Pixels of that catalog; None if it cannot be read from here."""
        if self.source is None:
            return None
        with suppress(SkyvecError, OSError, ValueError):
            return tuple((p.order, p.pixel) for p in HatsRelease.open(self.source).pixels)
        return None

    @cached_property
    def began(self) -> float | None:
        """When the last run began, seconds since 1970: it claims the folder first."""
        with suppress(OSError, AttributeError):
            return float((self.output.root / RUN_FILE).stat().st_mtime)
        return None


def open_run(catalog: str | Path, extension: str | None = None) -> KeptRun:
    """The run of one extension of a collection (or of a folder given as ``--out``).

    Raises
    ------
    ConfigurationError
        If there is none, several and none was named, or the extension carries no records.
    ContractError
        If its records cannot be read.
    """
    found = found_runs(catalog)
    extension = extension or meant(found)
    if extension is None or extension not in found:
        raise _no_run(str(catalog), extension, sorted(found))
    output = found[extension]
    try:
        return KeptRun(
            catalog=str(catalog),
            output=output,
            provenance=Provenance.from_json((output.root / RUN_FILE).read_text()),
            job=_json(output.root / JOB_FILE) or {},
            manifest=_json(output.root / MANIFEST),
            records=output.records(),
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as problem:
        raise ContractError(
            f"the records of this run cannot be read ({type(problem).__name__}: {problem})",
            where=str(output.root / RUN_FILE.parent),
            remedy="Run the same `skyvec embed` again: it checks every pixel and writes them anew",
        ) from problem


def _no_run(catalog: str, extension: str | None, known: list[str]) -> ConfigurationError:
    others = []
    with suppress(OSError):
        others = extension_names(Path(catalog))
    bare = extension or next(iter(set(others) - set(known)), None)
    if not known and bare in others:
        what = f"extension {bare!r} has no records of a run (its folder holds no {RUN_FILE})"
        remedy = "Only extensions written by `skyvec embed` or `tokenize` have a report"
    else:
        what = f"no run of {extension!r}" if extension else f"{len(known)} runs to choose from"
        remedy = (
            f"Name one with --extension: {', '.join(known)}"
            if known
            else "Run `skyvec embed` first"
        )
    return ConfigurationError(what, where=catalog, remedy=remedy)


def _json(place: Path) -> dict[str, Any] | None:
    if not place.is_file():
        return None
    found = json.loads(place.read_text())
    if not isinstance(found, dict):
        raise TypeError(f"{place.name} holds no object")
    return found


def _is_folder(place: Path) -> bool:
    with suppress(OSError):
        return bool(place.is_dir())
    return False
