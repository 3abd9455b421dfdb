"""Scores of everything that was searched: what a bare score of an answer lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEPT = 10_000


@dataclass(frozen=True, kw_only=True)
class ScoreSample:
    """A random sample of the scores of all objects that were looked at."""

    values: NDArray[np.float32]
    """Ascending."""
    searched: int
    """Objects that have a score, of which ``values`` are a sample."""

    def to_json(self) -> dict[str, object]:
        """For people and for `of_json`: quantiles, which is all that a page needs."""
        if len(self.values) <= 512:
            kept = self.values
        else:
            kept = np.quantile(self.values, np.linspace(0, 1, 512)).astype(np.float32)
        return {"searched": self.searched, "values": [round(float(v), 6) for v in kept]}

    @classmethod
    def of_json(cls, facts: Mapping[str, object]) -> ScoreSample:
        """Read `to_json`."""
        values = np.array(facts["values"], np.float32)
        return cls(values=values, searched=int(str(facts["searched"])))


class ScoreSampler:
    """Takes a random sample of scores as they pass by; memory does not grow with their number.

    Every score draws a number, and those with the least are kept (Algorithm R's result, a block at
    a time).
    """

    def __init__(self, *, kept: int = KEPT, seed: int = 0) -> None:
        self.kept, self.searched = kept, 0
        self._random = np.random.default_rng(seed)
        self._draws: NDArray[np.float64] = np.empty(0)
        self._values: NDArray[np.float32] = np.empty(0, np.float32)

    def add(self, scores: NDArray[np.floating]) -> None:
        """Look at some scores (n,); those that are not finite count for nothing."""
        finite = np.asarray(scores[np.isfinite(scores)], np.float32)
        self.searched += len(finite)
        draws = self._random.random(len(finite))
        if len(self._draws) == self.kept:
            good = draws < self._draws.max()
            draws, finite = draws[good], finite[good]
        draws = np.concatenate([self._draws, draws])
        values = np.concatenate([self._values, finite])
        if len(draws) > self.kept:
            least = np.argpartition(draws, self.kept)[: self.kept]
            draws, values = draws[least], values[least]
        self._draws, self._values = draws, values

    def sample(self) -> ScoreSample:
        """What was kept."""
        return ScoreSample(values=np.sort(self._values), searched=self.searched)
