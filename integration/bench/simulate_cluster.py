"""A thousand workers on one machine: what a large run costs the scheduler, the driver and the disk.

The scheduler, the pool, the driver, the tasks, the records and the files are those of a run; only
the workers are not: `distributed.Worker` objects by the hundred in a few processes, whose pixels
sleep. What is measured is CPU time for each task, in the scheduler's and the driver's own process,
so that it holds on a busy machine; what a faster run could do is computed from it. For
docs/dask.md:

    python integration/bench/simulate_cluster.py
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from cluster.sleeping import ORDER, record_of, sleeping_cluster
from distributed import Client
from hats.pixel_math.healpix_pixel import HealpixPixel
from rich.console import Console
from rich.table import Table

from skyvec.mock.survey import write_mock_survey
from skyvec.stage.dask_task import packed
from skyvec.stage.driver import Patience, drive
from skyvec.stage.monitor import Beat, Monitor
from skyvec.stage.output import Output, fingerprints
from skyvec.stage.plan import Plan, plan
from skyvec.stage.pools import OnDask
from skyvec.stage.quarantine import finished_and_whole
from skyvec.stage.run import run

LEAF_BYTES = 1 << 20
CHANCE = random.Random(5)  # noqa: S311


@dataclass(kw_only=True)
class Load:
    """What a run cost."""

    tasks: int
    wall: float
    scheduler: float
    """CPU seconds."""
    driver: float
    idle: float
    """CPU seconds per second of the scheduler without tasks."""
    memory: tuple[float, float]
    """Resident MB of scheduler and driver at the end, over the beginning."""
    window: int
    beats: int


class Counts(Monitor):
    """How many beats came."""

    beats = 0

    def beat(self, beat: Beat) -> None:  # noqa: ARG002
        self.beats += 1


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def simulate(
    ready: Plan, *, workers: int, tasks: int, seconds: float, beats: int = 0, gpu: bool = False
) -> Load:
    """Drive sleeping pixels through a real scheduler."""
    pixels = tuple(HealpixPixel(ORDER, number) for number in range(tasks))
    with sleeping_cluster(workers, seconds, beats) as (address, pid), Client(address) as client:
        scheduler, driver = psutil.Process(pid), psutil.Process()
        before = cpu(scheduler)
        time.sleep(10)
        idle = (cpu(scheduler) - before) / 10
        pool = OnDask(ready.job, client, {"GPU": 1} if gpu else None)
        heard = Counts()
        memory = [process.memory_info().rss for process in (scheduler, driver)]
        spent = [cpu(scheduler), cpu(driver)]
        started = time.monotonic()
        done = window = 0
        for _ in drive(replace(ready, todo=pixels), pool, heard, Patience()):
            done, window = done + 1, max(window, pool.window)
            if done % 1000 == 0:
                now = time.monotonic() - started
                print(f"{done} pixels after {now:.0f} s", file=sys.stderr, flush=True)
        wall = time.monotonic() - started
        spent = [cpu(p) - s for p, s in zip((scheduler, driver), spent, strict=True)]
        more = [p.memory_info().rss - m for p, m in zip((scheduler, driver), memory, strict=True)]
        pool.close()
    assert done == tasks
    return Load(
        tasks=tasks, wall=wall, scheduler=spent[0], driver=spent[1], idle=idle,
        memory=(more[0] / 1e6, more[1] / 1e6), window=window, beats=heard.beats,
    )  # fmt: skip


# ---- records and files


@dataclass(kw_only=True)
class Cost:
    """Of one step."""

    name: str
    count: int
    wall: float
    cpu: float
    memory: float
    """Resident MB that it added."""


def measured(name: str, count: int, work: Callable[[], object]) -> tuple[Cost, object]:
    rss, spent, started = psutil.Process().memory_info().rss, time.process_time(), time.monotonic()
    result = work()
    return Cost(
        name=name, count=count, wall=time.monotonic() - started, cpu=time.process_time() - spent,
        memory=(psutil.Process().memory_info().rss - rss) / 1e6,
    ), result  # fmt: skip


def record_costs(folder: Path, pixels: int) -> Iterator[Cost]:
    """Records of a release: written into the table, read by the next run, looked up by a worker."""
    output = Output(folder)
    cost, _ = measured("gather into one table", pixels,
                       lambda: output.gather(record_of(p) for p in range(pixels)))  # fmt: skip
    yield cost
    table = output.root / "skyvec/quanta.parquet"
    yield Cost(name=f"  its size: {table.stat().st_size / 1e6:.1f} MB", count=0, wall=0, cpu=0,
               memory=0)  # fmt: skip
    cost, every = measured("read for a resumed run", pixels, output.records)
    assert len(every) == pixels
    del every
    yield cost
    cost, found = measured("fingerprints alone (--tokens)", pixels,
                           lambda: fingerprints(str(folder), "run"))  # fmt: skip
    assert len(found) == pixels
    yield cost
    places = [HealpixPixel(ORDER, CHANCE.randrange(pixels)) for _ in range(50)]
    cost, _ = measured("records near a pixel (--reuse)", len(places),
                       lambda: [output.gathered(place) for place in places])  # fmt: skip
    yield cost


def commit_costs(folder: Path, count: int) -> Iterator[Cost]:
    """A record and a leaf, each written aside and renamed; the leaf is synchronized with the disk."""
    output = Output(folder)
    records = [record_of(number) for number in range(count)]
    cost, _ = measured("write a record", count, lambda: [output.save(r) for r in records])
    yield cost
    cost, _ = measured("read it again, 16 threads", count, lambda: list(output.fresh()))
    yield cost
    content = CHANCE.randbytes(LEAF_BYTES)

    def leaf(number: int) -> None:
        with output.staged(HealpixPixel(ORDER, number)) as staged:
            staged.write_bytes(content)
            output.commit(staged, HealpixPixel(ORDER, number))

    cost, _ = measured("commit a leaf of 1 MiB", 200, lambda: [leaf(n) for n in range(200)])
    yield cost


def resume_costs(ready: Plan, times: int) -> Iterator[Cost]:
    """Planning a run that is done: compare input and output of each pixel with its record."""
    run(ready.release.path, name=ready.name, out=Path(ready.job.output).parent, workers=0)
    output, pixels = Output(ready.job.output), ready.pixels
    records, count = list(output.records().values()), times * len(ready.pixels)
    cost, _ = measured(
        "identity of the input (1 footer)", count,
        lambda: [ready.job.identity(ready.release, p) for _ in range(times) for p in pixels],
    )  # fmt: skip
    yield cost
    cost, _ = measured(
        "output is whole (1 footer)", count,
        lambda: [finished_and_whole(output, r) for _ in range(times) for r in records],
    )  # fmt: skip
    yield cost


# ---- tables


def load_table(loads: dict[str, Load], workers: int) -> Table:
    table = Table("", *loads, title=f"{workers} workers")

    def row(name: str, value: Callable[[Load], str]) -> None:
        table.add_row(name, *(value(load) for load in loads.values()))

    row("pixels", lambda load: f"{load.tasks:,}")
    row("most tasks in the scheduler", lambda load: f"{load.window:,}")
    row("wall s", lambda load: f"{load.wall:.0f}")
    row("scheduler, CPU without tasks", lambda load: f"{load.idle:.0%}")
    row("scheduler, CPU ms per pixel", lambda load: f"{1e3 * net(load) / load.tasks:.2f}")
    row("driver, CPU ms per pixel", lambda load: f"{1e3 * load.driver / load.tasks:.2f}")
    row("scheduler, MB more", lambda load: f"{load.memory[0]:.0f}")
    row("driver, MB more", lambda load: f"{load.memory[1]:.0f}")
    row("beats", lambda load: f"{load.beats:,}")
    row("ceiling, pixels/s", lambda load: f"{ceiling(load):.0f}")
    row("shortest mean pixel, s", lambda load: f"{workers / ceiling(load):.1f}")
    return table


def net(load: Load) -> float:
    """CPU seconds of the scheduler for the tasks: without its share for idle workers."""
    return max(0.0, load.scheduler - load.idle * load.wall)


def ceiling(load: Load) -> float:
    """Pixels per second that the busier of scheduler and driver can carry, one core each."""
    scheduler = max(0.05, 1 - load.idle) / max(net(load) / load.tasks, 1e-9)
    return min(scheduler, load.tasks / load.driver)


def cost_table(costs: list[Cost]) -> Table:
    table = Table("", "count", "wall s", "CPU s", "CPU ms each", "MB more")
    for cost in costs:
        each = f"{1e3 * cost.cpu / cost.count:.3f}" if cost.count else ""
        numbers = (f"{cost.wall:.2f}", f"{cost.cpu:.2f}", each, f"{cost.memory:.0f}")
        table.add_row(cost.name, *(
            (f"{cost.count:,}", *numbers) if cost.count else [""] * 5))  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=4.0, help="mean of a pixel")
    parser.add_argument("--pixels", type=int, default=196_608)
    parser.add_argument("--only", choices=("cluster", "files"))
    parser.add_argument("--loads", nargs="*", choices=("plain", "GPU=1", "5 beats each"))
    given = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="skyvec-simulation-") as folder:
        home = Path(folder)
        sky = write_mock_survey(home / "sky", rows=120, seed=5, workers=1)
        ready = plan(sky, out=home / "out")
        console.print(f"a task's job: {len(packed(ready.job)):,} bytes, {os.cpu_count()} cores")
        if given.only != "files":
            facts = {"workers": given.workers, "tasks": given.tasks, "seconds": given.seconds}
            kinds = {"plain": {}, "GPU=1": {"gpu": True}, "5 beats each": {"beats": 5}}
            for kind in given.loads or kinds:
                console.print(
                    load_table({kind: simulate(ready, **facts, **kinds[kind])}, given.workers)
                )
        if given.only != "cluster":
            costs = [*record_costs(home / "records", given.pixels),
                     *commit_costs(home / "commits", 5000), *resume_costs(ready, 40)]  # fmt: skip
            console.print(cost_table(costs))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        console.print(f"largest resident size of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
