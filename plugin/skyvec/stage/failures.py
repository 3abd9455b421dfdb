"""What kind of failure an exception is, and so what a run does about it."""

from __future__ import annotations

import errno
from enum import StrEnum

from skyvec_schemas.errors import (
    ConfigurationError,
    ContractError,
    InfrastructureError,
    RowTruthError,
)


class Failure(StrEnum):
    """Kinds of failure of one pixel."""

    DATA = "data"
    """The input breaks its contract: reported, never tried again."""
    WRONG = "wrong"
    """The request cannot be carried out anywhere: the run ends."""
    MEMORY = "memory"
    """Memory did not suffice: tried again with half the rows at a time."""
    PASSING = "passing"
    """Worker, disk or network: tried again after a pause."""
    DEFECT = "defect"
    """Anything else: tried once more, since it may lie with the worker, then reported."""


_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu", "bad_alloc",
    "can't start new thread",  # no room for its stack
    "could not create a primitive", "could not create a memory",  # oneDNN, under torch
)  # fmt: skip
_PASSING = (InfrastructureError, OSError, EOFError, TimeoutError, ConnectionError)
_LOST_BY_DASK = {"KilledWorker", "CancelledError", "FutureCancelledError", "CommClosedError",
                 "WorkerStartTimeoutError", "NoValidWorkerError", "FutureLostError"}  # fmt: skip


def kind_of(problem: BaseException) -> Failure:
    """Sort an exception of a quantum, as raised here or as Dask hands it on."""
    if isinstance(problem, RowTruthError):
        # An output that is not what it should be was computed wrongly or written badly here.
        return Failure.DEFECT
    if isinstance(problem, ConfigurationError):
        return Failure.WRONG
    if isinstance(problem, ContractError):
        return Failure.DATA
    if is_memory(problem):
        return Failure.MEMORY
    if isinstance(problem, _PASSING) or _LOST_BY_DASK & {c.__name__ for c in type(problem).mro()}:
        return Failure.PASSING
    return Failure.DEFECT


def is_memory(problem: BaseException) -> bool:
    """Whether memory of the machine or of its device ran out."""
    if isinstance(problem, MemoryError) or (
        isinstance(problem, OSError) and problem.errno == errno.ENOMEM
    ):
        return True
    # torch raises a RuntimeError for processors and a subclass of it for GPUs.
    text = str(problem).lower()
    return isinstance(problem, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY)


def in_one_line(problem: BaseException) -> str:
    """For records and people; an error of skyvec says file and remedy itself."""
    lines = str(problem).strip().splitlines()
    first = lines[0] if lines else ""
    if isinstance(problem, ContractError | ConfigurationError | InfrastructureError):
        return first
    return f"{type(problem).__name__}: {first}"
