"""What a run did, for people, for the page and for the next run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from skyvec.stage.output import MANIFEST, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_schemas.provenance import Provenance

INTERRUPTED = "interrupted"


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
    """One record for each chosen pixel of the input that was tried."""
    others: tuple[QuantumRecord, ...] = ()
    """Records of pixels that an earlier run with another choice made; the extension has them too."""
    pixels: int
    """Chosen pixels."""
    input_rows: int = 0
    """Rows of the chosen pixels."""
    selection: str = ""
    """How they were chosen; empty for all."""
    skipped: int
    """Pixels that an earlier run with the same fingerprint had finished."""
    max_bad: float = 1.0
    """Largest share of bad rows with which it may be published."""
    strict: bool = False
    """Whether a quarantined object is worth an exit code."""
    stopped: str = ""
    """Why the run ended before every pixel was tried."""
    seconds: float
    """Wall time of this run."""

    @property
    def complete(self) -> bool:
        """Whether every chosen pixel is done."""
        return len(self.quanta) == self.pixels and all(each.finished for each in self.quanta)

    @property
    def bad_share(self) -> float:
        """Bad rows over all rows."""
        return self.bad_rows / self.rows if self.rows else 0.0

    @property
    def publishable(self) -> bool:
        """Whether it is complete and not too much of it bad."""
        return self.complete and self.bad_share <= self.max_bad

    def published(self, properties: Path) -> RunRecord:
        """The record with the place where it was published."""
        return replace(self, properties=properties)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each pixel that is not done, and for what concerns them all."""
        lines = [f"Norder={q.order} Npix={q.pixel}: {q.error}"
                 for q in self.quanta if not q.finished]  # fmt: skip
        if untried := self.pixels - len(self.quanta):
            lines.append(f"{untried} pixels were not tried ({self.stopped or 'unknown'})")
        if self.complete and not self.publishable:
            lines.append(
                f"{self.bad_share:.1%} of the rows are bad, {self.max_bad:.1%} may be (--max-bad)"
            )
        return tuple(lines)

    @property
    def rows(self) -> int:
        """Rows written, by this run or an earlier one."""
        return sum(quantum.rows for quantum in self.quanta)

    @property
    def failed_rows(self) -> int:
        """Rows whose vector is null, each with its reason."""
        return sum(quantum.failed_rows for quantum in self.quanta)

    @property
    def bad_rows(self) -> int:
        """Rows without a vector because their data are bad, not because there are none."""
        return sum(quantum.bad_rows for quantum in self.quanta)

    @property
    def quarantined(self) -> int:
        """Objects that the quarantine catalog lists."""
        return sum(quantum.quarantined for quantum in self.quanta)

    @property
    def reused_rows(self) -> int:
        """Rows whose vector comes from an earlier extension."""
        return sum(quantum.reused_rows for quantum in self.quanta)

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
        """Of the process: 0, 10, 20, 30 or 130, as docs/operating.md has them."""
        outcomes = {quantum.outcome for quantum in self.quanta}
        if self.stopped == INTERRUPTED:
            return 130
        if "data" in outcomes or (self.complete and not self.publishable):
            return 30
        if not self.complete:
            return 20
        return 10 if self.strict and self.quarantined else 0

    def save(self, output: Output) -> None:
        """Write the manifest beside the data: counts of the whole extension, the end of this run."""
        whole = replace(self, quanta=(*self.quanta, *self.others), others=())
        manifest = {
            "name": self.name,
            "rows": whole.rows,
            "failed_rows": whole.failed_rows,
            "partial_rows": whole.partial_rows,
            "bad_rows": whole.bad_rows,
            "quarantined": whole.quarantined,
            "reused_rows": whole.reused_rows,
            "flags": whole.flags,
            "sources": whole.sources,
            "pixels": self.pixels,
            "input_rows": self.input_rows,
            "selection": self.selection,
            "complete": self.publishable,
            "published": self.properties is not None,
            "exit_code": self.exit_code,
            "problems": list(self.problems),
            "provenance": json.loads(self.provenance.to_json()),
        }
        output.put_text(json.dumps(manifest, indent=2, sort_keys=True), output.root / MANIFEST)


def join_outcomes(counts: Mapping[str, int]) -> str:
    """How the rows fared with one source, in one line for people."""
    found, rows = counts.get("matched", counts.get("positions", 0)), counts["rows"]
    shown = ("ambiguous", "not_reciprocal", "border", "duplicates", "far", "too_fast",
             "invalid_positions", "quarantined")  # fmt: skip
    others = [f"{counts[what]:,} {what.replace('_', ' ')}" for what in shown if counts.get(what)]
    return ", ".join([f"{found:,} of {rows:,} rows", *others])
