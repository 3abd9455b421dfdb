"""Everything that a report says, gathered from what the stage kept; `ReportFacts.to_dict` for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from skyvec.extensions.publish import published_rows
from skyvec.report.commands import join_code, quarantine_code, same_command, skyvec_command
from skyvec.report.events import Retries, read_retries
from skyvec.report.kept_run import KeptRun, open_run
from skyvec.report.pace import Pace, WorkerFacts, pace, workers
from skyvec.report.sample import VectorSample, sample_vectors
from skyvec.report.set_aside import SetAside, set_aside
from skyvec.report.states import FAILED, STATES, counted, pixel_states
from skyvec.stage.quantum_record import STEPS, QuantumRecord
from skyvec.stage.record_table import Key
from skyvec.stage.run_record import RunRecord
from skyvec.stage.status import read_status

VERSION = 1
"""Of the JSON's layout."""


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What a report says."""

    made: str
    """When, UTC."""
    run: KeptRun
    totals: RunRecord
    """Sums over all records."""
    state: str
    """As `skyvec status` says it."""
    exit_code: int
    states: Mapping[Key, str]
    """Order and pixel -> one of `skyvec.report.states.STATES`."""
    readable: int | None
    """Rows that readers find, of an earlier run perhaps; None if nothing was ever published."""
    pace: Pace | None
    workers: tuple[WorkerFacts, ...]
    retries: Retries | None
    """None without a file of events."""
    sample: VectorSample | None
    """None of a token product."""
    quarantine: SetAside
    again: str
    """The command that continues the run."""
    lacking: str
    """What the user must add to that command; empty if nothing."""

    @property
    def name(self) -> str:
        """Of the extension."""
        return self.run.name

    @property
    def embedding(self) -> bool:
        """Whether it holds vectors, not tokens."""
        return self.run.provenance.product == "embedding"

    @property
    def complete(self) -> bool:
        """Whether it is done and published."""
        return self.exit_code == 0

    @property
    def pixel_counts(self) -> dict[str, int]:
        """Pixels by state."""
        return counted(self.states)

    @property
    def failed(self) -> list[QuantumRecord]:
        """Records of the pixels that failed, those that no retry can mend first."""
        found = (self.run.records[key] for key, state in self.states.items() if state in FAILED)
        return sorted(found, key=lambda record: (record.outcome != "data", record.key))

    @property
    def step_seconds(self) -> dict[str, float]:
        """Worker-seconds by step, of the attempts that counted."""
        records = self.totals.quanta
        found = {step: sum(r.seconds.get(step, 0.0) for r in records) for step in STEPS}
        return {step: seconds for step, seconds in found.items() if seconds}

    @property
    def next_steps(self) -> list[tuple[str, str]]:
        """What to do now: why, and the command."""
        steps = []
        if not self.complete:
            broken = sum(record.outcome == "data" for record in self.failed)
            first = f"Mend the data of {broken:,} pixels (reasons below), then continue"
            why = first if broken else "Continue"
            steps.append((f"{why}; what is done is skipped", self.again))
        if self.complete:
            steps.append(("Prove every row", skyvec_command("verify", self.run)))
            if self.embedding:
                steps.append(
                    ("Find objects like one of them", skyvec_command("search", self.run, "--like", "ID"))
                )  # fmt: skip
        if self.quarantine.objects:
            why = "After mending the quarantined objects, compute only what changed"
            again = self.again.replace(f"--name {self.name}", f"--name {self.name}_mended", 1)
            if "--reuse" not in again:
                elsewhere = " --out " in again
                again += f" --reuse {self.run.output.root.absolute() if elsewhere else self.name}"
            steps.append((why, again))
        return steps

    def pixel_command(self, key: Key) -> str:
        """The command that tries one pixel again."""
        return same_command(self.run, pixels=[key])[0]

    def to_dict(self) -> dict[str, Any]:
        """The same facts for programs."""
        totals, made = self.totals, self.run.provenance
        return {
            "version": VERSION,
            "made": self.made,
            "extension": self.name,
            "folder": str(self.run.output.root),
            "catalog": str(self.run.source or self.run.job.get("source", "")),
            "state": self.state,
            "complete": self.complete,
            "exit_code": self.exit_code,
            "rows": {
                "all": totals.rows,
                "ok": totals.rows - totals.partial_rows - totals.failed_rows,
                "partial": totals.partial_rows,
                "failed": totals.failed_rows,
                "bad": totals.bad_rows,
                "reused": totals.reused_rows,
            },
            "reasons": totals.flags,
            "sources": totals.sources,
            "pixels": self.pixel_counts,
            "pixel_states": [self._pixel(key, state) for key, state in self.states.items()],
            "input_read": self.run.input_pixels is not None,
            "quarantine": asdict(self.quarantine),
            "retries": {
                "count": sum(record.attempts - 1 for record in totals.quanta),
                "reasons": dict(self.retries.by_reason) if self.retries else None,
            },
            "pace": _pace(self.pace),
            "step_seconds": {step: round(s, 3) for step, s in self.step_seconds.items()},
            "workers": [asdict(each) for each in self.workers],
            "vectors": _vectors(self.sample),
            "provenance": json.loads(made.to_json()),
            "job": self.run.job,
            "commands": {
                "again": self.again,
                "to_be_added": self.lacking,
                "next": [{"why": why, "command": command} for why, command in self.next_steps],
                "join": join_code(self.run),
                "quarantine": quarantine_code(self.run),
            },
        }

    def _pixel(self, key: Key, state: str) -> dict[str, Any]:
        found: dict[str, Any] = {"order": key[0], "pixel": key[1], "state": state}
        if (record := self.run.records.get(key)) is not None:
            found |= {
                "rows": record.rows,
                "failed_rows": record.failed_rows,
                "quarantined": record.quarantined,
                "attempts": record.attempts,
                "started": record.started,
                "wall_seconds": record.wall_seconds,
                "host": record.host,
            }
        if state in FAILED and record is not None:
            found |= {"error": record.error, "command": self.pixel_command(key)}
        return found


def gather(
    catalog: str | Path, extension: str | None = None, *, events: Path | None = None
) -> ReportFacts:
    """Read what the runs of one extension left, finished or not.

    Parameters
    ----------
    events
        What the run was given as ``--log-json``; tells the reasons of retries.

    Raises
    ------
    ConfigurationError
        If there is no such run, it carries no records, or the events are not its own.
    ContractError
        If the records cannot be read.
    """
    run = open_run(catalog, extension)
    records = [record for _, record in sorted(run.records.items())]
    status = read_status(run.output.root.parent, run.name)
    again, lacking = same_command(run)
    embedding = run.provenance.product == "embedding"
    return ReportFacts(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        run=run,
        totals=_totals(run, records),
        state=status.lines["state"],
        exit_code=status.exit_code,
        states=pixel_states(run),
        pace=pace(records, began=run.began),
        readable=published_rows(run.output, run.name),
        workers=workers(records),
        retries=read_retries(events, run.name) if events else None,
        sample=sample_vectors(run.output, records, name=run.name) if embedding else None,
        quarantine=set_aside(run.output, records),
        again=again,
        lacking=lacking,
    )


def _totals(run: KeptRun, records: list[QuantumRecord]) -> RunRecord:
    """The record's own sums, over all that runs have done so far."""
    return RunRecord(
        name=run.name, source=run.source or Path(), output=run.output.root, properties=None,
        provenance=run.provenance, quanta=tuple(records), pixels=len(records), skipped=0,
        seconds=0.0,
    )  # fmt: skip


def _pace(found: Pace | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "stretches": [
            {**asdict(each), "rows_per_second": round(each.rows_per_second, 3)}
            for each in found.stretches
        ],
        "seconds": found.seconds.round(2).tolist(),
        "rows_per_second": found.rows_per_second.round(3).tolist(),
        "device_busy": [round(b, 4) if np.isfinite(b) else None for b in found.busy.tolist()],
        "pixels_in_work": found.working.round(3).tolist(),
    }


def _vectors(sample: VectorSample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    levels = (0, 0.01, 0.16, 0.5, 0.84, 0.99, 1)
    norms = np.quantile(sample.norms, levels).round(5).tolist() if len(sample.norms) else []
    return {
        "rows_read": sample.rows,
        "leaves_read": sample.leaves,
        "all_rows": sample.complete,
        "unreadable": list(sample.unreadable),
        "with_vector": len(sample.norms),
        "norm_quantiles": dict(zip(map(str, levels), norms, strict=False)),
        "modalities": [
            {"used": list(used), "rows": count} for used, count in sample.modalities.items()
        ],
    }


__all__ = ("STATES", "ReportFacts", "gather")
