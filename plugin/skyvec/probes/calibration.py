"""Probabilities that mean what they say: logits divided by one temperature.

Guo et al. 2017 (arXiv 1706.04599): of all corrections the simplest, and rarely beaten.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Floats = NDArray[np.floating]


def temperature_of(logits: Floats, codes: NDArray[np.int64]) -> float:
    """That of least log loss, for logits (rows, classes) and true classes (rows,)."""
    found = minimize_scalar(
        lambda power: log_loss(logits / np.exp(power), codes), bounds=(-3, 4), method="bounded"
    )
    return float(np.exp(found.x))


def calibrated(
    logits: Floats, codes: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Probabilities (rows, classes) of each fold at the temperature of the others."""
    found = np.empty(logits.shape)
    for fold in np.unique(folds):
        held = folds == fold
        found[held] = softmax(logits[held] / temperature_of(logits[~held], codes[~held]), axis=1)
    return found


def log_loss(logits: Floats, codes: NDArray[np.int64]) -> float:
    """Mean over rows, in nats."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(codes)), codes].mean())
