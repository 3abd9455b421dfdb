"""The one hierarchy of errors that users of skyvec meet.

    SkyvecError
    ├── ConfigurationError   the command or the model is wrong; nothing was touched      exit 40
    │   ├── OutputExistsError
    │   └── WeightsError
    ├── ContractError        the data do not hold what was promised; never retried       exit 30
    │   ├── MissingColumnError
    │   ├── BandError
    │   ├── DuplicateIdsError
    │   └── RowTruthError    an output failed its own verification and was not published
    └── InfrastructureError  workers, disks, clusters; run the same command again        exit 50
        └── WrongNumbersError

Every error says where it was found, what is wrong and what to do, in one line.
"""

from __future__ import annotations

from typing import ClassVar


class SkyvecError(Exception):
    """What is wrong, where, and the remedy; prints as one line."""

    exit_code: ClassVar[int] = 30
    retry: ClassVar[bool] = False
    """Whether another attempt, elsewhere, may succeed."""

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}."

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the pickling between a Dask worker and the client."""
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[SkyvecError], what: str, where: str, remedy: str) -> SkyvecError:
    return kind(what, where=where, remedy=remedy)


class ConfigurationError(SkyvecError, ValueError):
    """The request itself cannot be carried out."""

    exit_code = 40


class OutputExistsError(ConfigurationError):
    """The output is there already and was made by something else."""


class WeightsError(ConfigurationError):
    """A model folder is missing, incomplete, or not what its name says."""


class ContractError(SkyvecError):
    """The catalog does not hold what the stage was told it would."""

    exit_code = 30


class MissingColumnError(ContractError, KeyError):
    """A declared column is absent."""

    __str__ = SkyvecError.__str__  # KeyError would print the repr


class BandError(ContractError):
    """The bands of an image are not those of its survey."""


class DuplicateIdsError(ContractError):
    """Two rows carry one id, so a join on it would multiply rows."""


class RowTruthError(ContractError):
    """An output did not match its input row by row."""

    retry = True  # the worker that wrote it may be at fault


class InfrastructureError(SkyvecError):
    """Workers or disks failed; the data are not to blame."""

    exit_code = 50
    retry = True


class WrongNumbersError(InfrastructureError):
    """A machine computes other numbers than it should; nothing it makes may be kept."""
