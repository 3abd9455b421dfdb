"""Many Dask workers in one process: ADDRESS COUNT SECONDS BEATS. Pixels sleep; nothing else is faked."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from types import SimpleNamespace

import dask
from cluster.sleeping import STEPS, record_of
from distributed import Worker

from skyvec.stage import dask_task

QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "5s",
}
"""What a thousand workers would each do on their own machine, and share here."""
AT_ONCE = 25
CHANCE = random.Random(5)  # noqa: S311


async def serve(address: str, count: int) -> None:
    """Run the workers until the process is killed."""
    workers: list[Worker] = []
    while len(workers) < count:
        several = [
            Worker(address, nthreads=1, memory_limit=0, dashboard=False, resources={"GPU": 1})
            for _ in range(min(AT_ONCE, count - len(workers)))
        ]
        workers += await asyncio.gather(*several)
    print("ready", flush=True)
    await asyncio.gather(*(worker.finished() for worker in workers))


def main() -> None:
    """Put sleep in the place of work, and serve."""
    address, count, seconds, beats = sys.argv[1:]

    def sleep(_job, order, pixel, *, tell, **_):
        from skyvec.stage.monitor import Beat

        for _ in range(int(beats)):
            tell(Beat(order=order, pixel=pixel, rows=128, failed_rows=0, worker="node0123",
                      seconds=dict.fromkeys(STEPS, 0.1234)))  # fmt: skip
        time.sleep(float(seconds) * CHANCE.uniform(0.5, 1.5))
        return record_of(pixel)

    # The stage itself would bring torch, which nothing here computes with.
    sys.modules["skyvec.stage.quantum"] = SimpleNamespace(run_quantum=sleep)
    dask_task._unpacked = lambda job: job  # noqa: SLF001
    logging.getLogger("distributed").setLevel("CRITICAL")
    with dask.config.set(QUIET):
        asyncio.run(serve(address, int(count)))


if __name__ == "__main__":
    main()
