"""One row of a table of measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What was measured, what it should be at least, and beside what."""

    name: str
    measured: str
    at_least: str = ""
    note: str = ""


def medians(
    cases: Mapping[str, Callable[[], object]], rounds: int, *, before: Callable[[], object] = int
) -> dict[str, float]:
    """Median wall seconds of each case over rounds in turn, so that noise hits all alike.

    Parameters
    ----------
    before
        Called before each timed call, e.g. to empty the page cache.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            before()
            start = perf_counter()
            call()
            taken[name].append(perf_counter() - start)
    return {name: median(seconds) for name, seconds in taken.items()}
