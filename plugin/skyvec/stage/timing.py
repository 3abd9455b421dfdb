"""Seconds by step of a quantum."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Timed = Callable[[str], AbstractContextManager[object]]
"""Gives a context that adds its time to a step."""


class StepTimes:
    """Adds up; one thread adds to a step at a time."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - started  # type: ignore[assignment]

    def rounded(self) -> dict[str, float]:
        """For records."""
        return {step: round(spent, 4) for step, spent in self.seconds.items()}
