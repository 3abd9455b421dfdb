"""Curves of quality against the number of labels: vectors, boosting, and the supervised network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from skyvec_training.recipe.evaluation import Evaluation, LabelTask
from skyvec_training.scorecard.card import Comparison, CurvePoint, LowData
from skyvec_training.scorecard.prediction import Folds, Method, predict_out_of_fold
from skyvec_training.scorecard.resampling import Resamples
from skyvec_training.scorecard.scoring import (
    Predicted,
    by_repeat,
    compare,
    compared_metrics,
    predicted_of,
    score,
)
from skyvec_training.scorecard.targets import Targets

FEWER = 10
"""Our vectors with N labels are compared with the supervised network with this many times N."""


def curves(
    methods: Sequence[Method],
    network: Method | None,
    tasks: Sequence[LabelTask],
    targets: Targets,
    folds: Folds,
    resamples: Resamples,
    run: Evaluation,
    work: Path,
    *,
    observe: Callable[[str], None],
) -> LowData:
    """Every method at every number of labels; each row is predicted by heads of its fold.

    A seed is a draw of labels from the other folds, so five folds are five seeds and together
    predict every row once.
    """
    low = run.low_data
    repeats = max(1, -(-low.seeds // folds.count))
    points: list[CurvePoint] = []
    found: dict[tuple[str, str, int], Predicted] = {}
    skipped: list[str] = []
    most = _most_labels(targets, folds)
    for count in low.labels:
        if count > most:
            skipped.append(f"{count:,} labels: a fold leaves at most {most:,}")
            continue
        for method in (*methods, *([network] if network and count in low.supervised else [])):
            observe(f"{count:,} labels, {method.name}")
            out, choices = predict_out_of_fold(
                method, targets, folds, work, inner_share=run.heads.inner_share, labels=count,
                repeats=repeats,
            )  # fmt: skip
            for task in tasks:
                first = predicted_of(method, out, choices, targets, task.name)[0]
                found[task.name, method.name, count] = first
                metric = compared_metrics(task)[0]
                points.append(CurvePoint(
                    task=task.name, method=method.name, role=method.role, labels=count,
                    metric=metric, score=score(task, targets, first, resamples).metrics[metric],
                    by_seed=by_repeat(task, targets, first, folds.fold_B),
                ))  # fmt: skip
    comparisons = {
        task.name: tuple(_with_fewer(task, found, methods, network, targets, resamples))
        for task in tasks
    }
    return LowData(seeds=repeats * folds.count, points=tuple(points), comparisons=comparisons,
                   skipped=tuple(skipped))  # fmt: skip


def _with_fewer(
    task: LabelTask,
    found: dict[tuple[str, str, int], Predicted],
    methods: Sequence[Method],
    network: Method | None,
    targets: Targets,
    resamples: Resamples,
) -> list[Comparison]:
    out: list[Comparison] = []
    for name, theirs, count in list(found):
        few = count // FEWER
        if name != task.name or network is None or theirs != network.name:
            continue
        for method in methods:
            ours = found.get((name, method.name, few))
            if method.role != "embeddings" or ours is None:
                continue
            names = (f"{method.name}, {few:,} labels", f"{theirs}, {count:,} labels")
            out += compare(task, targets, ours, found[name, theirs, count], resamples, names=names,
                           metrics=compared_metrics(task)[:1])  # fmt: skip
    return out


def _most_labels(targets: Targets, folds: Folds) -> int:
    known = np.isfinite(targets.values_BK).any(1)
    return min(int((known & (folds.fold_B != fold)).sum()) for fold in range(folds.count))
