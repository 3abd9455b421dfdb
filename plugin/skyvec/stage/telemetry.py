"""What operators' programs read of a run: a file of events, and metrics for Prometheus.

Both are local files, since a run opens no port: a log shipper and the textfile collector of
Prometheus' node_exporter pick them up.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyvec.stage.monitor import Beat, Monitor, RunFacts
from skyvec.stage.progress import Clock, Every, Progress
from skyvec.stage.quantum_record import STEPS, QuantumRecord
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from skyvec.stage.run_record import RunRecord

_FIRST_KEY = b'{"time": '
_ONE_WRITE = 0.2
"""Seconds in which a line is surely written."""
OUTCOMES = ("done", "empty", "data", "lost")
"""Ways in which a pixel ends; see `QuantumRecord.outcome`."""
METRICS = {
    "skyvec_rows_total": "Rows of the pixels that this run finished.",
    "skyvec_rows_failed_total": "Of these, rows whose vector is null.",
    "skyvec_rows_quarantined_total": "Rows and objects that this run listed as quarantined.",
    "skyvec_retries_total": "Times that a pixel was tried again.",
    "skyvec_step_seconds_total": "Worker-seconds by step, void tries included.",
    "skyvec_rows_planned": "Rows of the pixels chosen, done before or not.",
    "skyvec_rows_earlier": "Of these, rows that an earlier run finished.",
    "skyvec_rows_running": "Rows done in pixels that have not ended.",
    "skyvec_pixels": "HEALPix pixels by outcome; earlier: done before; open: not ended.",
    "skyvec_rows_per_second": "Rows worked per second in the last minute.",
    "skyvec_device_busy_ratio": "Share of worker time in the last minute in tokenize and encode.",
    "skyvec_workers": "Workers there now.",
    "skyvec_run_complete": "1 if every pixel is done and the extension is published, else 0.",
    "skyvec_run_start_timestamp_seconds": "When the run began, since 1970.",
    "skyvec_run_end_timestamp_seconds": "When the run ended, since 1970; 0 while it goes on.",
}
"""Names and meanings; those that end in ``_total`` are counters, the others gauges."""
_LABELS = {"skyvec_pixels": "outcome", "skyvec_step_seconds_total": "step"}
"""Labels beside ``extension``."""


def _utc() -> datetime:
    return datetime.now(UTC)


class JsonLines(Monitor):
    """Appends one JSON object for each event to a file; every line is written at once.

    Beats, of which a large run has hundreds a second, are summed up in an event ``progress``.

    Parameters
    ----------
    path
        Local file; several runs may follow each other in it.
    every
        Seconds between two events ``progress``, at least.
    utc, clock
        The time of day, and monotonic seconds.

    Raises
    ------
    ConfigurationError
        If the file cannot be written, or holds something else.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: float = 30.0,
        utc: Callable[[], datetime] = _utc,
        clock: Clock = time.monotonic,
    ) -> None:
        self.path, self._utc = Path(path).absolute(), utc
        self._progress, self._every = Progress(clock=clock), Every(every, clock=clock)
        self._run: dict[str, str] = {"run_id": "", "extension": ""}
        try:
            _cut_torn_line(self.path)
            os.close(self._open())
        except OSError as problem:
            raise _unwritable(self.path, problem) from problem

    def begin(self, facts: RunFacts) -> None:
        """Event ``begin``: the facts of the run."""
        self._progress.begin(facts)
        self._run = {"run_id": facts.run_id, "extension": facts.name}
        self._write("begin", _without(asdict(facts), "run_id", "name"))

    def workers(self, count: int) -> None:
        """Event ``workers`` where their number changed."""
        if count != self._progress.workers_now:
            self._write("workers", {"count": count})
        self._progress.workers(count)
        self._write_progress_if_due()

    def beat(self, beat: Beat) -> None:
        """Event ``progress``, now and then."""
        self._progress.beat(beat)
        self._write_progress_if_due()

    def retry(self, order: int, pixel: int, *, why: str, attempt: int, wait: float) -> None:
        """Event ``retry``."""
        self._progress.retry(order, pixel)
        facts = {"order": order, "pixel": pixel, "why": why, "attempt": attempt, "wait": wait}
        self._write("retry", facts)

    def pixel(self, record: QuantumRecord) -> None:
        """Event ``pixel``: the whole record but its sky map."""
        self._progress.pixel(record)
        self._write("pixel", _without(asdict(replace(record, skymap={})), "skymap"))

    def end(self, record: RunRecord) -> None:
        """Event ``end``: the sums over this run and earlier ones, and how it stands."""
        facts = {
            "complete": record.complete,
            "published": None if record.properties is None else str(record.properties),
            "exit_code": record.exit_code,
            "stopped": record.stopped,
            "rows": record.rows,
            "failed_rows": record.failed_rows,
            "partial_rows": record.partial_rows,
            "quarantined": record.quarantined,
            "pixels": {**self._progress.outcomes, "earlier": record.skipped},
            "retries": self._progress.retries,
            "problems": len(record.problems),
            "seconds": round(record.seconds, 3),
        }
        self._write("end", facts)

    def _write_progress_if_due(self) -> None:
        if not self._every.due():
            return
        progress, left = self._progress, self._progress.seconds_left
        facts = {
            "rows_done": progress.rows_done,
            "failed_rows": progress.failed_rows,
            "quarantined": progress.quarantined,
            "pixels_done": progress.pixels_done,
            "pixels_failed": progress.pixels_failed,
            "retries": progress.retries,
            "workers": progress.workers_now,
            "rows_per_second": round(progress.rows_per_second, 3),
            "device_busy": round(progress.device_busy, 4),
            "seconds_left": None if left is None else round(left),
        }
        self._write("progress", facts)

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        now = self._utc().isoformat(timespec="milliseconds")
        line = {"time": now, **self._run, "event": event, **facts}
        whole = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        # One write to a file opened for appending: no other line comes between, and nothing
        # waits in a buffer for a process that is killed.
        descriptor = self._open()
        try:
            written = os.write(descriptor, whole)
        finally:
            os.close(descriptor)
        if written < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _cut_torn_line(path: Path) -> None:
    """Take away what a full disk or a crash left of a last line; refuse a file of another kind."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        if not _FIRST_KEY.startswith(file.read(len(_FIRST_KEY))):
            raise ConfigurationError(
                "holds something else than events",
                where=str(path),
                remedy="Name a new file for the events",
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            size, end = len(whole), whole.rfind(b"\n") + 1
        if end < size:
            time.sleep(_ONE_WRITE)  # another run may be writing this very line
            if file.seek(0, os.SEEK_END) == size:
                file.truncate(end)


def _without(facts: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in keys}


def _finite(value: Any) -> Any:  # noqa: ANN401
    """NaN and infinity as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Prometheus(Monitor):
    """Keeps a ``.prom`` file for the textfile collector of node_exporter.

    The file is written aside and renamed, so that no scrape sees half of it. Counters start at zero
    with each run and never fall; what a retry can void is told by gauges.

    Parameters
    ----------
    path
        Local file that ends in ``.prom``, in a folder that node_exporter watches.
    every
        Seconds between two writes, at least; begin and end of a run are always written.
    clock, wall
        Monotonic seconds, and seconds since 1970.

    Raises
    ------
    ConfigurationError
        If the file cannot be written or would not be read, or ``prometheus_client`` is absent.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: float = 15.0,
        clock: Clock = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path, self._wall = Path(path).absolute(), wall
        self._progress, self._every = Progress(clock=clock), Every(every, clock=clock)
        self._started = self._ended = 0.0
        self._complete = False
        if self.path.suffix != ".prom":
            raise ConfigurationError(
                "would not be read by node_exporter",
                where=str(self.path),
                remedy="Name a file that ends in .prom",
            )
        if not os.access(self.path.parent, os.W_OK):
            raise _unwritable(self.path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        if find_spec("prometheus_client") is None:
            raise ConfigurationError(
                "metrics need the package prometheus_client",
                where=str(self.path),
                remedy="Run `pip install 'skyvec[operators]'`",
            )

    def begin(self, facts: RunFacts) -> None:
        """The run starts; the file is written."""
        self._progress.begin(facts)
        self._started = self._wall()
        self._write()

    def workers(self, count: int) -> None:
        """So many workers are there now."""
        self._progress.workers(count)
        self._write_if_due()

    def beat(self, beat: Beat) -> None:
        """A pixel goes on."""
        self._progress.beat(beat)
        self._write_if_due()

    def retry(self, order: int, pixel: int, **_: object) -> None:
        """A pixel is tried again."""
        self._progress.retry(order, pixel)
        self._write_if_due()

    def pixel(self, record: QuantumRecord) -> None:
        """A pixel ended."""
        self._progress.pixel(record)
        self._write_if_due()

    def end(self, record: RunRecord) -> None:
        """The run ended; the file is written for the last time."""
        self._ended, self._complete = self._wall(), record.properties is not None
        self._write()

    def collect(self) -> Iterator[Metric]:
        """`METRICS` as they are now; the library's ``Collector`` protocol."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        if (facts := self._progress.facts) is None:
            return
        values = self._values(facts)
        for name, text in METRICS.items():
            labels = ["extension", *([_LABELS[name]] if name in _LABELS else [])]
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, text, labels=labels)
            value = values[name]
            for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                family.add_metric([facts.name, key][: len(labels)], number)
            yield family

    def _values(self, facts: RunFacts) -> dict[str, float | dict[str, float]]:
        progress, over = self._progress, bool(self._ended)
        return {
            "skyvec_rows_total": progress.rows_written,
            "skyvec_rows_failed_total": progress.failed_rows_written,
            "skyvec_rows_quarantined_total": progress.quarantined,
            "skyvec_retries_total": progress.retries,
            "skyvec_step_seconds_total": {step: progress.step_seconds[step] for step in STEPS},
            "skyvec_rows_planned": facts.rows,
            "skyvec_rows_earlier": facts.rows_done,
            "skyvec_rows_running": progress.rows_running,
            "skyvec_pixels": {
                **{name: progress.outcomes[name] for name in OUTCOMES},
                "earlier": facts.pixels_done,
                "open": progress.pixels_open,
            },
            "skyvec_rows_per_second": 0 if over else progress.rows_per_second,
            "skyvec_device_busy_ratio": 0 if over else progress.device_busy,
            "skyvec_workers": 0 if over else progress.workers_now,
            "skyvec_run_complete": self._complete,
            "skyvec_run_start_timestamp_seconds": self._started,
            "skyvec_run_end_timestamp_seconds": self._ended,
        }

    def _write_if_due(self) -> None:
        if self._every.due():
            self._write()

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        write_to_textfile(str(self.path), self)


def _unwritable(path: Path, problem: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot be written ({problem.strerror})",
        where=str(path),
        remedy="Name a file in a folder that exists and is writable",
    )
