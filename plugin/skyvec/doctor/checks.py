"""All that ``skyvec doctor`` looks at, in the order in which people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from skyvec.doctor.findings import Finding
from skyvec.doctor.installed import extras, installed
from skyvec.doctor.machine import device, disk, models
from skyvec.doctor.reach import hub, scheduler


def examine(*, scheduler: str | None = None, model: str = "skyvec-tiny") -> list[Finding]:
    """Look at everything; whatever breaks while it is looked at is a finding, never an exception."""
    return list(_examine(scheduler, model))


def _examine(address: str | None, model: str) -> Iterator[Finding]:
    yield from _guarded("packages", installed)
    yield from _guarded("device", device)
    yield from _guarded("disk", lambda: [disk(Path.cwd())])
    yield from _guarded("models", lambda: models(model))
    yield from _guarded("hub", lambda: [hub()])
    yield from _guarded("scheduler", lambda: scheduler(address))
    yield from _guarded("extras", extras)


def _guarded(topic: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as problem:  # noqa: BLE001 - a broken installation raises anything
        first = (str(problem).strip().splitlines() or [""])[0]
        yield Finding(
            topic=topic,
            text=f"cannot be looked at ({type(problem).__name__}: {first})",
            verdict="wrong",
            remedy="Mend what is named above; if nothing is, reinstall with `pip install skyvec`",
            exit_code=40,
        )
