"""One row of the table, and how long things take."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What was measured, what was asked for, and beside what."""

    name: str
    measured: str
    asked: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Seconds of one call."""

    wall: float
    cpu: float
    """Of all threads of this process, the system's part included."""


Case = Callable[[int], object]
"""What is timed; takes the number of the round, so that each can write to a place of its own."""


def rounds_in_turn(
    cases: Mapping[str, Case],
    rounds: int,
    *,
    there_and_back: bool = False,
    made: Path | None = None,
) -> dict[str, list[Spent]]:
    """Time every case once in each round, so that noise hits all alike.

    ``there_and_back`` takes every other round in reverse, where what a case leaves behind (pages still to
    be written, a warm cache) may tell on the next. ``made`` is a folder that each case writes to and none keeps; to remove it is
    not timed.
    """
    taken: dict[str, list[Spent]] = {name: [] for name in cases}
    for turn in range(rounds):
        order = list(cases.items())
        for name, call in reversed(order) if there_and_back and turn % 2 else order:
            wall, cpu = perf_counter(), process_time()
            call(turn)
            spent = Spent(wall=perf_counter() - wall, cpu=process_time() - cpu)
            taken[name].append(spent)
            if made:
                shutil.rmtree(made)
    return taken


def wall(spent: list[Spent]) -> float:
    """Median wall seconds."""
    return median(each.wall for each in spent)


def cpu(spent: list[Spent]) -> float:
    """Median CPU seconds."""
    return median(each.cpu for each in spent)


def ratio(ours: list[Spent], theirs: list[Spent], of: Literal["wall", "cpu"]) -> str:
    """Median of the ratios of the rounds, and their range."""
    each = [getattr(a, of) / getattr(b, of) for a, b in zip(ours, theirs, strict=True)]
    return f"{median(each):.3f} ({min(each):.3f}-{max(each):.3f})"
