"""What people see of a run, in a terminal and in a log."""

import io
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from skyvec.commands.monitors import LogMonitor, TerminalMonitor, console_monitor
from skyvec.stage.monitor import Beat, RunFacts
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.run_record import RunRecord
from skyvec_schemas.provenance import Provenance

FACTS = RunFacts(
    run_id="run-1", name="tiny_v1", output="/data/sky/tiny_v1", rows=10_000, pixels=10,
    rows_done=2000, pixels_done=2, device="cpu",
)  # fmt: skip
DONE = QuantumRecord(order=1, pixel=3, outcome="done", rows=900, failed_rows=4, quarantined=1)
LOST = QuantumRecord(
    order=1, pixel=4, outcome="lost", error="[dataset/a.parquet]: cut\noff [/]. Mend it"
)


def run_record(*quanta):
    done = all(each.finished for each in quanta)
    return RunRecord(
        name="tiny_v1", source=Path("/data/sky"), output=Path("/data/sky/tiny_v1"),
        properties=Path("/data/sky/tiny_v1.properties") if done else None,
        provenance=Provenance(
            product="embedding", model="tiny", model_digest="0", precision="float32", device="cpu",
            numerics_version=1, vector_type="float16", survey="legacysurvey", inputs=(),
            skyvec_version="0",
        ),
        quanta=quanta, pixels=len(quanta), input_rows=10_000, skipped=2, seconds=3725.4,
    )  # fmt: skip


def beat(pixel, rows, *, bad=0, **seconds):
    return Beat(order=1, pixel=pixel, rows=rows, failed_rows=bad, worker="w", seconds=seconds)


class Clock:
    """Seconds, and the time of day that goes with them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def utc(self):
        return datetime(2026, 11, 22, 2, tzinfo=UTC) + timedelta(seconds=self.now)


@pytest.fixture
def clock():
    return Clock()


LOG = """\
2026-11-22T02:00:00Z tiny_v1: 10,000 objects in 10 pixels (2,000 in 2 done before); \
run run-1 on cpu into /data/sky/tiny_v1
2026-11-22T02:00:40Z 2,800 of 10,000 objects (28.0%), 20.0 objects/s, 0:06:00 left, \
device 75% busy, 2 failed rows, 4 workers
2026-11-22T02:00:40Z Norder=1 Npix=4: attempt 2 in 4 s, KilledWorker: gone for good
2026-11-22T02:00:41Z Norder=1 Npix=4: failed (lost), [dataset/a.parquet]: cut off [/]. Mend it
2026-11-22T02:00:41Z stopping; what is done stays
2026-11-22T02:00:41Z tiny_v1: not complete after 1:02:05 (exit code 20), 900 of 10,000 objects, \
4 failed rows, 1 quarantined object, 1 retry, 1 failed pixel
"""


def a_log(clock, **options):
    console = Console(file=io.StringIO(), width=60)
    return LogMonitor(console, utc=clock.utc, clock=clock, **options), console.file


def test_a_log_tells_of_begin_pace_troubles_and_end(clock):
    log, file = a_log(clock)
    log.begin(FACTS)
    log.workers(4)
    clock.now += 40
    log.beat(beat(3, 800, bad=2, encode=120.0))
    log.retry(1, 4, why="KilledWorker: gone\nfor good", attempt=2, wait=4.0)
    clock.now += 1
    log.pixel(DONE)
    log.pixel(LOST)
    log.stopping()
    log.end(run_record(DONE, LOST))
    assert file.getvalue() == LOG


def test_a_log_that_ends_well_says_so(clock):
    log, file = a_log(clock)
    log.begin(FACTS)
    log.end(run_record(DONE))
    assert "tiny_v1: published after 1:02:05 (exit code 0)" in file.getvalue()


def test_a_log_speaks_at_most_every_so_often(clock):
    log, file = a_log(clock, every=30)
    log.begin(FACTS)
    for _ in range(300):
        clock.now += 1
        log.beat(beat(3, 1))
        log.workers(4)
    assert len(file.getvalue().splitlines()) == 1 + 300 // 30


def test_a_log_speaks_while_no_worker_is_there(clock):
    log, file = a_log(clock)
    log.begin(FACTS)
    clock.now += 31
    log.workers(0)
    assert "2,000 of 10,000 objects (20.0%), waiting for workers\n" in file.getvalue()


def test_every_line_of_a_log_has_its_time_and_no_colour(clock):
    console = Console(file=io.StringIO(), width=40, force_terminal=True)
    log = LogMonitor(console, utc=clock.utc, clock=clock)
    log.begin(FACTS)
    log.pixel(LOST)
    stamp = re.compile(r"2026-11-22T02:00:\d\dZ [^\x1b]+")
    assert all(stamp.fullmatch(line) for line in console.file.getvalue().splitlines())


def a_terminal(width=120):
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def seen_in(monitor, console):
    """What the terminal shows now."""
    page = Console(file=io.StringIO(), width=console.width)
    page.print(monitor._bars.get_renderable())
    return page.file.getvalue()


def test_a_terminal_shows_how_the_run_goes(clock):
    console = a_terminal()
    monitor = TerminalMonitor(console, clock=clock)
    monitor.begin(FACTS)
    try:
        assert "2,000 of 10,000 objects" in seen_in(monitor, console)
        monitor.workers(4)
        clock.now += 40
        monitor.beat(beat(3, 800, bad=2, encode=120.0))
        bar, facts = seen_in(monitor, console).splitlines()
        assert bar.startswith("tiny_v1 ")
        assert bar.rstrip().endswith("28% 2,800 of 10,000 objects")
        assert facts.startswith("20.0 objects/s, 0:06:00 left, device 75% busy, 2 failed rows")
        monitor.retry(1, 3, why="KilledWorker", attempt=2, wait=1.0)
        bar, facts, trouble = seen_in(monitor, console).splitlines()
        assert "2,000 of 10,000 objects" in bar
        assert "1 retry" in facts
        assert trouble.startswith("Norder=1 Npix=3: attempt 2 in 1 s, KilledWorker")
        monitor.pixel(DONE)
        monitor.pixel(LOST)
        bar, facts, trouble = seen_in(monitor, console).splitlines()
        assert "2,900 of 10,000 objects" in bar
        assert "1 quarantined object, 1 retry, 1 failed pixel" in facts
        assert trouble.startswith("Norder=1 Npix=4: failed (lost), [dataset/a.parquet]: cut off")
    finally:
        monitor.end(run_record(DONE, LOST))


def test_a_narrow_terminal_gets_no_more_lines(clock):
    console = a_terminal(width=50)
    monitor = TerminalMonitor(console, clock=clock)
    monitor.begin(FACTS)
    monitor.pixel(LOST)
    monitor.close()
    lines = seen_in(monitor, console).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 50


def test_a_terminal_is_itself_again_after_the_run():
    console = a_terminal()
    monitor = TerminalMonitor(console)
    monitor.begin(FACTS)
    monitor.pixel(LOST)
    monitor.end(run_record(LOST))
    monitor.close()
    shown = console.file.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor, away and back
    assert shown.endswith("\x1b[1A\x1b[2K" * 3)  # the three lines are wiped


def test_a_terminal_is_itself_again_after_an_error():
    console = a_terminal()

    def interrupted():
        with console_monitor(console) as monitor:
            assert isinstance(monitor, TerminalMonitor)
            monitor.begin(FACTS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert console.file.getvalue().count("\x1b[?25h") == 1


def test_a_terminal_that_never_saw_the_run_begin_stays_clean():
    console = a_terminal()
    with console_monitor(console):
        pass
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("term", ["dumb", None])
def test_where_nothing_can_be_redrawn_there_is_a_log(term):
    environ = {"TERM": term} if term else {}
    console = Console(file=io.StringIO(), force_terminal=bool(term), _environ=environ)
    with console_monitor(console) as monitor:
        assert isinstance(monitor, LogMonitor)


def test_a_log_that_nobody_reads_any_more_does_not_stop_a_run():
    code = f"""
import time
from rich.console import Console
from skyvec.commands.monitors import LogMonitor
from skyvec.stage.monitor import RunFacts, monitors
several = monitors([LogMonitor(Console())])
facts = {FACTS!r}
for _ in range(100):
    several.begin(facts)
    time.sleep(0.001)
raise SystemExit(7)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline().startswith("20")
        child.stdout.close()
        said = child.stderr.read()
    assert child.returncode == 7
    assert said.count("LogMonitor is switched off") == said.count("\n") == 1
