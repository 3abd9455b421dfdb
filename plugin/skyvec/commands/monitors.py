"""What people see of a run: a bar in a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from skyvec.commands.terminal import out
from skyvec.stage.monitor import Beat, Monitor, RunFacts
from skyvec.stage.progress import Clock, Every, Progress
from skyvec.stage.quantum_record import QuantumRecord

if TYPE_CHECKING:
    from skyvec.stage.run_record import RunRecord


@contextmanager
def console_monitor(console: Console = out) -> Iterator[Monitor]:
    """A bar if somebody looks on, else a log; the console is itself again when the block ends."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield LogMonitor(console)
        return
    monitor = TerminalMonitor(console)
    try:
        yield monitor
    finally:
        monitor.close()


class TerminalMonitor(Monitor):
    """One bar of rows, the pace below it, and the last trouble; all gone when the run ends."""

    def __init__(self, console: Console = out, *, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._progress = Progress(clock=clock)
        self._bars = _BarAndFacts(console)

    def begin(self, facts: RunFacts) -> None:
        """Show the bar."""
        self._progress.begin(facts)
        self._bars.add_task(facts.name, total=facts.rows, completed=facts.rows_done)
        self._bars.start()

    def workers(self, count: int) -> None:
        """Show their number."""
        self._progress.workers(count)
        self._show()

    def beat(self, beat: Beat) -> None:
        """Move the bar."""
        self._progress.beat(beat)
        self._show()

    def retry(self, order: int, pixel: int, *, why: str, attempt: int, wait: float) -> None:
        """Move the bar back, and say why."""
        self._progress.retry(order, pixel)
        self._show(_retry(order, pixel, why=why, attempt=attempt, wait=wait))

    def pixel(self, record: QuantumRecord) -> None:
        """Move the bar; say what went wrong."""
        self._progress.pixel(record)
        self._show(None if record.finished else _failure(record))

    def stopping(self) -> None:
        """Answer whoever pressed Ctrl-C at once."""
        self._show(_STOPPING)

    def end(self, record: RunRecord) -> None:
        """Take the bar away; how far an interrupted run came nobody else says."""
        self.close()
        if record.stopped:
            self._console.print(f"{record.name}: {_outcome(record)}", highlight=False)

    def close(self) -> None:
        """Give the console back; does nothing the second time."""
        self._bars.stop()

    def _show(self, trouble: str | None = None) -> None:
        self._bars.facts = pace(self._progress)
        self._bars.trouble = trouble or self._bars.trouble
        for task in self._bars.task_ids:
            self._bars.update(task, completed=self._progress.rows_done)


class _BarAndFacts(Bars):
    """A bar with lines below it; rich redraws it from a thread of its own."""

    facts = ""
    trouble = ""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} objects"),
            console=console,
            transient=True,
            refresh_per_second=4,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the lines; none is broken, since a line too many would leave a trace."""
        yield from super().get_renderables()
        for line, style in ((self.facts, "dim"), (self.trouble, "yellow")):
            if line:
                yield Text(line, style=style, no_wrap=True, overflow="ellipsis")


_STOPPING = "stopping; what is done stays"


def _utc() -> datetime:
    return datetime.now(UTC)


class LogMonitor(Monitor):
    """Plain lines with the time in UTC: begin, now and then, each trouble, end."""

    def __init__(
        self,
        console: Console = out,
        *,
        every: float = 30.0,
        utc: Callable[[], datetime] = _utc,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console, self._utc = console, utc
        self._progress, self._every = Progress(clock=clock), Every(every, clock=clock)

    def begin(self, facts: RunFacts) -> None:
        """What is to do."""
        self._progress.begin(facts)
        before = (
            f" ({facts.rows_done:,} in {facts.pixels_done:,} done before)"
            if facts.pixels_done
            else ""
        )
        self._print(
            f"{facts.name}: {facts.rows:,} objects in {_count(facts.pixels, 'pixel')}{before}; "
            f"run {facts.run_id} on {facts.device} into {facts.output}"
        )

    def workers(self, count: int) -> None:
        """Now and then a line, also while no pixel goes on."""
        self._progress.workers(count)
        self._print_if_due()

    def beat(self, beat: Beat) -> None:
        """Now and then a line."""
        self._progress.beat(beat)
        self._print_if_due()

    def retry(self, order: int, pixel: int, *, why: str, attempt: int, wait: float) -> None:
        """A line for each."""
        self._progress.retry(order, pixel)
        self._print(_retry(order, pixel, why=why, attempt=attempt, wait=wait))

    def pixel(self, record: QuantumRecord) -> None:
        """A line for each that failed."""
        self._progress.pixel(record)
        if not record.finished:
            self._print(_failure(record))
        self._print_if_due()

    def stopping(self) -> None:
        """A line."""
        self._print(_STOPPING)

    def end(self, record: RunRecord) -> None:
        """The outcome."""
        counts = (
            (record.failed_rows, "failed row"),
            (record.quarantined, "quarantined object"),
            (self._progress.retries, "retry"),
            (self._progress.pixels_failed, "failed pixel"),
        )
        others = ", ".join(_count(number, what) for number, what in counts)
        self._print(f"{record.name}: {_outcome(record)}, {others}")

    def _print_if_due(self) -> None:
        if not self._every.due():
            return
        progress = self._progress
        total = progress.facts.rows if progress.facts else 0
        share = progress.rows_done / total if total else 1.0
        self._print(f"{progress.rows_done:,} of {total:,} objects ({share:.1%}), {pace(progress)}")

    def _print(self, line: str) -> None:
        # Of a wrapped line only the first part would carry the time.
        stamp = self._utc().strftime("%Y-%m-%dT%H:%M:%SZ")
        self._console.print(f"{stamp} {line}", markup=False, highlight=False, soft_wrap=True)


def pace(progress: Progress) -> str:
    """How the run goes, in one line; what matters most first, since a terminal may be narrow."""
    rate = progress.rows_per_second
    left = progress.seconds_left
    troubles = (
        (progress.failed_rows, "failed row"),
        (progress.quarantined, "quarantined object"),
        (progress.retries, "retry"),
        (progress.pixels_failed, "failed pixel"),
    )
    going = [
        f"{rate:,.{1 if rate < 100 else 0}f} objects/s",
        f"{_span(left)} left" if left is not None else "time left unknown",
        f"device {progress.device_busy:.0%} busy",
    ]
    parts = [
        *(going if progress.workers_now else ["waiting for workers"]),
        *(_count(number, what) for number, what in troubles if number),
        *([_count(progress.workers_now, "worker")] if progress.workers_now else []),
    ]
    return ", ".join(parts)


def _outcome(record: RunRecord) -> str:
    """How it ended, when, and with how much."""
    state = "not published" if record.complete else "not complete"
    of = "" if record.properties else f" of {record.input_rows:,}"
    return (
        f"{'published' if record.properties else state} after {_span(record.seconds)} (exit code "
        f"{record.exit_code}), {record.rows:,}{of} {_many(record.rows, 'object')}"
    )


def _retry(order: int, pixel: int, *, why: str, attempt: int, wait: float) -> str:
    return f"Norder={order} Npix={pixel}: attempt {attempt} in {wait:.0f} s, {_line(why)}"


def _failure(record: QuantumRecord) -> str:
    return f"Norder={record.order} Npix={record.pixel}: failed ({record.outcome}), " + _line(
        record.error
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _count(number: int, what: str) -> str:
    return f"{number:,} {_many(number, what)}"


def _many(number: int, what: str) -> str:
    if number == 1:
        return what
    return f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
