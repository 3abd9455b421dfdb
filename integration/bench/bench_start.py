"""Processor time until workers of this machine are ready: forked from one process, and each on its own.

    python integration/bench/bench_start.py [--workers 2] [--rounds 3]

Ready is a worker that has imported what a pixel needs. The driver has done so before, as a plan does,
and does not count. Each measurement is a process of its own; medians with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np


def measured(workers: int, *, forked: bool) -> tuple[float, float]:
    """Seconds of processors of all processes but this one, and seconds by the clock."""
    import psutil

    import skyvec.stage.plan  # noqa: F401
    from skyvec.stage import cluster

    if not forked:
        cluster._fork_server_runs = lambda _: False  # noqa: SLF001
    start = time.perf_counter()
    with cluster.dask_client(workers=workers) as client:
        client.run(ready)
        took = time.perf_counter() - start
        spent = [p.cpu_times() for p in psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in spent), took


def ready() -> None:
    """Import what a pixel needs."""
    import skyvec.stage.quantum  # noqa: F401


def main() -> None:
    """Print the table, or, as a child, one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("forked", "alone"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.workers, forked=arguments.one == "forked")))
        return
    found: dict[str, list[tuple[float, float]]] = {"forked": [], "alone": []}
    for _ in range(arguments.rounds):
        for how, rounds in found.items():
            words = [sys.executable, __file__, "--workers", str(arguments.workers), "--one", how]
            told = subprocess.run(words, check=True, capture_output=True, text=True)
            rounds.append(tuple(json.loads(told.stdout.splitlines()[-1])))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.rounds} rounds in turn\n")
    print(f"| {arguments.workers} workers | processor, s | clock, s |\n|---|---|---|")
    for how, rounds in found.items():
        shown = [
            f"{np.median(x):.1f} ({min(x):.1f}-{max(x):.1f})" for x in zip(*rounds, strict=True)
        ]
        print(f"| {how} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
