"""Metrics of the scorecard; each takes truth (rows, ...) and prediction and gives one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.floating]
Metric = Callable[[Floats, Floats], float]


def r2(truth: Floats, predicted: Floats) -> float:
    """Share of the variance that is explained; negative if worse than the mean."""
    total = float(np.sum((truth - truth.mean()) ** 2))
    return float(1 - np.sum((truth - predicted) ** 2) / total) if total > 0 else float("nan")


def rmse(truth: Floats, predicted: Floats) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((predicted - truth) ** 2)))


def bias(truth: Floats, predicted: Floats) -> float:
    """Median error."""
    return float(np.median(predicted - truth))


def relative_shift(truth: Floats, predicted: Floats) -> Floats:
    """Redshift error (predicted - z) / (1 + z), short dz."""
    return np.asarray((predicted - truth) / (1 + truth))


def redshift_bias(truth: Floats, predicted: Floats) -> float:
    """Median dz."""
    return float(np.median(relative_shift(truth, predicted)))


def sigma_nmad(truth: Floats, predicted: Floats) -> float:
    """1.4826 x median absolute deviation of dz about its median."""
    shift = relative_shift(truth, predicted)
    return float(1.4826 * np.median(np.abs(shift - np.median(shift))))


def outliers_fixed(truth: Floats, predicted: Floats) -> float:
    """Share of objects with abs(dz) > 0.15."""
    return float(np.mean(np.abs(relative_shift(truth, predicted)) > 0.15))


def outliers_rail(truth: Floats, predicted: Floats) -> float:
    """Share with abs(dz) > max(0.06, 3 sigma_IQR), sigma_IQR = IQR / 1.349 (RAIL)."""
    shift = relative_shift(truth, predicted)
    low, high = np.percentile(shift, [25, 75])
    return float(np.mean(np.abs(shift) > max(0.06, 3 * (high - low) / 1.349)))


def accuracy(truth: Floats, predicted: Floats) -> float:
    """Share of objects whose likeliest class is right; truth is one-hot (rows, classes)."""
    return float(np.mean(truth.argmax(1) == predicted.argmax(1)))


def balanced_accuracy(truth: Floats, predicted: Floats) -> float:
    """Mean over the classes that are there of the share that is found."""
    found = truth.argmax(1) == predicted.argmax(1)
    return float(np.mean([found[members].mean() for members in _members(truth)]))


def auroc(truth: Floats, predicted: Floats) -> float:
    """Area under the ROC curve of each class against the rest, averaged; chance is 0.5."""
    return _mean_of_classes(_auroc, truth, predicted)


def average_precision(truth: Floats, predicted: Floats) -> float:
    """Average precision of each class against the rest, averaged; chance is the prevalence."""
    return _mean_of_classes(_average_precision, truth, predicted)


def intersection_over_union(intersection: Floats, union: Floats) -> float:
    """IoU over all pixels of all objects, from pixels of each object."""
    total = float(union.sum())
    return float(intersection.sum() / total) if total > 0 else float("nan")


def mean_of(scores: Floats, _: Floats) -> float:
    """Mean of a score that every row already has."""
    return float(scores.mean())


def ndcg(relevant: NDArray[np.bool_], *, total: NDArray[np.int64]) -> Floats:
    """Normalized discounted cumulative gain (nDCG) of each query; 0 if nothing relevant exists.

    Parameters
    ----------
    total
        Relevant objects that each query could have found (queries,).
    """
    k = relevant.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(total, k)]
    gained = (relevant * discount).sum(1)
    return np.where(best > 0, gained / np.where(best > 0, best, 1), 0.0)


REGRESSION: Mapping[str, Metric] = MappingProxyType({"r2": r2, "rmse": rmse, "bias": bias})
REDSHIFT: Mapping[str, Metric] = MappingProxyType(
    {
        "r2": r2,
        "sigma_nmad": sigma_nmad,
        "bias": redshift_bias,
        "outliers_0.15": outliers_fixed,
        "outliers_rail": outliers_rail,
    }
)
CLASSIFICATION: Mapping[str, Metric] = MappingProxyType(
    {
        "auroc": auroc,
        "average_precision": average_precision,
        "balanced_accuracy": balanced_accuracy,
        "accuracy": accuracy,
    }
)
CHANCE: Mapping[str, float] = MappingProxyType({"r2": 0.0, "auroc": 0.5})
"""What a head that learnt nothing scores."""


def _members(truth: Floats) -> list[NDArray[np.bool_]]:
    return [column > 0.5 for column in truth.T if (column > 0.5).any()]


def _auroc(positive: NDArray[np.bool_], scores: Floats) -> float:
    """Chance that a positive is ranked above a negative (Mann-Whitney), ties half."""
    # Intervals need thousands of these: scikit-learn's checks take twenty times as long.
    count = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _average_precision(positive: NDArray[np.bool_], scores: Floats) -> float:
    """Mean precision over the steps of recall; equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    found, ranked = np.cumsum(positive[order]), scores[order]
    last = np.append(ranked[1:] != ranked[:-1], np.array([True]))
    steps = np.diff(found[last], prepend=0)
    return float((steps * found[last] / (np.flatnonzero(last) + 1)).sum() / found[-1])


def _mean_of_classes(
    score: Callable[[NDArray[np.bool_], Floats], float], truth: Floats, predicted: Floats
) -> float:
    found = [
        score(column > 0.5, scores)
        for column, scores in zip(truth.T, predicted.T, strict=True)
        if 0 < (column > 0.5).sum() < len(column)
    ]
    return float(np.mean(found)) if found else float("nan")
