"""Where the work runs: the caller's Dask client, or a cluster on this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import current_process, forkserver
from types import MappingProxyType
from typing import TYPE_CHECKING

from skyvec_schemas.errors import InfrastructureError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

_GUARD = (
    'In a script, put the calls under `if __name__ == "__main__":`, since every worker imports it; '
    "or use workers=0"
)


_SETTINGS: Mapping[str, object] = MappingProxyType(
    {
        # Dask has workers return memory from 64 kB on; torch's buffers then fault in anew at every
        # batch, which cost 1.5 times the wall time of an embedding run.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 28,
        # Dask looks a hundred times a second at what a worker does, for its page of profiles.
        "distributed.worker.profile.interval": "100ms",
    }
)
_FORKED = {"distributed.worker.multiprocessing-method": "forkserver"}


@contextmanager
def dask_client(
    client: Client | None = None,
    workers: int | None = None,
    *,
    tasks: int | None = None,
    dashboard: bool = False,
) -> Iterator[Client]:
    """The caller's client, or one to a cluster on this machine that ends with the block.

    One thread per process: torch uses its own, and their number is part of promised bits.

    Parameters
    ----------
    workers
        Processes of that cluster; one for each core by default.
    tasks
        How many there are, where that is known: by default no more workers are started.
    """
    if client is not None:
        yield client
        return
    if getattr(current_process(), "_inheriting", False):
        # A worker is importing a script whose main part is not guarded.
        raise SystemExit("skyvec: " + _GUARD)
    from distributed import Client as DaskClient

    cores = os.cpu_count() or 1
    workers = workers or (cores if tasks is None else max(1, min(cores, tasks)))
    with (
        _worker_settings(),
        _local_cluster(workers, dashboard=dashboard) as cluster,
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
    from distributed import LocalCluster

    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any port: another run may have the usual one
            scheduler_kwargs={"dashboard": dashboard},
            # What they are forked from may be older than what is set now, such as credentials.
            env=dict(os.environ),
            silence_logs="CRITICAL",  # errors come back with their tasks; the rest is goodbyes
        )
    except RuntimeError as problem:
        raise InfrastructureError(
            f"the workers did not start ({problem})", where="Dask cluster", remedy=_GUARD
        ) from problem


@contextmanager
def _worker_settings() -> Iterator[None]:
    """How the processes of a cluster on this machine are started, now and when one is replaced."""
    import dask

    with dask.config.set(_SETTINGS):
        forked = _fork_server_runs(dask.config.get("distributed.nanny.pre-spawn-environ"))
        with dask.config.set(_FORKED if forked else {}):
            yield


def _fork_server_runs(environment: Mapping[str, object]) -> bool:
    """Start the process that workers are forked from, if one can be; it ends with this one.

    It imports what all need: alone, each would spend seconds of a processor on torch and hats, and
    again when it is replaced (docs/benchmarks.md). It has no GPU in use and no thread but jemalloc's, which expects to be forked.
    """
    if sys.platform != "linux" or sys.version_info < (3, 11, 1):  # CVE-2022-42919
        return False
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set(_FORKED):
        context = get_mp_context()  # which makes a list of its own, once
    context.set_forkserver_preload(["distributed.nanny", "skyvec.stage.quantum"])
    settings = {
        # As Dask has it: what the user set comes first, and None leaves a variable alone.
        **{name: os.environ.get(name, v) for name, v in environment.items() if v is not None},
        # It would search the working directory first, and not where this process does.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": 1,
        "PYTHONHASHSEED": 0,  # Dask wants it to be the same, also after a restart
    }
    try:
        with _environment(settings):
            forkserver.ensure_running()
    except OSError:
        return False  # no place for its socket: TMPDIR is too long a path, or not to be written to
    return True


@contextmanager
def _environment(values: Mapping[str, object]) -> Iterator[None]:
    """What a process finds that is started in the block."""
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _leave_interrupts_to_the_driver() -> None:
    """Ctrl-C reaches every process of the terminal; only the driver should answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
