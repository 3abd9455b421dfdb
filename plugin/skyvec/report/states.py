"""How each HEALPix pixel stands, in one word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from skyvec.report.kept_run import KeptRun
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.record_table import Key

STATES: Mapping[str, str] = {
    "data": "failed: its data break their contract; mend them, then try again",
    "lost": "failed: worker, memory, disk or network; try again",
    "open": "not done: not tried yet, or not chosen",
    "flagged": "done, with quarantined objects",
    "done": "done",
    "earlier": "done before the last run began",
    "empty": "nothing to do",
}
"""Gravest first."""
FAILED = frozenset({"data", "lost"})
_GRAVITY = {state: place for place, state in enumerate(STATES)}


def pixel_states(run: KeptRun) -> dict[Key, str]:
    """Order and pixel -> one of `STATES`, for every record and every pixel of the input."""
    found = {key: _state(record, run.began) for key, record in sorted(run.records.items())}
    if found and set(found.values()) <= {"earlier", "empty"}:
        # A copied folder, or a run that found nothing to do: the distinction says nothing.
        found = {key: "done" if state == "earlier" else state for key, state in found.items()}
    for key in run.input_pixels or ():
        found.setdefault(key, "open")
    return dict(sorted(found.items()))


def gravest(states: Iterable[str]) -> str:
    """The one that people should see where several share a place."""
    return min(states, key=_GRAVITY.__getitem__)


def counted(states: Mapping[Key, str]) -> dict[str, int]:
    """Pixels by state, gravest first; only those that occur."""
    counts = Counter(states.values())
    return {state: counts[state] for state in STATES if counts[state]}


def _state(record: QuantumRecord, began: float | None) -> str:
    if not record.finished:
        return record.outcome if record.outcome in FAILED else "lost"
    if record.outcome == "empty":
        return "empty"
    if record.quarantined:
        return "flagged"
    ended = _ended(record)
    return "earlier" if began is not None and ended is not None and ended < began else "done"


def _ended(record: QuantumRecord) -> float | None:
    try:
        return datetime.fromisoformat(record.started).timestamp() + record.wall_seconds
    except ValueError:
        return None
