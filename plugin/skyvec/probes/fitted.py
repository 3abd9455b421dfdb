"""A fitted model with everything that is known of it: choices, metrics, intervals, chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.probes.attentive import Attentive
from skyvec.probes.conformal import Intervals
from skyvec.probes.folds import BLOCK_ORDER
from skyvec.probes.logistic import Logits
from skyvec.probes.neighbours import Neighbours
from skyvec.probes.ridge import ALPHAS, Linear
from skyvec.probes.scan import Drawn
from skyvec.probes.scores import (
    Score,
    classification_metrics,
    is_redshift,
    photoz_metrics,
    r_squared,
)

Floats = NDArray[np.floating]
Model = Linear | Logits | Neighbours | Attentive

SHUFFLED_ROWS = 2000
"""Rows whose labels are shuffled to show what chance scores."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of a fit."""

    targets: tuple[str, ...]
    kind: str
    folds: int
    alphas: tuple[float, ...] = ALPHAS
    confidence: float
    bins: int
    max_rows: int | None
    seed: int
    block_order: int = BLOCK_ORDER
    blocks_are_sky: bool = True


@dataclass(kw_only=True)
class Fitted:
    """A model with everything that is known of it."""

    model: Model
    classes: tuple[Any, ...] = ()
    """What is told apart, in the order of the model's columns; empty for numbers."""
    intervals: dict[str, Intervals] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """For JSON: rows, folds, choices, metrics."""
    scaler: dict[str, Floats] = field(default_factory=dict)


def of_numbers(
    model: Model, left_out: Floats, sample: Drawn, folds: NDArray[np.int64], settings: Settings
) -> Fitted:
    """Metrics and intervals of out-of-fold predictions (rows, targets)."""
    metrics: dict[str, Any] = {}
    intervals = {}
    for place, target in enumerate(settings.targets):
        labels, predicted = sample.labels[:, place], left_out[:, place]
        metrics[target] = asdict(Score.of(labels, predicted, sample.blocks, seed=settings.seed))
        metrics[target]["bias"] = float(np.mean(predicted - labels))
        if is_redshift(target) and float(labels.min()) > -1:
            metrics[target]["photoz"] = photoz_metrics(labels, predicted)
        intervals[target] = Intervals.fit(
            predicted, labels, folds, confidence=settings.confidence, bins=settings.bins
        )
    return Fitted(model=model, intervals=intervals, facts={"metrics": metrics})


def of_classes(
    model: Model, probabilities: Floats, sample: Drawn, classes: Sequence[Any]
) -> Fitted:
    """Metrics of out-of-fold probabilities (rows, classes)."""
    codes = sample.labels[:, 0].astype(np.int64)
    counts = np.bincount(codes, minlength=len(classes)).tolist()
    metrics: Mapping[str, Any] = classification_metrics(codes, probabilities)
    facts = {"metrics": {**metrics, "rows": len(codes), "blocks": len(np.unique(sample.blocks))},
             "class_rows": counts}  # fmt: skip
    return Fitted(model=model, classes=tuple(classes), facts=facts)


def some_rows(
    count: int, rng: np.random.Generator, *, most: int = SHUFFLED_ROWS
) -> NDArray[np.int64]:
    """At most ``most`` of ``count`` rows, in order."""
    rows: NDArray[np.int64] = np.sort(rng.permutation(count)[:most])
    return rows


def add_chance(fitted: Fitted, mixed: Floats, predicted: Floats, targets: Sequence[str]) -> None:
    """Add to the metrics what the same fit scores on shuffled labels (rows, targets or classes).

    NaN predictions score NaN: nothing could be fitted.
    """
    metrics = fitted.facts["metrics"]
    if fitted.classes:
        known = bool(np.isfinite(predicted).all())
        found = classification_metrics(mixed.argmax(1), predicted)["auroc"] if known else np.nan
        metrics["auroc_shuffled"] = found
        return
    for place, target in enumerate(targets):
        metrics[target]["r2_shuffled"] = r_squared(mixed[:, place], predicted[:, place])
