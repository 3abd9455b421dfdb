"""Where the work runs: the caller's Dask client, or a cluster on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process
from typing import TYPE_CHECKING

from skyvec_schemas.errors import InfrastructureError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

_GUARD = (
    'In a script, put the calls under `if __name__ == "__main__":`, since every worker imports it; '
    "or use workers=0"
)


_KEEP_MEMORY = {
    f"distributed.nanny.pre-spawn-environ.MALLOC_{kind}_THRESHOLD_": 1 << 28
    for kind in ("TRIM", "MMAP")
}
"""Dask has workers return memory from 64 kB on; torch's buffers then fault in anew at every batch,
which cost 1.5 times the wall time of an embedding run."""


@contextmanager
def dask_client(
    client: Client | None = None, workers: int | None = None, *, dashboard: bool = False
) -> Iterator[Client]:
    """The caller's client, or one to a cluster on this machine that ends with the block.

    One thread per process: torch uses its own, and their number is part of promised bits.
    """
    if client is not None:
        yield client
        return
    from distributed import Client as DaskClient

    with (
        _local_cluster(workers or os.cpu_count() or 1, dashboard=dashboard) as cluster,
        DaskClient(cluster) as connected,
    ):
        connected.run(_leave_interrupts_to_the_driver)
        yield connected


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of a running scheduler.

    Raises
    ------
    InfrastructureError
        If none answers.
    """
    from distributed import Client as DaskClient

    try:
        client = DaskClient(scheduler, timeout=10)
    except (OSError, ValueError) as problem:
        raise InfrastructureError(
            "no Dask scheduler answers",
            where=scheduler,
            remedy="Start one, or leave out --scheduler",
        ) from problem
    with client:
        yield client


def _local_cluster(workers: int, *, dashboard: bool) -> LocalCluster:
    import dask
    from distributed import LocalCluster

    if getattr(current_process(), "_inheriting", False):
        # A worker is importing a script whose main part is not guarded.
        raise SystemExit("skyvec: " + _GUARD)
    try:
        with dask.config.set(_KEEP_MEMORY):
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any port: another run may have the usual one
                scheduler_kwargs={"dashboard": dashboard},
                silence_logs="CRITICAL",  # errors come back with their tasks; the rest is goodbyes
            )
    except RuntimeError as problem:
        raise InfrastructureError(
            f"the workers did not start ({problem})", where="Dask cluster", remedy=_GUARD
        ) from problem


def _leave_interrupts_to_the_driver() -> None:
    """Ctrl-C reaches every process of the terminal; only the driver should answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
