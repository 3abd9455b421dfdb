"""How far a run has come: arithmetic over what monitors hear, without a word printed."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from skyvec.stage.monitor import Beat, RunFacts
from skyvec.stage.quantum_record import FINISHED, QuantumRecord

WINDOW = 60.0
"""Seconds over which pace and busy share are taken."""
BURST = 1.0
"""Seconds within which news count as one: a pool may tell all beats of a pixel at its end."""
DEVICE_STEPS = ("tokenize", "encode")
"""Steps that keep the device busy."""

Clock = Callable[[], float]


@dataclass(slots=True)
class _Tally:
    """What the beats of a pixel under way have counted."""

    rows: int = 0
    failed_rows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class _Sample(NamedTuple):
    """Work up to a moment; no member ever falls."""

    time: float
    rows: int
    busy: float
    worker_seconds: float


class _Stretch(NamedTuple):
    """What was worked in a stretch of time."""

    seconds: float = 0.0
    rows: int = 0
    busy: float = 0.0
    worker_seconds: float = 0.0


class Progress:
    """Counts of a run under way; told the same as a `skyvec.stage.monitor.Monitor`.

    A row counts as done from its beat on. When its pixel ends, the record replaces what the beats
    had counted; when the pixel is retried, they are void: no row is ever counted twice. Pace and
    busy share measure *work*, so what a retry made void stays in them.

    Parameters
    ----------
    window
        Seconds over which pace and busy share are taken; longer where beats are farther apart.
    clock
        Monotonic seconds.
    """

    def __init__(self, *, window: float = WINDOW, clock: Clock = time.monotonic) -> None:
        self._window, self._clock = window, clock
        self.facts: RunFacts | None = None
        self.outcomes: Counter[str] = Counter()
        """Pixels that this run ended, by outcome."""
        self.retries = 0
        self.workers_now = 0
        self.rows_written = 0
        """Rows of the pixels that this run finished."""
        self.quarantined = 0
        """Of the pixels that this run finished; see `QuantumRecord.quarantined`."""
        self.failed_rows_written = 0
        """Rows without a vector in the pixels that this run finished."""
        self.step_seconds: dict[str, float] = defaultdict(float)
        """Worker-seconds by step, in vain or not."""
        self.rows_running = 0
        """Rows that beats have counted in pixels that have not ended."""
        self._failed_rows_running = 0
        self._rows_worked = 0
        self._first_took = 0.0
        self._running: dict[tuple[int, int], _Tally] = {}
        self._ended: set[tuple[int, int]] = set()
        self._rows_given_up = 0.0
        self._worker_seconds = 0.0
        self._passed = self._started = clock()
        self._samples: deque[_Sample] = deque([_Sample(self._started, 0, 0.0, 0.0)])

    def begin(self, facts: RunFacts) -> None:
        """The run starts; time counts from here."""
        self.facts = facts
        self._passed = self._started = self._clock()
        self._worker_seconds = 0.0
        self._samples = deque([_Sample(self._started, 0, 0.0, 0.0)])

    def workers(self, count: int) -> None:
        """So many workers are there now."""
        self._pass_time()  # at the old number
        self.workers_now = count

    def beat(self, beat: Beat) -> None:
        """A pixel goes on; a beat that comes after the pixel's end is void."""
        key = beat.order, beat.pixel
        if key in self._ended:
            return
        tally = self._running.setdefault(key, _Tally())
        tally.rows += beat.rows
        tally.failed_rows += beat.failed_rows
        _add(tally.seconds, beat.seconds)
        self.rows_running += beat.rows
        self._failed_rows_running += beat.failed_rows
        self._worked(beat.rows, beat.seconds, took=sum(tally.seconds.values()))

    def retry(self, order: int, pixel: int) -> None:
        """A pixel is tried again; what its beats counted is void."""
        self._take_back((order, pixel))
        self.retries += 1

    def pixel(self, record: QuantumRecord) -> None:
        """A pixel ended; a second end of the same pixel is not counted."""
        if record.key in self._ended:
            return
        self._ended.add(record.key)
        beaten = self._take_back(record.key)
        self.outcomes[record.outcome] += 1
        if record.finished:
            self.rows_written += record.rows
            self.failed_rows_written += record.failed_rows
            self.quarantined += record.quarantined
        else:
            self._rows_given_up += record.rows or self._mean_rows
        rest = {s: max(0.0, t - beaten.seconds[s]) for s, t in record.seconds.items()}
        rows = max(0, record.rows - beaten.rows) if record.finished else 0
        self._worked(rows, rest, took=sum(record.seconds.values()))

    @property
    def rows_done(self) -> int:
        """Rows done, by an earlier run, by ended pixels and by those under way."""
        if self.facts is None:
            return 0
        # The last beat of a try that is void can come after its retry.
        return min(self.facts.rows, self.facts.rows_done + self.rows_written + self.rows_running)

    @property
    def failed_rows(self) -> int:
        """Bad rows so far: rows of this run whose vector is null."""
        return self.failed_rows_written + self._failed_rows_running

    @property
    def pixels_done(self) -> int:
        """Pixels finished, by an earlier run or this one."""
        earlier = self.facts.pixels_done if self.facts else 0
        return earlier + sum(self.outcomes[outcome] for outcome in FINISHED)

    @property
    def pixels_failed(self) -> int:
        """Pixels that this run gave up."""
        return sum(count for name, count in self.outcomes.items() if name not in FINISHED)

    @property
    def pixels_open(self) -> int:
        """Pixels that have not ended."""
        return self.facts.pixels - self.pixels_done - self.pixels_failed if self.facts else 0

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._started

    @property
    def rows_per_second(self) -> float:
        """Rows worked per second, over the window."""
        latest = self._latest()
        return latest.rows / latest.seconds if latest.seconds else 0.0

    @property
    def device_busy(self) -> float:
        """Share of the workers' time, over the window, that went into `DEVICE_STEPS`.

        Seconds of these steps, summed over workers, per worker-second: the number of workers
        integrated over time, at least one. Between 0 and 1; what is missing is reading, writing,
        verifying and waiting.
        """
        latest = self._latest()
        return min(1.0, latest.busy / latest.worker_seconds) if latest.worker_seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time until the last pixel ends at the pace of the window; None if that is unknown.

        A pixel that was given up, and whose rows nobody has counted, is taken to have as many as
        the mean pixel.
        """
        if self.facts is None:
            return None
        rows = self.facts.rows - self.rows_done - self._rows_given_up
        if self.pixels_open <= 0 or rows <= 0:
            return 0.0
        pace = self.rows_per_second
        return rows / pace if pace else None

    @property
    def _mean_rows(self) -> float:
        return self.facts.rows / max(1, self.facts.pixels) if self.facts else 0.0

    def _take_back(self, key: tuple[int, int]) -> _Tally:
        """What the beats of a pixel have counted, which no longer counts."""
        tally = self._running.pop(key, _Tally())
        self.rows_running -= tally.rows
        self._failed_rows_running -= tally.failed_rows
        return tally

    def _worked(self, rows: int, seconds: Mapping[str, float], *, took: float) -> None:
        self._rows_worked += rows
        _add(self.step_seconds, seconds)
        busy = sum(self.step_seconds[step] for step in DEVICE_STEPS)
        spent = self._pass_time()
        now, last = self._passed, self._samples[-1].time
        if len(self._samples) > 1 and now - last < BURST:
            self._samples.pop()
            now = last
        self._samples.append(_Sample(now, self._rows_worked, busy, spent))
        if len(self._samples) == 2 and not self._samples[0].rows:
            self._first_took = max(self._first_took, took)
            self._samples[0] = self._origin()
        self._forget(now)

    def _origin(self) -> _Sample:
        """Where the first work began; the start of the cluster is no part of its pace."""
        first, took = self._samples[1], self._first_took
        if not 0 < took < first.time - self._started:
            return _Sample(self._started, 0, 0.0, 0.0)
        before = first.worker_seconds - max(1, self.workers_now) * took
        return _Sample(first.time - took, 0, 0.0, max(0.0, before))

    def _pass_time(self) -> float:
        """Worker-seconds until now."""
        now = self._clock()
        self._worker_seconds += max(1, self.workers_now) * (now - self._passed)
        self._passed = now
        return self._worker_seconds

    def _forget(self, now: float) -> None:
        # The first sample is where the work of the second began: both stay.
        while len(self._samples) > 2 and self._samples[1].time <= now - self._window:
            self._samples.popleft()

    def _latest(self) -> _Stretch:
        """The work of the window.

        A beat tells of the time before it, so the stretch goes from one beat to another. Once the
        usual time between beats has passed in silence, waiting counts too.
        """
        spent = self._pass_time()
        now = self._passed
        self._forget(now)
        first, last = self._samples[0], self._samples[-1]
        if first is last:
            return _Stretch()
        usual = (last.time - first.time) / (len(self._samples) - 1)
        silence = max(0.0, now - last.time - usual)
        waited = (spent - last.worker_seconds) * silence / (now - last.time) if silence else 0.0
        return _Stretch(
            seconds=last.time - first.time + silence,
            rows=last.rows - first.rows,
            busy=last.busy - first.busy,
            worker_seconds=last.worker_seconds - first.worker_seconds + waited,
        )


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        total[name] += value


class Every:
    """Says at most once every so many seconds that it is time; the first time after as many."""

    def __init__(self, seconds: float, *, clock: Clock = time.monotonic) -> None:
        self._seconds, self._clock, self._last = seconds, clock, clock()

    def due(self) -> bool:
        """Whether it is time, which starts the next wait."""
        now = self._clock()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
