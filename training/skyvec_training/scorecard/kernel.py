"""Kernel ridge regression: smooth curves through vectors, where a ridge draws straight lines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skyvec_training.scorecard.heads import Floats, Rows, known_alike
from skyvec_training.scorecard.targets import Targets

# Shape letters: B object, F feature, K target, n training row, A strength.

GAMMAS = (0.03, 0.1, 0.3, 0.8)
"""Widths: exp(-gamma d2 / v), with v the summed variance of the features."""
ALPHAS = (0.003, 0.01, 0.03, 0.1)
COMPONENTS = 128
CHOOSING = 1500
"""Rows, at most, by which width and strength are chosen."""
MOST = 8000
"""Rows, at most, that are learnt from: the kernel of all pairs is held in memory."""


class KernelHead:
    """Gaussian kernel ridge on principal components; width and strength by leave-one-out."""

    def __init__(self, name: str, features_BF: Floats) -> None:
        self.name = name
        self.features_BF = features_BF

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:
        """See `Head`."""
        out_BK = np.full((len(test), targets.values_BK.shape[1]), np.nan)
        rng = np.random.default_rng(seed)
        for chosen, rows in known_alike(targets.values_BK[train]):
            learnt = rng.permutation(train[rows])[:MOST]
            labels = targets.values_BK[learnt][:, chosen]
            if len(learnt) < 3:
                out_BK[:, chosen] = labels.mean(0) if len(learnt) else np.nan
                continue
            out_BK[:, chosen] = self._one(learnt, test, labels)
        return out_BK

    def _one(self, learnt: Rows, test: Rows, labels_nK: Floats) -> Floats:
        prepare = _preparation(len(learnt), self.features_BF.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            x_nF = prepare.fit_transform(self.features_BF[learnt])
        spread = max(float(x_nF.var(0).sum()), 1e-12)
        mean_K, scale_K = labels_nK.mean(0), np.maximum(labels_nK.std(0), 1e-12)
        scaled_nK = (labels_nK - mean_K) / scale_K
        widths_K, alphas_K = _choose(x_nF[:CHOOSING] / spread**0.5, scaled_nK[:CHOOSING])
        seen = prepare.transform(self.features_BF[test])
        out = np.empty((len(test), labels_nK.shape[1]))
        for width in np.unique(widths_K):
            of = widths_K == width
            model = KernelRidge(kernel="rbf", gamma=width / spread, alpha=alphas_K[of])
            out[:, of] = model.fit(x_nF, scaled_nK[:, of]).predict(seen)
        return out * scale_K + mean_K


def _preparation(rows: int, features: int) -> Pipeline:
    components = min(COMPONENTS, rows - 1, features)
    return make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        PCA(components, svd_solver="randomized", random_state=0),
    )


def _choose(x_nF: Floats, labels_nK: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Width and strength (K,) each with the smallest squared error of rows left out one by one.

    With C = (kernel + alpha)^-1, the error of row i without itself is (C y)_i / C_ii.
    """
    identity = np.eye(len(x_nF))
    best_K = np.full(labels_nK.shape[1], np.inf)
    widths_K, alphas_K = np.full_like(best_K, GAMMAS[0]), np.full_like(best_K, ALPHAS[-1])
    for width in GAMMAS:
        kernel_nn = rbf_kernel(x_nF, gamma=width)
        for alpha in ALPHAS:
            inverse_nn = cho_solve(cho_factor(kernel_nn + alpha * identity), identity)
            errors_nK = inverse_nn @ labels_nK / np.diag(inverse_nn)[:, None]
            error_K = (errors_nK**2).mean(0)
            better = error_K < best_K
            best_K[better], widths_K[better], alphas_K[better] = error_K[better], width, alpha
    return widths_K, alphas_K
