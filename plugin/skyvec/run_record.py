"""What a run did, for people, for the page and for the next run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from skyvec.quantum import STEPS, QuantumRecord
from skyvec_schemas.provenance import Provenance

RUN_FILE = Path("skyvec", "run.json")
"""Provenance of a run, written before its first pixel."""
MANIFEST = Path("skyvec", "manifest.json")
QUANTA = Path("skyvec", "quanta.parquet")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Outcome of `skyvec.run`."""

    name: str
    """Name of the extension."""
    source: Path
    """Collection or catalog that was embedded."""
    output: Path
    """Folder of the extension's catalog."""
    properties: Path | None
    """The extension's ``<name>.properties``; None unless it was published."""
    provenance: Provenance
    quanta: tuple[QuantumRecord, ...]
    """One record for each pixel of the input."""
    skipped: int
    """Pixels that an earlier run with the same fingerprint had finished."""
    seconds: float
    """Wall time of this run."""
    problems: tuple[str, ...] = field(default=())
    """One line for each pixel that is not done."""

    @property
    def rows(self) -> int:
        """Rows written, by this run or an earlier one."""
        return sum(quantum.rows for quantum in self.quanta)

    @property
    def failed_rows(self) -> int:
        """Rows whose vector is null, each with its reason."""
        return sum(quantum.failed_rows for quantum in self.quanta)

    @property
    def partial_rows(self) -> int:
        """Rows embedded from less than was declared."""
        return sum(quantum.partial_rows for quantum in self.quanta)

    @property
    def flags(self) -> dict[str, int]:
        """Rows by reason."""
        total: Counter[str] = Counter()
        for quantum in self.quanta:
            total.update(quantum.flags)
        return dict(total)

    @property
    def sources(self) -> dict[str, dict[str, int]]:
        """Source -> outcomes of the join, summed over pixels."""
        total: dict[str, Counter[str]] = {}
        for quantum in self.quanta:
            for name, found in quantum.sources.items():
                total.setdefault(name, Counter()).update(found["counts"])
        return {name: dict(counts) for name, counts in total.items()}

    @property
    def exit_code(self) -> int:
        """0 complete, 30 data broke the contract, 20 run again to continue."""
        outcomes = {quantum.outcome for quantum in self.quanta}
        if "data" in outcomes:
            return 30
        return 20 if "lost" in outcomes else 0

    def save(self) -> None:
        """Write the manifest and one Parquet row per quantum beside the data."""
        manifest = {
            "name": self.name,
            "rows": self.rows,
            "failed_rows": self.failed_rows,
            "partial_rows": self.partial_rows,
            "flags": self.flags,
            "sources": self.sources,
            "complete": self.exit_code == 0,
            "problems": list(self.problems),
            "provenance": json.loads(self.provenance.to_json()),
        }
        place = self.output / MANIFEST
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_suffix(".aside")
        aside.write_text(json.dumps(manifest, indent=2, sort_keys=True))
        aside.replace(place)
        pq.write_table(_quanta_table(self.quanta), self.output / QUANTA)


def join_outcomes(counts: Mapping[str, int]) -> str:
    """How the rows fared with one source, in one line for people."""
    found, rows = counts.get("matched", counts.get("positions", 0)), counts["rows"]
    shown = ("ambiguous", "not_reciprocal", "border", "duplicates", "far", "too_fast",
             "invalid_positions", "quarantined")  # fmt: skip
    others = [f"{counts[what]:,} {what.replace('_', ' ')}" for what in shown if counts.get(what)]
    return ", ".join([f"{found:,} of {rows:,} rows", *others])


def _quanta_table(quanta: Sequence[QuantumRecord]) -> pa.Table:
    return pa.table(
        {
            "Norder": pa.array([q.order for q in quanta], pa.int32()),
            "Npix": pa.array([q.pixel for q in quanta], pa.int64()),
            "outcome": [q.outcome for q in quanta],
            "rows": pa.array([q.rows for q in quanta], pa.int64()),
            "failed_rows": pa.array([q.failed_rows for q in quanta], pa.int64()),
            "partial_rows": pa.array([q.partial_rows for q in quanta], pa.int64()),
            **{f"seconds_{s}": pa.array([q.seconds.get(s, 0.0) for q in quanta]) for s in STEPS},
            "host": [q.host for q in quanta],
            "device": [q.device for q in quanta],
            "fingerprint": [q.fingerprint for q in quanta],
            "error": [q.error for q in quanta],
        }
    )
