"""Where the work runs: the caller's Dask client, or a cluster on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


_KEEP_MEMORY = {
    f"distributed.nanny.pre-spawn-environ.MALLOC_{kind}_THRESHOLD_": 1 << 28
    for kind in ("TRIM", "MMAP")
}
"""Dask has workers return memory from 64 kB on; torch's buffers then fault in anew at every batch,
which cost 1.5 times the wall time of an embedding run."""


@contextmanager
def dask_client(client: Client | None = None, workers: int | None = None) -> Iterator[Client]:
    """The caller's client, or one to a cluster on this machine that ends with the block.

    One thread per process: torch uses its own, and their number is part of promised bits.
    """
    if client is not None:
        yield client
        return
    import dask
    from distributed import Client as DaskClient
    from distributed import LocalCluster

    with (
        dask.config.set(_KEEP_MEMORY),
        LocalCluster(
            n_workers=workers or os.cpu_count() or 1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs="ERROR",
        ) as cluster,
        DaskClient(cluster) as connected,
    ):
        yield connected
