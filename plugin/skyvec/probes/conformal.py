"""Intervals that hold a stated share of the truths, from residuals of rows that were left out.

Split-conformal (Vovk et al. 2005; Lei et al. 2018) with the residuals that each fold has under the
model of the others, apart for each bin of the prediction (Mondrian), since an average over all
hides the faint end. The promise is for rows like the labelled ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

CONFIDENCE = 0.9
BINS = 10
BIN_ROWS = 50
"""Residuals that a bin has at least, unless there is but one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Predictions from ``low`` on and below ``high``."""

    low: float
    high: float
    rows: int
    half_width: float
    """Infinite where there are too few residuals for the confidence that was asked for."""
    coverage: float
    """Share of truths inside, each fold under the intervals of the others."""
    coverage_error: float
    """Standard error of that share if rows are independent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Intervals of equal width to both sides, by bin of prediction."""

    confidence: float
    bins: tuple[Bin, ...]
    coverage: float
    """Over all bins."""
    rows: int

    @classmethod
    def fit(
        cls,
        predicted: Floats,
        labels: Floats,
        folds: NDArray[np.int64],
        *,
        confidence: float,
        bins: int = BINS,
    ) -> Self:
        """From out-of-fold predictions and truths of the same rows.

        Bins are quantiles of the predictions, as many as have `BIN_ROWS` rows each.
        """
        count = max(1, min(bins, len(predicted) // BIN_ROWS))
        inner = np.quantile(predicted, np.arange(1, count) / count)
        edges = np.unique(inner)
        residuals, place = np.abs(predicted - labels), np.searchsorted(edges, predicted, "right")
        inside = np.zeros(len(predicted), np.bool_)
        for fold in np.unique(folds):
            held = folds == fold
            for b in range(len(edges) + 1):
                rows = held & (place == b)
                width = _quantile(residuals[~held & (place == b)], confidence)
                inside[rows] = residuals[rows] <= width
        ends = np.r_[-np.inf, edges, np.inf]
        found = []
        for b in range(len(edges) + 1):
            rows = place == b
            share = float(inside[rows].mean()) if rows.any() else float("nan")
            found.append(
                Bin(
                    low=float(ends[b]), high=float(ends[b + 1]), rows=int(rows.sum()),
                    half_width=_quantile(residuals[rows], confidence), coverage=share,
                    coverage_error=float(np.sqrt(confidence * (1 - confidence)
                                                 / max(1, rows.sum()))),
                )
            )  # fmt: skip
        return cls(confidence=confidence, bins=tuple(found), coverage=float(inside.mean()),
                   rows=len(predicted))  # fmt: skip

    def half_widths(self, predicted: Floats) -> Floats:
        """Half the width of each prediction's interval."""
        edges = np.array([b.low for b in self.bins[1:]])
        widths = np.array([b.half_width for b in self.bins])
        half: Floats = widths[np.searchsorted(edges, predicted, "right")]
        return half

    def facts(self) -> dict[str, Any]:
        """For JSON, which knows no infinity: an open end and an unknown width are null."""
        bins = [
            {name: None if isinstance(value := getattr(b, name), float) and not np.isfinite(value)
             else value for name in Bin.__dataclass_fields__} for b in self.bins
        ]  # fmt: skip
        return {"confidence": self.confidence, "coverage": self.coverage, "rows": self.rows,
                "bins": bins}  # fmt: skip

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Read `facts`."""
        absent = {"low": -np.inf, "high": np.inf, "half_width": np.inf, "coverage": np.nan}
        bins: list[dict[str, Any]] = [
            {**b, **{name: value for name, value in absent.items() if b[name] is None}}
            for b in facts["bins"]
        ]
        return cls(confidence=facts["confidence"], coverage=facts["coverage"], rows=facts["rows"],
                   bins=tuple(Bin(**b) for b in bins))  # fmt: skip


def _quantile(residuals: Floats, confidence: float) -> float:
    """The conformal quantile: of n residuals the one of rank ceil((n + 1) confidence)."""
    rank = ceil((len(residuals) + 1) * confidence - 1e-9)
    if rank > len(residuals):
        return float("inf")
    return float(np.partition(residuals, rank - 1)[rank - 1])
