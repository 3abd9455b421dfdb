"""The exit code of a run as an exception, for engines that know success and exceptions only."""

from __future__ import annotations

from skyvec.stage.run_record import RunRecord
from skyvec_schemas.errors import ContractError, SkyvecError

_AGAIN = "Run the same again: finished pixels are skipped"


class BadObjectsError(SkyvecError):
    """The product is complete and published, but objects were quarantined (``strict``)."""

    exit_code = 10


class UnfinishedError(SkyvecError):
    """Some pixels are not done; the same run again continues."""

    exit_code = 20


def raise_unless_complete(record: RunRecord) -> None:
    """Raise what the exit code of a run says, unless that is 0.

    Raises
    ------
    BadObjectsError, UnfinishedError, ContractError
        With the first problem of the record.
    """
    code, where = record.exit_code, str(record.output)
    if code == 0:
        return
    if code == BadObjectsError.exit_code:
        raise quarantined(record.quarantined, where=where)
    first, *others = record.problems
    what = first + (f"; {len(others)} more problems are in the manifest" if others else "")
    if code == UnfinishedError.exit_code:
        raise UnfinishedError(what, where=where, remedy=_AGAIN)
    raise ContractError(what, where=where, remedy=f"Mend the data. {_AGAIN}")


def quarantined(objects: int, *, where: str) -> BadObjectsError:
    """What ``strict`` says of a published product with objects in quarantine."""
    return BadObjectsError(
        f"complete and published, with {objects:,} objects in quarantine",
        where=where,
        remedy="Look at these, or leave out strict",
    )
