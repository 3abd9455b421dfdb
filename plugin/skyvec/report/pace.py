"""Throughput and device use over time, from when each pixel began and how long it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from skyvec.stage.quantum_record import QuantumRecord

GAP = 900.0
"""Seconds without any pixel in work that part one stretch of work from the next."""
BINS = 60
BUSY = ("tokenize", "encode")
"""Steps in which the device works; as in `skyvec.stage.progress`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Work without a long pause."""

    began: str
    """UTC, ISO 8601."""
    seconds: float
    pixels: int
    rows: int
    busy: float
    """Share of the worker-seconds that was spent in `BUSY`."""

    @property
    def rows_per_second(self) -> float:
        """Over the whole stretch."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The last stretch in time bins, and all stretches in sum."""

    stretches: tuple[Stretch, ...]
    seconds: NDArray[np.float64]
    """Middle of each bin since the last stretch began, (bins,)."""
    rows_per_second: NDArray[np.float64]
    """(bins,); the rows of a pixel are spread evenly over its time."""
    busy: NDArray[np.float64]
    """(bins,), NaN where no pixel was in work."""
    working: NDArray[np.float64]
    """Pixels in work at a time, (bins,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFacts:
    """What one worker did."""

    host: str
    worker: str
    device: str
    pixels: int
    rows: int
    seconds: float
    busy: float
    peak_memory: int


def pace(records: Iterable[QuantumRecord], *, began: float | None = None) -> Pace | None:
    """Pace of all pixels that say when they were made; None if none does.

    Parameters
    ----------
    began
        When the last run did, seconds since 1970: what came before it is a stretch of its own.
    """
    timed = [(start, record) for record in records if (start := _start(record)) is not None]
    if not timed:
        return None
    timed.sort(key=lambda pair: pair[0])
    parts: list[list[tuple[float, QuantumRecord]]] = []
    until = -np.inf
    for start, record in timed:
        first_of_run = began is not None and parts and parts[-1][-1][0] < began <= start
        if start > until + GAP or first_of_run:
            parts.append([])
        parts[-1].append((start, record))
        until = max(until, start + record.wall_seconds)
    return Pace(stretches=tuple(map(_stretch, parts)), **_binned(parts[-1]))


def workers(records: Iterable[QuantumRecord]) -> tuple[WorkerFacts, ...]:
    """Each host, worker and device, those with most rows first."""
    found: dict[tuple[str, str, str], list[QuantumRecord]] = defaultdict(list)
    for record in records:
        found[record.host, record.worker, record.device].append(record)
    every = (
        WorkerFacts(
            host=host or "unknown",
            worker=worker or "the run's own process",
            device=device or "unknown",
            pixels=len(made),
            rows=sum(record.rows for record in made),
            seconds=sum(record.wall_seconds for record in made),
            busy=_busy_share(made),
            peak_memory=max(record.peak_memory for record in made),
        )
        for (host, worker, device), made in found.items()
    )
    return tuple(sorted(every, key=lambda each: (-each.rows, each.host, each.worker)))


def _start(record: QuantumRecord) -> float | None:
    with suppress(ValueError):
        return datetime.fromisoformat(record.started).timestamp()
    return None


def _busy_seconds(record: QuantumRecord) -> float:
    return sum(record.seconds.get(step, 0.0) for step in BUSY)


def _busy_share(records: Iterable[QuantumRecord]) -> float:
    made = list(records)
    wall = sum(record.wall_seconds for record in made)
    return min(1.0, sum(map(_busy_seconds, made)) / wall) if wall else 0.0


def _stretch(part: list[tuple[float, QuantumRecord]]) -> Stretch:
    first = part[0][0]
    last = max(start + record.wall_seconds for start, record in part)
    return Stretch(
        began=datetime.fromtimestamp(first, UTC).isoformat(timespec="seconds"),
        seconds=last - first,
        pixels=len(part),
        rows=sum(record.rows for _, record in part),
        busy=_busy_share(record for _, record in part),
    )


def _binned(part: list[tuple[float, QuantumRecord]]) -> dict[str, NDArray[np.float64]]:
    starts = np.array([start for start, _ in part])
    walls = np.maximum([record.wall_seconds for _, record in part], 1e-3)
    rows = np.array([record.rows for _, record in part], np.float64)
    busy = np.minimum([_busy_seconds(record) for _, record in part], walls)
    edges = np.linspace(starts.min(), (starts + walls).max(), BINS + 1)
    width = edges[1] - edges[0]
    # (pixels, bins): seconds that each pixel was in work in each bin.
    inside = np.minimum(edges[1:], (starts + walls)[:, None]) - np.maximum(
        edges[:-1], starts[:, None]
    )
    inside = np.clip(inside, 0, None)
    worked = inside.sum(0)
    share = np.divide(
        (busy / walls) @ inside, worked, out=np.full(BINS, np.nan), where=worked > 1e-9
    )
    return {
        "seconds": (edges[1:] + edges[:-1]) / 2 - edges[0],
        "rows_per_second": (rows / walls) @ inside / width,
        "busy": share,
        "working": worked / width,
    }
