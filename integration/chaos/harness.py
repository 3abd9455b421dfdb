"""A chaos run: the stage is killed, stopped and starved from all sides, and must end as if nothing was.

An undisturbed run comes first. Then the same work is done by a Dask scheduler, workers and a driver
that is started anew, by the same command, whenever it ends with 20, 50, 130 or by a signal; a seeded
schedule of faults meets them. At last every file and row is compared with the undisturbed run's.

    python integration/chaos/harness.py --work .chaos --seeds 1 --paths plain,reuse,tokens
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import cluster
import moments
import world
from faults import FULL, KILL, MEMORY, MOMENT, STOP, Fault, schedule
from place import Place
from report import heard, table

PATHS = ("plain", "reuse", "tokens")
AGAIN = {20, 50, 130}
"""Exit codes after which docs/operating.md has the same command run again."""
TICK, LOOK = 0.02, 0.1
STALLED = 200
"""Seconds without a new leaf or a fault after which a run counts as hung."""
STARTS = 100
HEADROOM = 64 << 20
"""Bytes that a run may write beside its inputs."""
BALLAST = ".ballast"


def say(text: str, log: Path) -> None:
    """One line with the time, on the terminal and in a log."""
    line = f"{time.strftime('%H:%M:%S')} {text}"
    print(line, flush=True)
    with log.open("a") as file:
        file.write(line + "\n")


class Chaos:
    """One disturbed run.

    Parameters
    ----------
    collection
        To embed.
    path
        One of `PATHS`.
    faults
        What is to go wrong.
    home
        Folder for orders and logs, on another disk than the collection.
    """

    def __init__(
        self, collection: Path, path: str, faults: list[Fault], home: Path,
        *, seed: int, workers: int, pixels: int,
    ) -> None:  # fmt: skip
        self.collection, self.path, self.home, self.pixels = collection, path, home, pixels
        self.disk = collection.parent
        self.waiting = list(faults)
        self.armed: dict[int, Fault] = {}
        self.done: list[tuple[Fault, str]] = []
        self.undo: list[tuple[float, int, str, int]] = []
        self.draw = random.Random(f"{seed}-{path}")  # noqa: S311 - chance, no secret
        self.cluster = cluster.Cluster(
            home, workers=workers, pause=lambda: self.draw.uniform(0.1, 1)
        )
        self.driver, self.driver_born, self.leaves_before, self.starts = 0, 0.0, 0, 0
        self.ends: Counter[str] = Counter()
        self.due_since: float | None = None
        self.stirred, self.leaves, self.looked = time.monotonic(), 0, 0.0
        (home / "armed").mkdir(parents=True)
        (home / "taken").mkdir()
        os.environ[moments.HOME] = str(home)

    def run(self) -> None:
        """Until the driver ends with 0.

        Raises
        ------
        RuntimeError
            If it ends as it must not, or not at all.
        """
        try:
            while True:
                self.cluster.look()
                self._take_back()
                self._count_moments()
                if self._driver_finished():
                    break
                self._strike()
                self._watch()
                time.sleep(TICK)
        finally:
            while self.undo:
                self._take_back(all_of_it=True)
            if self.driver:
                os.kill(self.driver, signal.SIGKILL)
                os.waitpid(self.driver, 0)
            self.cluster.close()

    # ---- the driver

    def _driver_finished(self) -> bool:
        if not self.driver:
            self.starts += 1
            if self.starts > STARTS:
                raise RuntimeError(f"the driver was started {STARTS} times")
            log = self.home / f"driver-{self.starts}.log"
            self.driver = cluster.fork(self._drive, log)
            self.driver_born = time.monotonic()
            self._progress()
            self.leaves_before = self.leaves
            return False
        code = cluster.gone(self.driver)
        if code is None:
            return False
        self.driver = 0
        self.ends[signal.Signals(-code).name if code < 0 else str(code)] += 1
        self._say(f"driver {self.starts} ended with {code} at {self._progress():.0%}")
        if code == 0:
            return True
        if code > 0 and code not in AGAIN:
            raise RuntimeError(f"the driver ended with {code}: see driver-{self.starts}.log")
        return False

    def _drive(self) -> None:
        moments.install_in_driver()
        cluster.run_skyvec([
            *world.command(self.collection, self.path), "--scheduler", self.cluster.address,
            "--retries", "6", "--log-json", str(self.home / "events.jsonl"),
        ])  # fmt: skip

    # ---- progress

    def _progress(self) -> float:
        if time.monotonic() < self.looked + LOOK:
            return self.leaves / self.pixels
        self.looked = time.monotonic()
        dataset = self.collection / world.NAME / "dataset"
        leaves = sum(1 for _ in dataset.rglob("Npix=*.parquet"))
        if leaves != self.leaves:
            self.leaves, self.stirred = leaves, time.monotonic()
        return leaves / self.pixels

    def _watch(self) -> None:
        if time.monotonic() - self.stirred > STALLED:
            raise RuntimeError(f"nothing happened for {STALLED} s at {self._progress():.0%}")

    # ---- faults

    def _strike(self) -> None:
        """Let the next fault happen, if it is due and there is somebody to meet it."""
        if not self.waiting:
            return
        fault = self.waiting[0]
        if self.due_since is None:
            if self._progress() < fault.progress:
                return
            self.due_since = time.monotonic()
        if time.monotonic() < self.due_since + fault.delay:
            return
        if (met := self._meet(fault)) is None:
            return
        self.waiting.pop(0)
        self.due_since, self.stirred = None, time.monotonic()
        if fault.kind.what == MOMENT:
            self.armed[fault.number] = fault
        else:
            self._note(fault, met)

    def _meet(self, fault: Fault) -> str | None:
        """Do it; who was met, or None if nobody is there yet."""
        kind = fault.kind
        if kind.what == MOMENT:
            order = self.home / "armed" / f"{kind.moment}~{kind.signal}~{fault.number}"
            order.touch()
            return "armed"
        if kind.what == FULL:
            return self._fill(fault)
        pid = self._target(fault)
        if pid is None:
            return None
        if kind.what == KILL:
            os.kill(pid, signal.Signals[kind.signal])
        elif kind.what == STOP:
            os.kill(pid, signal.SIGSTOP)
            self._later(fault, "wake", pid)
        else:
            self._limit(fault, pid)
        return f"{kind.whom} {pid}"

    def _target(self, fault: Fault) -> int | None:
        now = time.monotonic()
        if fault.kind.whom == "driver":
            age = now - self.driver_born
            # One in five dies while it plans, the others once their run has made something.
            old = age > 1 if fault.draw < 0.2 else self.leaves > self.leaves_before or age > 30
            return self.driver if self.driver and old else None
        if fault.kind.whom == "scheduler":
            pid = self.cluster.scheduler
            return pid if pid and now - self.cluster.born[pid] > 2 else None
        hit = {pid for _, _, _, pid in self.undo}
        pids = [pid for pid in self.cluster.workers.values()
                if pid and pid not in hit and now - self.cluster.born[pid] > 2]  # fmt: skip
        return pids[int(fault.draw * len(pids))] if pids else None

    def _limit(self, fault: Fault, pid: int) -> None:
        """So little memory, or such small files, that what the worker does next fails."""
        if fault.kind.what == MEMORY:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
            room = int(fault.draw * (4 << 20))
            limit, which = pages * os.sysconf("SC_PAGE_SIZE") + room, resource.RLIMIT_AS
        else:
            limit, which = int(fault.draw * 6000), resource.RLIMIT_FSIZE
        _, hard = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (limit, hard))
        self._later(fault, fault.kind.what, pid)

    def _fill(self, fault: Fault) -> str | None:
        if (self.disk / BALLAST).exists():
            return None
        with (self.disk / BALLAST).open("wb") as file:
            free = shutil.disk_usage(self.disk).free - int(fault.draw * 8192)
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, free))
            except OSError:  # somebody wrote meanwhile
                (self.disk / BALLAST).unlink()
                return None
        self._later(fault, FULL, 0)
        return "disk"

    def _later(self, fault: Fault, what: str, pid: int) -> None:
        heapq.heappush(self.undo, (time.monotonic() + fault.lasting, fault.number, what, pid))

    def _take_back(self, *, all_of_it: bool = False) -> None:
        while self.undo and (all_of_it or self.undo[0][0] <= time.monotonic()):
            _, _, what, pid = heapq.heappop(self.undo)
            if what == FULL:
                (self.disk / BALLAST).unlink()
                continue
            if pid not in self.cluster.workers.values():
                continue  # died of it
            if what == "wake":
                os.kill(pid, signal.SIGCONT)
            else:
                which = resource.RLIMIT_AS if what == MEMORY else resource.RLIMIT_FSIZE
                _, hard = resource.prlimit(pid, which)
                resource.prlimit(pid, which, (hard, hard))

    def _count_moments(self) -> None:
        """Faults that a process has met by itself."""
        place = self.home / "taken.jsonl"
        if not self.armed or not place.is_file():
            return
        for line in place.read_text().splitlines():
            taken = json.loads(line)
            fault = self.armed.pop(taken["fault"], None)
            if fault:
                self.stirred = time.monotonic()
                self._note(fault, f"{fault.kind.whom} {taken['pid']}")

    def _note(self, fault: Fault, whom: str) -> None:
        self.done.append((fault, whom))
        self._say(f"{len(self.done):3} {fault.kind.name} -> {whom} at {self._progress():.0%}")

    def _say(self, text: str) -> None:
        say(f"  {text}", self.home.parent / "chaos.log")


def _in_a_child(work, log: Path) -> None:
    """Do what may start threads elsewhere: this process forks."""
    pid = cluster.fork(work, log)
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"ended with {code}: see {log}")


def _calm(work: Path, path: str) -> Path:
    """Collection with the extension of the undisturbed run; made once."""
    home = work / "calm" / path
    if not home.exists():
        draft = home.with_name(f"{path}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        _in_a_child(lambda: world.prepare(work / "world", path), work / "world.log")
        shutil.copytree(work / "world", draft)
        arguments = [*world.command(draft / world.LATER, path), "--workers", "0"]
        _in_a_child(lambda: cluster.run_skyvec(arguments), work / f"calm-{path}.log")
        draft.rename(home)
    return home / world.LATER


def storm(work: Path, path: str, seed: int, *, short: bool, workers: int) -> dict[str, object]:
    """One disturbed run and its verdict, as it is written to ``results/``."""
    calm = _calm(work, path)
    pixels = sum(1 for _ in (calm / world.NAME / "dataset").rglob("Npix=*.parquet"))
    size = sum(f.stat().st_size for f in (work / "world").rglob("*") if f.is_file())
    place = Place(work / "storm", size + HEADROOM)
    shutil.copytree(work / "world", place.folder / "world")
    home = work / "logs" / f"{path}-{seed}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    faults = schedule(seed, short=short, may_mount=place.mounted)
    disk = "tmpfs" if place.mounted else "no mount"
    say(
        f"{path}, seed {seed}: {len(faults)} faults over {pixels} pixels, {workers} workers, {disk}",
        home.parent / "chaos.log",
    )
    collection = place.folder / "world" / world.LATER
    chaos = Chaos(collection, path, faults, home, seed=seed, workers=workers, pixels=pixels)
    began = time.monotonic()
    chaos.run()
    seconds = time.monotonic() - began
    verdict = home / "verdict.json"

    def judged() -> None:
        from judge import judge

        found = judge(calm, collection)
        verdict.write_text(json.dumps({**asdict(found), "right": found.right}))

    _in_a_child(judged, home / "judge.log")
    by_kind = Counter(fault.kind.name for fault, _ in chaos.done)
    result = {
        "path": path, "seed": seed, "pixels": pixels, "workers": workers,
        "faults": len(chaos.done),
        "kills": sum(fault.kind.ends_a_process for fault, _ in chaos.done),
        "kills_by_victim": dict(Counter(
            fault.kind.whom for fault, _ in chaos.done if fault.kind.ends_a_process
        )),
        "by_kind": dict(sorted(by_kind.items())),
        "not_met": sorted(f.kind.name for f in [*chaos.waiting, *chaos.armed.values()]),
        "driver_starts": chaos.starts, "driver_ends": dict(chaos.ends),
        "worker_starts": chaos.cluster.starts["worker"],
        "scheduler_starts": chaos.cluster.starts["scheduler"],
        "heard": heard(home / "events.jsonl"), "tmpfs": place.mounted, "seconds": round(seconds, 1),
        **json.loads(verdict.read_text()),
    }  # fmt: skip
    if result["right"]:
        place.clear()
    return result


def main() -> int:
    """Run what is asked for and not yet done; 0 if every verdict is right."""
    options = argparse.ArgumentParser(description="Chaos runs of the stage.")
    options.add_argument("--work", type=Path, default=Path(".chaos"), help="folder, kept")
    options.add_argument("--paths", default=",".join(PATHS))
    options.add_argument("--seeds", default="1")
    options.add_argument("--short", action="store_true", help="few faults, few pixels")
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--pace", type=float, default=0.3, help="seconds added to each encoding")
    asked = options.parse_args()
    work = asked.work.resolve()
    (work / "results").mkdir(parents=True, exist_ok=True)
    os.environ[moments.PACE] = str(asked.pace)
    cluster.import_everything()
    if not (work / "world").exists():
        rows, order = (60, 4) if asked.short else (500, 5)
        _in_a_child(lambda: world.build(work / "world", rows=rows, order=order), work / "world.log")
    results = []
    for seed in map(int, asked.seeds.split(",")):
        for path in asked.paths.split(","):
            kept = work / "results" / f"{path}-{seed}.json"
            if not kept.exists():
                found = storm(work, path, seed, short=asked.short, workers=asked.workers)
                kept.write_text(json.dumps(found, indent=2))
            results.append(json.loads(kept.read_text()))
    print(text := table(results))
    (work / "RESULT.md").write_text(text)
    return 0 if all(result["right"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
