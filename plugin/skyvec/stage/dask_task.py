"""What Dask is handed for each pixel: bytes and numbers, and a function in a module without imports.

The scheduler unpickles every task that passes. Were the job in it as it is, each would cost the
scheduler milliseconds, and the first one 6 s without an answer to anybody, to import torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyvec.stage.job import Job
    from skyvec.stage.quantum_record import QuantumRecord


def packed(job: Job) -> bytes:
    """A job as every task carries it: some kilobytes, pickled once."""
    from distributed.protocol.pickle import dumps

    return bytes(dumps(job))


def run_task(
    job: bytes,
    topic: str,
    order: int,
    pixel: int,
    *,
    attempt: int,
    batch_rows: int,
    beat_seconds: float,
) -> QuantumRecord:
    """Run one pixel on the Dask worker that this is; its beats go to the driver as events.

    Raises
    ------
    Exception
        As `skyvec.stage.quantum.run_quantum`.
    """
    from dataclasses import asdict

    from distributed import get_worker

    from skyvec.stage.quantum import run_quantum
    from skyvec_schemas.errors import WrongNumbersError

    worker = get_worker()
    try:
        return run_quantum(
            _unpacked(job), order, pixel, attempt=attempt, batch_rows=batch_rows,
            tell=lambda beat: worker.log_event(topic, asdict(beat)),  # Dask sends plain values only
            beat_seconds=beat_seconds, worker=str(worker.name),
        )  # fmt: skip
    except WrongNumbersError:
        # It fails within milliseconds and would soon have spoilt every pixel's attempts.
        worker.loop.add_callback(worker.close_gracefully, reason="skyvec-wrong-numbers")
        raise


@lru_cache(maxsize=1)
def _unpacked(job: bytes) -> Job:
    from distributed.protocol.pickle import loads

    unpacked: Job = loads(job)
    return unpacked
