"""How good predictions are, with intervals from resampled sky blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

Floats = NDArray[np.floating]

BOOTSTRAPS = 500
ECE_BINS = 15
OUTLIER = 0.15
"""Of dz = (z_photo - z) / (1 + z), where a photo-z counts as an outlier."""
_REDSHIFT = re.compile(r"(z|z_?(spec|best|hp|helio|phot)|(spec|phot|photo)_?z|redshift)", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Out-of-fold quality with a 95% interval from resampled sky blocks."""

    r2: float
    r2_low: float
    r2_high: float
    rmse: float
    nmad: float
    """1.4826 x median absolute deviation of the residuals about their median."""
    rows: int
    blocks: int

    @classmethod
    def of(
        cls, labels: Floats, predicted: Floats, blocks: NDArray[np.int64], *, seed: int
    ) -> Score:
        """Score of one number a row."""
        residuals = predicted - labels
        low, high = _interval(labels, predicted, blocks, np.random.default_rng(seed))
        return cls(
            r2=r_squared(labels, predicted), r2_low=low, r2_high=high,
            rmse=float(np.sqrt(np.mean(residuals**2))), nmad=nmad(residuals),
            rows=len(labels), blocks=len(np.unique(blocks)),
        )  # fmt: skip


def r_squared(labels: Floats, predicted: Floats) -> float:
    """Share of the labels' variance that the predictions explain; negative if worse than a mean."""
    return float(1 - np.sum((labels - predicted) ** 2) / np.sum((labels - labels.mean()) ** 2))


def nmad(residuals: Floats) -> float:
    """1.4826 x median absolute deviation about the median."""
    return float(1.4826 * np.median(np.abs(residuals - np.median(residuals))))


def is_redshift(target: str) -> bool:
    """Whether a column is a redshift, by its name."""
    return _REDSHIFT.fullmatch(target) is not None


def photoz_metrics(redshifts: Floats, predicted: Floats) -> dict[str, float]:
    """Of dz = (z_photo - z) / (1 + z): bias, widths and shares of outliers, as RAIL reports them."""
    dz = (predicted - redshifts) / (1 + redshifts)
    low, high = np.percentile(dz, [25, 75])
    sigma_iqr = float(high - low) / 1.349
    return {
        "bias": float(np.median(dz)),
        "sigma_nmad": nmad(dz),
        "sigma_iqr": sigma_iqr,
        "outliers": float(np.mean(np.abs(dz) > OUTLIER)),
        "outliers_rail": float(np.mean(np.abs(dz) > max(0.06, 3 * sigma_iqr))),
    }


def classification_metrics(codes: NDArray[np.int64], probabilities: Floats) -> dict[str, float]:
    """Of class probabilities (rows, classes): ranking, calibration and accuracy.

    AUROC and average precision are of the second class where there are two, else the mean over the
    classes, each against the others.
    """
    classes = probabilities.shape[1]
    truth = np.eye(classes)[codes]
    called = probabilities.argmax(1)
    some = (
        [1] if classes == 2 else [c for c in range(classes) if 0 < truth[:, c].sum() < len(codes)]
    )
    both = [c for c in some if 0 < truth[:, c].sum() < len(codes)]
    nothing = float("nan")
    return {
        "auroc": float(np.mean([roc_auc_score(truth[:, c], probabilities[:, c]) for c in both]))
        if both else nothing,
        "average_precision": float(
            np.mean([average_precision_score(truth[:, c], probabilities[:, c]) for c in both])
        ) if both else nothing,
        "prevalence": float(np.mean([truth[:, c].mean() for c in both])) if both else nothing,
        "accuracy": float(np.mean(called == codes)),
        "balanced_accuracy": float(balanced_accuracy_score(codes, called)),
        "brier": float(np.mean(np.sum((probabilities - truth) ** 2, axis=1))),
        "log_loss": float(-np.mean(np.log(probabilities[np.arange(len(codes)), codes].clip(1e-12)))),
        "ece": calibration_error(codes, probabilities),
    }  # fmt: skip


def calibration_error(codes: NDArray[np.int64], probabilities: Floats) -> float:
    """Expected calibration error of the class that is called, over bins of its probability."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == codes
    bins = np.minimum((sure * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = [
        abs(right[bins == b].mean() - sure[bins == b].mean()) * np.mean(bins == b)
        for b in np.unique(bins)
    ]
    return float(np.sum(gaps))


def _interval(
    labels: Floats, predicted: Floats, blocks: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    """R2 of resampled blocks, from the sums of each block."""
    _, which = np.unique(blocks, return_inverse=True)
    about = labels - labels.mean()
    parts = (np.ones(len(labels)), about, about**2, (labels - predicted) ** 2)
    sums = np.stack([np.bincount(which, weights=part) for part in parts])
    blocks_drawn = len(sums[0])
    scores = []
    for _ in range(BOOTSTRAPS):
        rows, first, second, errors = sums[:, rng.integers(0, blocks_drawn, blocks_drawn)].sum(1)
        spread = second - first**2 / rows
        scores.append(1 - errors / spread if spread > 0 else np.nan)
    low, high = np.nanpercentile(scores, [2.5, 97.5])
    return float(low), float(high)
