"""Writing many files with many processes into a folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from skyvec_schemas.errors import ConfigurationError, InfrastructureError, OutputExistsError


class Task(Protocol):
    """A file to write."""

    def write(self) -> int:
        """Write it, and count its objects."""


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that becomes ``out`` only if everything went well."""
    if out.exists():
        raise OutputExistsError(
            "something is there already", where=str(out), remedy="Remove it or choose another path"
        )
    draft = out.with_name(f".{out.name}.draft")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    except OSError as error:
        raise ConfigurationError(
            f"cannot be written ({error.strerror})",
            where=str(out),
            remedy="Choose a folder on a disk that you may write to",
        ) from error
    try:
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def run(tasks: Sequence[Task], *, workers: int, progress: Callable[[int], None] | None) -> None:
    """Write everything; with ``workers`` processes the order of work differs, not the bytes."""
    done = 0
    if workers == 1 or len(tasks) == 1:
        for task in tasks:
            done += task.write()
            if progress:
                progress(done)
        return
    # Not forked: the caller may hold threads of torch or Dask.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
            for count in pool.map(_write, tasks):
                done += count
                if progress:
                    progress(done)
    except BrokenProcessPool as error:
        raise InfrastructureError(
            "a worker process died",
            where="mock survey",
            remedy="Guard a script by `if __name__ == '__main__'`, or ask for workers=1",
        ) from error


def _write(task: Task) -> int:
    return task.write()
