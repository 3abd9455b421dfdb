"""Scheduler, workers and driver of a chaos run, each a process of its own that may die.

They are forked from this process, which has the libraries imported, so that a new one costs a second
and not ten; what runs in them is ``dask scheduler``, ``dask worker --preload`` and ``skyvec``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import moments

TIME_TO_LIVE = 10
"""Seconds after which the scheduler gives up a worker that is silent (300 by default)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux: nothing is left where the harness itself is killed."""


def import_everything() -> None:
    """What the children would import."""
    import distributed.cli.dask_scheduler
    import distributed.cli.dask_worker
    import lsdb
    import torch

    import skyvec.cli
    import skyvec.commands.monitors
    import skyvec.preview.preview
    import skyvec.stage.run  # noqa: F401

    torch.set_num_threads(1)
    del distributed, lsdb


def fork(work: Callable[[], object], log: Path) -> int:
    """Run a function in a new process; its output goes to a log."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ["NO_COLOR"] = "1"
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:  # noqa: BLE001 - nothing may return into the harness
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_skyvec(arguments: list[str]) -> None:
    """``python -m skyvec``."""
    from skyvec.cli import main

    sys.argv = ["skyvec", *arguments]
    main()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Starts what has died, after a pause.

    Parameters
    ----------
    home
        Folder of logs, orders and scratch; on a disk that never is full.
    """

    def __init__(self, home: Path, *, workers: int, pause: Callable[[], float]) -> None:
        self.home, self.pause = home, pause
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = 0
        self.workers = dict.fromkeys(range(workers), 0)
        self.born: dict[int, float] = {}
        self.starts = dict.fromkeys(("scheduler", "worker"), 0)
        self._due: dict[str | int, float] = {}

    def look(self) -> None:
        """Notice deaths; start anew what is due."""
        for name, pid in [("scheduler", self.scheduler), *self.workers.items()]:
            if pid and gone(pid) is not None:
                self._set(name, 0)
                self._due[name] = time.monotonic() + self.pause()
            elif not pid and time.monotonic() >= self._due.get(name, 0):
                self._set(name, self._start(name))

    def close(self) -> None:
        """Kill all of it."""
        for pid in (self.scheduler, *self.workers.values()):
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _set(self, name: str | int, pid: int) -> None:
        if name == "scheduler":
            self.scheduler = pid
        else:
            self.workers[int(name)] = pid
        if pid:
            self.born[pid] = time.monotonic()

    def _start(self, name: str | int) -> int:
        kind = "scheduler" if name == "scheduler" else "worker"
        self.starts[kind] += 1
        log = self.home / f"{kind}-{self.starts[kind]}.log"
        return fork(self._be_scheduler if kind == "scheduler" else self._be_worker, log)

    def _be_scheduler(self) -> None:
        import dask
        from distributed.cli.dask_scheduler import main

        dask.config.set({"distributed.scheduler.worker-ttl": f"{TIME_TO_LIVE}s"})
        main(["--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show"])

    def _be_worker(self) -> None:
        from distributed.cli.dask_worker import main

        main([
            self.address, "--host", "127.0.0.1", "--nthreads", "1", "--memory-limit", "0",
            "--no-nanny", "--no-dashboard", "--death-timeout", "60",
            "--local-directory", str(self.home / "scratch"), "--preload", moments.__file__,
        ])  # fmt: skip


def gone(pid: int) -> int | None:
    """How a child ended: its exit code, or minus the signal; None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None
