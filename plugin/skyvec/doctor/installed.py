"""Installed packages against the versions that skyvec declares it works with."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from skyvec.doctor.findings import Finding
from skyvec.version import __version__

SHOWN = ("torch", "dask", "distributed", "lsdb", "hats", "pyarrow", "numpy", "pandas")
"""Packages of the default path that have a line of their own where they are right."""
DISTRIBUTION = "skyvec"
_NOT_FOR_USERS = frozenset({"dev"})
_WRONG = 40


def installed() -> Iterator[Finding]:
    """Python, skyvec, and every package that it needs."""
    yield Finding(topic="python", text=f"{platform.python_version()} on {platform.platform()}")
    needed = _requirements()
    if needed is None:
        yield Finding(
            topic="skyvec",
            text=f"{__version__}, from a source tree that is not installed: ranges are not known",
            verdict="note",
            remedy="Run `pip install -e .` in it",
        )
    else:
        yield Finding(topic="skyvec", text=__version__)
    fine = []
    for each in needed[""] if needed else map(Requirement, SHOWN):
        found = _judged(each)
        if found.verdict == "ok" and each.name not in SHOWN:
            fine.append(each.name)
        else:
            yield found
    if fine:
        yield Finding(topic="others", text=f"{len(fine)} further packages are in their ranges")


def extras() -> Iterator[Finding]:
    """Optional parts of skyvec, and the line that brings those that are missing."""
    for extra, needed in (_requirements() or {}).items():
        if not extra or extra in _NOT_FOR_USERS:
            continue
        missing = [each.name for each in needed if _version(each.name) is None]
        wrong = [f for f in map(_judged, needed) if f.verdict == "wrong"]
        if missing:
            text = f"not installed ({', '.join(missing)}); nothing needs it until asked for"
        elif wrong:
            text = "; ".join(f"{each.topic} {each.text}" for each in wrong)
        else:
            text = ", ".join(f"{each.name} {_version(each.name)}" for each in needed)
        line = f"pip install 'skyvec[{extra}]'" if missing or wrong else ""
        yield Finding(
            topic=f"extra {extra}", text=text, verdict="note" if line else "ok", remedy=line
        )


def _judged(needed: Requirement) -> Finding:
    found = _version(needed.name)
    wanted = str(needed.specifier)
    if found is None:
        return Finding(
            topic=needed.name,
            text="not installed" + (f" ({wanted} is needed)" if wanted else ""),
            verdict="wrong",
            remedy=f"pip install '{needed.name}{wanted}'",
            exit_code=_WRONG,
        )
    if not needed.specifier.contains(Version(found), prereleases=True):
        return Finding(
            topic=needed.name,
            text=f"{found}, but {wanted} is needed",
            verdict="wrong",
            remedy=f"pip install '{needed.name}{wanted}'",
            exit_code=_WRONG,
        )
    return Finding(topic=needed.name, text=f"{found} ({wanted})" if wanted else found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _requirements() -> dict[str, list[Requirement]] | None:
    """Extra (empty: none) -> what it needs; None if skyvec itself is not installed."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
        names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return None
    found: dict[str, list[Requirement]] = {"": [], **{name: [] for name in names}}
    for text in declared:
        each = Requirement(text)
        if each.name == DISTRIBUTION:
            continue  # an extra that is the sum of others
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            found[""].append(each)
            continue
        for name in names:
            if each.marker.evaluate({"extra": name}):
                found[name].append(each)
    return found
