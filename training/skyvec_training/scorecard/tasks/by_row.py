"""Scores that every row has by itself, such as the nDCG of a query: averaged and compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from skyvec_training.scorecard.card import Comparison, Score, TaskResult
from skyvec_training.scorecard.metrics import Floats, Metric
from skyvec_training.scorecard.resampling import Resamples

ByRow = Mapping[str, tuple[Floats, Floats]]
"""Method -> the two things that a metric takes, by row of the sample; NaN where there is nothing."""


def scored(
    found: ByRow,
    roles: Mapping[str, str],
    name: str,
    metric: Metric,
    resamples: Resamples,
    *,
    inputs: str,
) -> tuple[tuple[Score, ...], tuple[Comparison, ...]]:
    """Scores of all methods, and the differences of ours from each other."""
    ours = next(method for method, role in roles.items() if role == "embeddings")
    scores, comparisons = [], []
    for method, (first, second) in found.items():
        known = np.isfinite(first)
        estimate = resamples.estimate(metric, first, second, known)
        scores.append(Score(method=method, role=roles[method], inputs=inputs, head="",
                            rows=int(known.sum()), metrics={name: estimate}))  # fmt: skip
        if method == ours:
            continue
        shared = known & np.isfinite(found[ours][0])
        difference = resamples.difference(metric, found[ours], (first, second), shared)
        comparisons.append(Comparison(ours=ours, theirs=method, metric=name,
                                      rows=int(shared.sum()), difference=difference))  # fmt: skip
    return tuple(scores), tuple(comparisons)


def spread(values: Floats, rows: NDArray[np.int64], count: int) -> Floats:
    """Values of some rows among all, NaN elsewhere."""
    out = np.full(count, np.nan)
    out[rows] = values
    return out


def skipped(name: str, kind: str, reason: str, *, column: str = "") -> TaskResult:
    """A task that was not scored, and why."""
    return TaskResult(name=name, kind=kind, column=column, skipped=reason)
