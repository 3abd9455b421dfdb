"""From survey to survey: a head that learnt on one's vectors is asked about the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyvec_training.recipe.evaluation import LabelTask, TransferTask
from skyvec_training.scorecard.card import TaskResult
from skyvec_training.scorecard.heads import Floats, RidgeHead
from skyvec_training.scorecard.methods import Bench, InputSet
from skyvec_training.scorecard.prediction import CHOSEN, Folds, Method
from skyvec_training.scorecard.resampling import Resamples
from skyvec_training.scorecard.scoring import (
    Predicted,
    compare,
    compared_metrics,
    score,
)
from skyvec_training.scorecard.targets import Targets
from skyvec_training.scorecard.tasks.by_row import skipped

if TYPE_CHECKING:
    from collections.abc import Mapping


def transfer(
    task: TransferTask,
    labels: LabelTask,
    bench: Bench,
    targets: Targets,
    folds: Folds,
    resamples: Resamples,
) -> TaskResult:
    """Ridge on mean vectors, always asked about sky that it was not taught on.

    It stands beside the same head taught on the second survey itself.
    """
    for name in (task.taught_on, task.asked_on):
        if name not in bench.inputs:
            return skipped(task.name, "transfer", f"{name}: {bench.skipped[name]}")
    if labels.name not in targets.columns:
        return skipped(task.name, "transfer", f"no labels of {labels.name}")
    taught, asked = bench.inputs[task.taught_on], bench.inputs[task.asked_on]
    found: Mapping[str, tuple[str, Floats]] = {
        f"taught on {task.taught_on}": ("embeddings", _asked(taught, asked, targets, folds)),
        f"taught on {task.asked_on}": ("limit", _asked(asked, asked, targets, folds)),
    }
    columns = targets.columns[labels.name]
    moved, within = (
        Predicted(
            method=Method(name=name, role="embeddings" if role == "embeddings" else "limit",
                          inputs=task.asked_on, heads=[], has_B=asked.has_B, version=""),
            head=CHOSEN, choice="ridge_mean",
            values=values[None, :, columns] if labels.name in targets.classes
            else values[None, :, columns.start],
        )
        for name, (role, values) in found.items()
    )  # fmt: skip
    return TaskResult(
        name=task.name, kind="transfer", column=labels.column, rows=int(asked.has_B.sum()),
        metric=compared_metrics(labels)[0], tolerance=task.tolerance, excluded=bench.excluded,
        scores=tuple(score(labels, targets, one, resamples) for one in (moved, within)),
        comparisons=tuple(compare(labels, targets, moved, within, resamples)),
    )  # fmt: skip


def _asked(taught: InputSet, asked: InputSet, targets: Targets, folds: Folds) -> Floats:
    """Out-of-fold predictions (B, K) for the objects that have the second inputs."""
    count = len(targets.values_BK)
    # Rows of the second survey stand below those of the first, with the same labels.
    head = RidgeHead("ridge_mean", np.concatenate([taught.embedded.mean_BD,
                                                   asked.embedded.mean_BD]))  # fmt: skip
    both = Targets(values_BK=np.concatenate([targets.values_BK] * 2), columns=targets.columns,
                   classes=targets.classes)  # fmt: skip
    out = np.full(targets.values_BK.shape, np.nan)
    for fold in range(folds.count):
        train = np.flatnonzero((folds.fold_B != fold) & taught.has_B)
        test = np.flatnonzero((folds.fold_B == fold) & asked.has_B)
        if len(train) and len(test):
            out[test] = head.predict(train, test + count, both, seed=folds.seed)
    return out
