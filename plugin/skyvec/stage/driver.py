"""Drives the pixels of a run: keeps the workers busy, tries again what may pass, reports the rest."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from skyvec.stage.failures import Failure, in_one_line, kind_of
from skyvec.stage.monitor import Beat, Monitor
from skyvec.stage.plan import Plan
from skyvec.stage.pools import Ended, Pool, Task
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_schemas.errors import InfrastructureError

TICK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a run tries."""

    attempts: int = 5
    """Of one pixel, where the reason may pass."""
    first_pause: float = 1.0
    """Seconds before the second attempt; each later pause is twice the one before."""
    longest_pause: float = 60.0
    lost_in_a_row: int = 20
    """Pixels lost one after the other, none done between: the machine is at fault, the run ends."""

    def pause(self, attempt: int) -> float:
        """Seconds after this attempt."""
        return float(min(self.longest_pause, self.first_pause * 2 ** (attempt - 1)))


def drive(
    prepared: Plan, pool: Pool, monitor: Monitor, patience: Patience
) -> Iterator[QuantumRecord]:
    """Run every pixel of a plan; yields its record when nothing more is tried.

    Raises
    ------
    ConfigurationError
        If a worker finds that the request cannot be carried out anywhere.
    InfrastructureError
        If the cluster is gone, or pixel after pixel is lost.
    """
    yield from _Driver(prepared, pool, monitor, patience).run()


class _Driver:
    def __init__(self, prepared: Plan, pool: Pool, monitor: Monitor, patience: Patience) -> None:
        self.pool, self.monitor, self.patience = pool, monitor, patience
        self.model_device = prepared.job.model.device
        tasks = (
            Task(pixel=pixel, attempt=1, batch_rows=prepared.job.batch_rows)
            for pixel in prepared.todo
        )
        self._order = count()
        self._fresh = tasks
        self._left = len(prepared.todo)
        self._again: list[tuple[float, int, Task]] = []
        self._running = 0
        self._lost_in_a_row = 0

    def run(self) -> Iterator[QuantumRecord]:
        workers = -1
        while self._left:
            self._submit()
            if (now := self.pool.workers) != workers:
                workers = now
                self.monitor.workers(workers)
            event = self.pool.next_event(self._patiently())
            if isinstance(event, Beat):
                self.monitor.beat(event)
            elif event is not None:
                self._running -= 1
                record = self._judge(event)
                if record:
                    self._left -= 1
                    self.monitor.pixel(record)
                    yield record
                    self._give_up_if_hopeless(record)

    def _submit(self) -> None:
        window = self.pool.window
        while self._running < window:
            task = self._due() or next(self._fresh, None)
            if task is None:
                return
            self.pool.submit(task)
            self._running += 1

    def _due(self) -> Task | None:
        if self._again and self._again[0][0] <= time.monotonic():
            return heapq.heappop(self._again)[2]
        return None

    def _patiently(self) -> float:
        """Until something is due, but look up now and then."""
        if not self._again:
            return TICK_SECONDS
        return min(TICK_SECONDS, max(0.0, self._again[0][0] - time.monotonic()))

    def _judge(self, ended: Ended) -> QuantumRecord | None:
        """The final record of a pixel, or None if it is tried again."""
        task, problem = ended.task, ended.outcome
        if isinstance(problem, QuantumRecord):
            return problem
        kind = kind_of(problem)
        if kind is Failure.WRONG:
            raise problem
        attempts = {Failure.DATA: 1, Failure.DEFECT: 2}.get(kind, self.patience.attempts)
        if task.attempt < attempts:
            self._try_again(task, kind, problem)
            return None
        outcome = "data" if kind in {Failure.DATA, Failure.DEFECT} else "lost"
        advice = {Failure.DATA: "", Failure.DEFECT: "; report it"}.get(
            kind, "; run the same command again"
        )
        return QuantumRecord(
            order=task.pixel.order, pixel=task.pixel.pixel, outcome=outcome, attempts=task.attempt,
            batch_rows=task.batch_rows, device=self.model_device,
            error=f"{in_one_line(problem)} (tried {task.attempt} times{advice})",
        )  # fmt: skip

    def _try_again(self, task: Task, kind: Failure, problem: BaseException) -> None:
        # A worker that died may have run out of memory: its pixel gets half the rows as well.
        died = type(problem).__name__ == "KilledWorker"
        smaller = kind is Failure.MEMORY or died
        rows = max(1, task.batch_rows // 2) if smaller else task.batch_rows
        pause = self.patience.pause(task.attempt)
        again = Task(pixel=task.pixel, attempt=task.attempt + 1, batch_rows=rows)
        heapq.heappush(self._again, (time.monotonic() + pause, next(self._order), again))
        self.monitor.retry(
            task.pixel.order, task.pixel.pixel,
            why=in_one_line(problem), attempt=again.attempt, wait=pause,
        )  # fmt: skip

    def _give_up_if_hopeless(self, record: QuantumRecord) -> None:
        self._lost_in_a_row = self._lost_in_a_row + 1 if record.outcome == "lost" else 0
        if self._lost_in_a_row >= self.patience.lost_in_a_row:
            raise InfrastructureError(
                f"{self._lost_in_a_row} pixels in a row were lost, the last by {record.error}",
                where="the run",
                remedy="Mend the disk or the cluster and run the same command: finished pixels stay",
            )
