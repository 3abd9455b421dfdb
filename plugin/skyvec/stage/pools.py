"""Where quanta run: in this process, or on a Dask cluster. Both take tasks and hand back endings."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.dask_task import packed, run_task
from skyvec.stage.job import Job
from skyvec.stage.monitor import Beat
from skyvec.stage.quantum import BEAT_SECONDS, run_quantum
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_schemas.errors import InfrastructureError

if TYPE_CHECKING:
    from distributed import Client, Future

LOOK_SECONDS = 5.0
"""Workers are counted so often: they may join late, or leave."""
LEAST_SUBMITTED, SUBMITTED_EACH = 256, 4
"""Tasks that the scheduler knows at a time: enough for an adaptive cluster to reach 1,000 workers in
two steps, and for every thread to find the next one; never all 200,000 pixels of a release."""
GATHER_SECONDS = 60
COLLECTORS = 8
"""Threads that fetch records, so that one whose worker has just died holds up nobody else's."""
BEATS_A_SECOND = 50
"""Of all workers together: each beat passes the scheduler, so that 1,000 workers speak less often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One attempt at a pixel."""

    pixel: HealpixPixel
    attempt: int
    batch_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What came of a task."""

    task: Task
    outcome: QuantumRecord | BaseException


Event = Ended | Beat


class Pool(Protocol):
    """Runs tasks."""

    @property
    def window(self) -> int:
        """Tasks that may be submitted at a time."""

    @property
    def workers(self) -> int:
        """Processes that are there now."""

    def submit(self, task: Task) -> None:
        """Take a task."""

    def next_event(self, seconds: float) -> Event | None:
        """What happened, waiting at most so long for it.

        Raises
        ------
        InfrastructureError
            If the cluster is gone for good.
        """

    def close(self) -> None:
        """Give up what is not done."""


class InThisProcess:
    """One task at a time, here, with the catalog as it was opened for the plan."""

    window = workers = 1

    def __init__(self, job: Job, release: HatsRelease) -> None:
        self._job, self._release = job, release
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._task: Task | None = None

    def submit(self, task: Task) -> None:
        """Keep it for `next_event`, so that what happens meanwhile can be told."""
        self._task = task

    def next_event(self, seconds: float) -> Event | None:
        """Run the task, if there is one; its beats come before its end."""
        if self._task:
            task, self._task = self._task, None
            self._events.put(self._attempt(task))
        try:
            return self._events.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            return None

    def close(self) -> None:
        """Nothing is left running."""

    def _attempt(self, task: Task) -> Ended:
        try:
            record = run_quantum(
                self._job, task.pixel.order, task.pixel.pixel, attempt=task.attempt,
                batch_rows=task.batch_rows, tell=self._events.put, release=self._release,
            )  # fmt: skip
        except Exception as problem:  # noqa: BLE001 - sorted by the driver; one pixel never stops a run
            return Ended(task=task, outcome=problem)
        return Ended(task=task, outcome=record)


class OnDask:
    """Tasks on a cluster: local, SLURM, Kubernetes, GPUs; workers may join and leave."""

    def __init__(self, job: Job, client: Client, resources: Mapping[str, float] | None) -> None:
        self._job, self._client, self._resources = packed(job), client, dict(resources or {})
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[str, tuple[Task, Future]] = {}
        self._collectors = ThreadPoolExecutor(COLLECTORS, "skyvec-collect")
        self._topic = f"skyvec-{job.run_id}"
        self._looked, self._threads, self._workers = -LOOK_SECONDS, 0, 0
        self._away = False
        client.subscribe_topic(self._topic, self._heard)

    @property
    def window(self) -> int:
        """As many as keep every thread busy, and let a cluster grow."""
        self._look()
        return max(LEAST_SUBMITTED, SUBMITTED_EACH * self._threads)

    @property
    def workers(self) -> int:
        """As counted a few seconds ago."""
        self._look()
        return self._workers

    def submit(self, task: Task) -> None:
        """Hand it to the scheduler; placement counts only where work is submitted."""
        pixel = task.pixel
        future = self._client.submit(
            run_task, self._job, self._topic, pixel.order, pixel.pixel, attempt=task.attempt,
            batch_rows=task.batch_rows,
            beat_seconds=max(BEAT_SECONDS, self._workers / BEATS_A_SECOND),
            pure=False, resources=self._resources or None,
            priority=task.attempt,  # what is tried again has waited, and goes before the fresh
            key=f"{self._topic}-{pixel.order}-{pixel.pixel}-{task.attempt}-{time.monotonic_ns()}",
        )  # fmt: skip
        self._running[future.key] = task, future
        future.add_done_callback(self._ended)

    def next_event(self, seconds: float) -> Event | None:
        """A beat, or the end of a task."""
        try:
            return self._events.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            if self._client.status in {"closed", "closing"}:
                raise InfrastructureError(
                    "the connection to the scheduler is lost",
                    where="Dask cluster",
                    remedy="Start the cluster again and run the same command: finished pixels stay",
                ) from None
            return None

    def close(self) -> None:
        """Cancel what has not begun; what runs on other machines ends by itself."""
        self._collectors.shutdown(wait=False, cancel_futures=True)
        self._client.unsubscribe_topic(self._topic)
        if self._running and self._client.status == "running":
            self._client.cancel([future for _, future in list(self._running.values())])

    def _ended(self, future: Future) -> None:
        with suppress(RuntimeError):  # after the end of the run, nobody asks any more
            self._collectors.submit(self._collect, future)

    def _collect(self, future: Future) -> None:
        task, _ = self._running.pop(future.key, (None, None))
        if task is not None:
            self._events.put(_ending(task, future))

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        self._events.put(Beat(**event[1]))

    def _look(self) -> None:
        if self._client.status != "running":
            self._away = True
            return
        if self._away:  # a scheduler that was started anew knows of no listeners
            self._client.subscribe_topic(self._topic, self._heard)
            self._away = False
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        try:
            threads = self._client.nthreads()
        except (OSError, TimeoutError):
            return  # the scheduler is away; its tasks come back as cancelled
        self._looked = time.monotonic()
        self._threads, self._workers = sum(threads.values()), len(threads)


def _ending(task: Task, future: Future) -> Ended:
    try:
        return Ended(task=task, outcome=future.result(timeout=GATHER_SECONDS))
    except BaseException as problem:  # noqa: BLE001 - Dask's CancelledError is no Exception
        return Ended(task=task, outcome=problem)
