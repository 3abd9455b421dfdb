"""Ridge regression from sums: every strength is tried on every fold without another look at rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from skyvec.probes.products import Centre, Moments
from skyvec.probes.shapes import of_width

Floats = NDArray[np.floating]

ALPHAS = tuple(10.0**power for power in range(-2, 7))
"""Penalties of standardized vectors, against sums of squares over the rows, as scikit-learn's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """``vectors @ weights + intercept``."""

    weights: NDArray[np.float64]
    """(dim, targets)"""
    intercept: NDArray[np.float64]
    """(targets,)"""

    def predict(self, vectors: Floats) -> NDArray[np.float64]:
        """Predictions (rows, targets)."""
        vectors = np.asarray(of_width(vectors, len(self.weights)), np.float64)
        found: NDArray[np.float64] = vectors @ self.weights + self.intercept
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class RidgeFit:
    """What cross-validation chose, the model of each fold's others, and that of all rows."""

    alphas: tuple[float, ...]
    """Of each target."""
    model: Linear
    without: Mapping[int, Linear]
    """Fold -> fitted on the others."""
    r2: tuple[float, ...]
    """Out of fold over every row, by the sums."""
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    """The scaler: of each dimension over all rows."""


def fit_ridge(
    folds: Mapping[int, Moments], centre: Centre, alphas: Sequence[float] = ALPHAS
) -> RidgeFit:
    """Fit to the sums of all folds; the penalty of each target is that of least squared error on
    folds left out.

    Parameters
    ----------
    folds
        At least two.
    """
    total = reduce(add, folds.values())
    paths = {fold: _Path(total - part) for fold, part in folds.items()}
    errors = np.stack(
        [
            sum(paths[fold].squared_errors(alpha, part) for fold, part in folds.items())
            for alpha in alphas
        ]
    )
    best = errors.argmin(0)
    chosen = np.array(alphas)[best]
    least = errors[best, np.arange(len(best))]
    spread = np.diag(total.spread)[total.dim :] * total.count
    every = _Path(total)
    return RidgeFit(
        alphas=tuple(chosen.tolist()),
        model=every.model(chosen, centre),
        without={fold: path.model(chosen, centre) for fold, path in paths.items()},
        r2=tuple((1 - least / spread).tolist()),
        mean=total.means[: total.dim] + centre.vectors,
        scale=every.scale,
    )


class _Path:
    """The solutions of all penalties for some rows, by one eigendecomposition."""

    def __init__(self, moments: Moments) -> None:
        self.moments, dim = moments, moments.dim
        spread = moments.spread
        deviations = np.sqrt(np.diag(spread)[:dim].clip(min=0))
        # What never varies but by rounding is no dimension to be blown up.
        varies = deviations > 1e-6 * max(float(deviations.max(initial=0)), 1e-30)
        self.scale = np.where(varies, deviations, 1.0)
        within = spread[:dim, :dim] / np.outer(self.scale, self.scale)
        within[~varies], within[:, ~varies] = 0, 0
        across = spread[:dim, dim:] / self.scale[:, None] * varies[:, None]
        values, self._turn = eigh(within, overwrite_a=True, check_finite=False)
        self._values = values.clip(min=0)
        self._mixed = self._turn.T @ across

    def weights(self, alphas: Floats) -> NDArray[np.float64]:
        """(dim, targets) for one penalty a target, of the labels as they are in the sums."""
        shrunk = self._mixed / (self._values[:, None] + alphas / self.moments.count)
        found: NDArray[np.float64] = (self._turn @ shrunk) / self.scale[:, None]
        return found

    def squared_errors(self, alpha: float, others: Moments) -> NDArray[np.float64]:
        """Summed over other rows, for each target."""
        dim, targets = others.dim, len(others.products) - others.dim - 1
        weights = self.weights(np.full(targets, alpha))
        own = self.moments.means
        change = np.concatenate(
            [-weights, np.eye(targets), (own[:dim] @ weights - own[dim:])[None]]
        )
        errors: NDArray[np.float64] = np.einsum("ik,ik->k", change, others.products @ change)
        return errors

    def model(self, alphas: Floats, centre: Centre) -> Linear:
        """The solution in the units of vectors and labels."""
        dim, means = self.moments.dim, self.moments.means
        scaled = self.weights(alphas)
        weights = scaled * centre.scale
        at = means[dim:] - means[:dim] @ scaled
        return Linear(
            weights=weights,
            intercept=centre.labels + centre.scale * at - centre.vectors.astype(float) @ weights,
        )
