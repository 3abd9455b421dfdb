"""Segmentation of the cutout from image tokens."""

from __future__ import annotations

import numpy as np

from skyvec_training.recipe.evaluation import SegmentationTask
from skyvec_training.scorecard import segmentation
from skyvec_training.scorecard.card import TaskResult
from skyvec_training.scorecard.methods import Bench, InputSet
from skyvec_training.scorecard.metrics import intersection_over_union
from skyvec_training.scorecard.prediction import Folds
from skyvec_training.scorecard.resampling import Resamples
from skyvec_training.scorecard.tasks.by_row import scored, skipped, spread

LEAST = 10
"""Objects with a map; fewer say nothing."""


def segment(
    task: SegmentationTask,
    bench: Bench,
    random: InputSet | None,
    folds: Folds,
    resamples: Resamples,
) -> TaskResult:
    """IoU of a linear head on tokens, beside a random encoder and the mean map."""
    reason = ""
    if task.inputs not in bench.inputs:
        reason = f"{task.inputs}: {bench.skipped[task.inputs]}"
    elif task.column not in bench.sample.columns:
        reason = f"the release has no column {task.column}"
    elif bench.sample.columns[task.column].dtype != object:
        reason = f"column {task.column} holds no maps"
    if reason:
        return skipped(task.name, "segmentation", reason, column=task.column)
    found, count = bench.inputs[task.inputs], len(bench.sample)
    maps_BHW, there_B = segmentation.maps_of(
        bench.sample.columns[task.column], threshold=task.threshold
    )
    rows = np.flatnonzero(there_B & found.has_B)[: task.objects]
    if len(rows) < LEAST or len(np.unique(folds.fold_B[rows])) < 2:
        return skipped(task.name, "segmentation", f"{len(rows)} objects have a map",
                       column=task.column)  # fmt: skip
    start = bench.model.vocabulary.positions[task.token_key].start
    fold_B = folds.fold_B[rows]
    asked = {f"embeddings, {task.inputs}": found}
    if random:
        asked[f"random encoder, {task.inputs}"] = random
    masks = {
        name: segmentation.predict_maps(
            vectors.embedded, maps_BHW, rows, fold_B, token_key=task.token_key, start=start
        )
        for name, vectors in asked.items()
    }
    masks["mean map"] = segmentation.mean_map(maps_BHW[rows], fold_B)
    roles = dict(zip(masks, ("embeddings", "control", "baseline") if random
                     else ("embeddings", "baseline"), strict=True))  # fmt: skip
    overlaps = {name: segmentation.overlaps(mask, maps_BHW[rows]) for name, mask in masks.items()}
    scores, comparisons = scored(
        {name: (spread(both, rows, count), spread(either, rows, count))
         for name, (both, either) in overlaps.items()},
        roles, "iou", intersection_over_union, resamples, inputs=task.inputs,
    )  # fmt: skip
    return TaskResult(
        name=task.name, kind="segmentation", column=task.column, rows=len(rows), metric="iou",
        tolerance=task.tolerance, excluded=bench.excluded, scores=scores, comparisons=comparisons,
    )  # fmt: skip
