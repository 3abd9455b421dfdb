"""A real Dask scheduler with workers by the hundred, whose pixels sleep.

Imported by the workers too, so nothing heavy: they would import torch for nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skyvec.stage.quantum_record import STEPS, QuantumRecord

ORDER = 7
"""HEALPix order with 196,608 pixels, as a release of 200,000 has."""
PER_PROCESS = 250
"""Workers in one process."""
HOME = Path(__file__).parents[1]


def record_of(pixel: int) -> QuantumRecord:
    """What a worker says of a pixel of 5,000 objects."""
    return QuantumRecord(
        order=ORDER, pixel=pixel, outcome="done", fingerprint=f"{pixel:064x}", rows=5000,
        partial_rows=3, flags={"image_masked": 3, "scalar_missing": 7},
        skymap={4 * pixel + part: 1250 for part in range(4)},
        seconds=dict.fromkeys(STEPS, 1.2345), wall_seconds=12.3456, batch_rows=128,
        bytes=7_700_000, digest=f"{pixel:064x}", golden="f" * 64, peak_memory=10**9,
        host="node0123", worker="SLURMCluster-123", device="cuda:0",
        started="2026-11-22T12:00:00.000+00:00",
    )  # fmt: skip


@contextmanager
def sleeping_cluster(workers: int, seconds: float, beats: int) -> Iterator[tuple[str, int]]:
    """Address of a scheduler with so many workers, and its process id."""
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        command = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                   "--no-dashboard", "--scheduler-file", str(file)]  # fmt: skip
        try:
            processes.append(started(command))
            while not file.exists():
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            for start in range(0, workers, PER_PROCESS):
                count = min(PER_PROCESS, workers - start)
                several = started(
                    ["-m", "cluster.workers", address, *map(str, (count, seconds, beats))]
                )
                processes.append(several)
                several.stdout.readline()  # they are there
            yield address, processes[0].pid
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()


def started(arguments: list[str]) -> subprocess.Popen:
    """A Python process that says on standard output when it is ready."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
