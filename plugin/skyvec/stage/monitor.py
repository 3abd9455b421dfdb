"""What a run tells while it goes on; a terminal, a log, a file of events or a metrics file listen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skyvec.stage.quantum_record import QuantumRecord

if TYPE_CHECKING:
    from skyvec.stage.run_record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What is known when a run begins."""

    run_id: str
    name: str
    """Of the extension."""
    output: str
    rows: int
    """Rows of the pixels chosen for this run, done before or not."""
    pixels: int
    rows_done: int
    """Rows that an earlier run finished."""
    pixels_done: int
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """How far a pixel has come since its last beat; sent every few seconds."""

    order: int
    pixel: int
    rows: int
    failed_rows: int
    worker: str
    seconds: dict[str, float] = field(default_factory=dict)
    """By step, as in `skyvec.stage.quantum_record.STEPS`."""


class Monitor:
    """Hears of a run; this one says nothing of it. Called from one thread, and never stops the run."""

    def begin(self, facts: RunFacts) -> None:
        """The run starts."""

    def workers(self, count: int) -> None:
        """So many workers are there now."""

    def beat(self, beat: Beat) -> None:
        """A pixel goes on."""

    def retry(self, order: int, pixel: int, *, why: str, attempt: int, wait: float) -> None:
        """A pixel is tried again after ``wait`` seconds; what its beats counted is void."""

    def pixel(self, record: QuantumRecord) -> None:
        """A pixel ended."""

    def stopping(self) -> None:
        """Somebody interrupted the run; it ends within seconds."""

    def end(self, record: RunRecord) -> None:
        """The run ended, complete or not."""


def monitors(several: Iterable[Monitor]) -> Monitor:
    """Several monitors as one.

    One that raises is switched off, with one line on standard error; the others and the run go on.
    """
    return _Several(several)


class _Several(Monitor):
    def __init__(self, several: Iterable[Monitor]) -> None:
        self._listening = list(several)

    def begin(self, facts: RunFacts) -> None:
        self._tell(lambda monitor: monitor.begin(facts))

    def workers(self, count: int) -> None:
        self._tell(lambda monitor: monitor.workers(count))

    def beat(self, beat: Beat) -> None:
        self._tell(lambda monitor: monitor.beat(beat))

    def retry(self, order: int, pixel: int, *, why: str, attempt: int, wait: float) -> None:
        self._tell(lambda monitor: monitor.retry(order, pixel, why=why, attempt=attempt, wait=wait))

    def pixel(self, record: QuantumRecord) -> None:
        self._tell(lambda monitor: monitor.pixel(record))

    def stopping(self) -> None:
        self._tell(lambda monitor: monitor.stopping())

    def end(self, record: RunRecord) -> None:
        self._tell(lambda monitor: monitor.end(record))

    def _tell(self, news: Callable[[Monitor], None]) -> None:
        for monitor in tuple(self._listening):
            try:
                news(monitor)
            except (Exception, SystemExit) as problem:  # noqa: BLE001 - it only watches
                # SystemExit is rich's answer to a pipe that nobody reads any more.
                self._listening.remove(monitor)
                what = " ".join(str(problem).split())
                with suppress(OSError, ValueError):  # nobody may be left to read it
                    sys.stderr.write(
                        f"skyvec: {type(monitor).__name__} is switched off, the run goes on "
                        f"({type(problem).__name__}: {what})\n"
                    )
