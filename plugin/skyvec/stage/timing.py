"""Seconds by step of a quantum."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

Timed = Callable[[str], AbstractContextManager[object]]
"""Gives a context that adds its time to a step."""


class StepTimes:
    """Adds up; one thread adds to a step at a time."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def __call__(self, step: str) -> AbstractContextManager[object]:
        """Time a block."""
        return _Block(self.seconds, step)

    def rounded(self) -> dict[str, float]:
        """For records."""
        return {step: round(spent, 4) for step, spent in self.seconds.items()}


@dataclass(slots=True)
class _Block:
    seconds: Counter[str]
    step: str
    started: float = field(default=0.0, init=False)

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds[self.step] += time.perf_counter() - self.started  # type: ignore[assignment]
