"""Classes from vectors: multinomial logistic regression, calibrated on rows that were left out.

Unlike least squares it has no sums that suffice: it is fitted to a bounded sample of the labelled
rows, drawn in the one pass. Its probabilities are calibrated by one temperature, since they are
used as such.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from skyvec.probes.calibration import calibrated, log_loss, temperature_of
from skyvec.probes.shapes import of_width

Floats = NDArray[np.floating]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse penalties of standardized vectors, as scikit-learn's C."""
STEPS = 200
"""Of the solver, at most."""
CHOICE_ROWS = 5000
"""Rows, at most, on which the penalty is chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Logits:
    """``softmax((vectors @ weights + intercept) / temperature)``."""

    weights: NDArray[np.float64]
    """(dim, classes)"""
    intercept: NDArray[np.float64]
    """(classes,)"""
    temperature: float = 1.0

    def predict(self, vectors: Floats) -> NDArray[np.float64]:
        """Probabilities (rows, classes)."""
        vectors = np.asarray(of_width(vectors, len(self.weights)), np.float64)
        logits = vectors @ self.weights + self.intercept
        found: NDArray[np.float64] = softmax(logits / self.temperature, axis=1)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class LogisticFit:
    """The chosen penalty, the model of all rows, and out-of-fold probabilities."""

    strength: float
    model: Logits
    probabilities: NDArray[np.float64]
    """(rows, classes), each row by the model of the other folds, at the temperature of those."""
    uncalibrated: NDArray[np.float64]
    """The same at temperature 1."""
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def fit_logistic(
    vectors: Floats,
    codes: NDArray[np.int64],
    folds: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
) -> LogisticFit:
    """Fit; the penalty is that of least log loss on folds left out."""
    mean = vectors.mean(0, dtype=np.float64)
    scale = vectors.std(0, dtype=np.float64)
    scale[scale <= 1e-6 * max(float(scale.max(initial=0)), 1e-30)] = 1
    standard = (vectors - mean) / scale
    few = np.random.default_rng(seed).permutation(len(codes))[:CHOICE_ROWS]
    losses = [
        log_loss(_left_out(standard[few], codes[few], folds[few], classes, strength), codes[few])
        for strength in strengths
    ]
    strength = strengths[int(np.argmin(losses))]
    logits = _left_out(standard, codes, folds, classes, strength)
    weights, intercept = _fit(standard, codes, classes, strength)
    weights = weights / scale[:, None]
    return LogisticFit(
        strength=strength,
        model=Logits(weights=weights, intercept=intercept - mean @ weights,
                     temperature=temperature_of(logits, codes)),
        probabilities=calibrated(logits, codes, folds), uncalibrated=softmax(logits, axis=1), mean=mean, scale=scale,
    )  # fmt: skip


def _left_out(
    vectors: Floats, codes: NDArray[np.int64], folds: NDArray[np.int64], classes: int,
    strength: float,
) -> NDArray[np.float64]:  # fmt: skip
    logits = np.zeros((len(codes), classes))
    for fold in np.unique(folds):
        held = folds == fold
        weights, intercept = _fit(vectors[~held], codes[~held], classes, strength)
        logits[held] = vectors[held] @ weights + intercept
    return logits


def _fit(
    vectors: Floats, codes: NDArray[np.int64], classes: int, strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (dim, classes) and intercepts; a class without rows gets the odds of half a row."""
    counts = np.bincount(codes, minlength=classes)
    weights = np.zeros((vectors.shape[1], classes))
    intercept = np.log(np.maximum(counts, 0.5) / len(codes))
    there = np.flatnonzero(counts)
    if len(there) < 2:
        return weights, intercept
    model = LogisticRegression(C=strength, max_iter=STEPS, tol=1e-4)
    with warnings.catch_warnings():
        # Weak penalties on separable classes go on for ever; what counts is measured left out.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors, codes)
    if len(there) == 2:
        # One row of coefficients stands for both classes.
        weights[:, there] = np.stack([-model.coef_[0], model.coef_[0]], axis=1) / 2
        intercept[there] = np.array([-1, 1]) * model.intercept_[0] / 2
    else:
        weights[:, there], intercept[there] = model.coef_.T, model.intercept_
    lacking = np.flatnonzero(counts == 0)
    intercept[lacking] = intercept[there].mean() + np.log(0.5 / counts[there].mean())
    return weights, intercept
