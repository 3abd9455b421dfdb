"""Labels of all tasks side by side: a head that costs much learns every one of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skyvec_training.recipe.evaluation import ClassificationTask, LabelTask, RegressionTask
from skyvec_training.scorecard.sample import Sample

LEAST_ROWS = 50
"""A task with fewer labels is skipped."""
MOST_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Labels (B, K): one column for each number, one for each class of a classification."""

    values_BK: NDArray[np.float64]
    """NaN where unknown; classes are one-hot."""
    columns: Mapping[str, slice]
    """Task -> its columns."""
    classes: Mapping[str, tuple[str, ...]]
    """Classification task -> names of its columns."""

    def of(self, task: str) -> NDArray[np.float64]:
        """Labels of one task: (B, classes), or (B,) of a number."""
        found = self.values_BK[:, self.columns[task]]
        return found if task in self.classes else found[:, 0]

    def known(self, task: str) -> NDArray[np.bool_]:
        """Objects with a label of this task (B,)."""
        return np.asarray(np.isfinite(self.values_BK[:, self.columns[task].start]))

    def shuffled(self, rows: NDArray[np.int64], *, seed: int) -> Targets:
        """Labels of these rows dealt out anew among them."""
        values_BK = self.values_BK.copy()
        values_BK[rows] = values_BK[np.random.default_rng(seed).permutation(rows)]
        return replace(self, values_BK=values_BK)

    def only(self, task: str) -> Targets:
        """The labels of one task."""
        hot = {task: self.classes[task]} if task in self.classes else {}
        values_BK = self.values_BK[:, self.columns[task]]
        return Targets(values_BK=values_BK, columns={task: slice(0, values_BK.shape[1])},
                       classes=hot)  # fmt: skip


def targets_of(sample: Sample, tasks: Sequence[LabelTask]) -> tuple[Targets, dict[str, str]]:
    """Labels of every task that the sample has, and why the others are skipped."""
    parts: list[NDArray[np.float64]] = []
    columns: dict[str, slice] = {}
    classes: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, str] = {}
    for task in tasks:
        if task.column not in sample.columns:
            skipped[task.name] = f"the release has no column {task.column}"
            continue
        names: tuple[str, ...] = ()
        if isinstance(task, RegressionTask):
            found, reason = _number(sample, task)
        else:
            found, names, reason = _one_hot(sample, task)
        if reason:
            skipped[task.name] = reason
            continue
        start = sum(part.shape[1] for part in parts)
        parts.append(found)
        columns[task.name] = slice(start, start + found.shape[1])
        if names:
            classes[task.name] = names
    values = np.concatenate(parts, axis=1) if parts else np.zeros((len(sample), 0))
    return Targets(values_BK=values, columns=columns, classes=classes), skipped


def _number(sample: Sample, task: RegressionTask) -> tuple[NDArray[np.float64], str]:
    values = sample.numbers(task.column)
    if values is None:
        return np.zeros((0, 0)), f"column {task.column} holds no numbers"
    low, high = task.valid
    kept = np.where((values >= low) & (values <= high) & np.isfinite(values), values, np.nan)
    labels = kept[np.isfinite(kept)]
    if len(labels) < LEAST_ROWS:
        return np.zeros((0, 0)), f"{len(labels)} of {len(sample)} objects have a label"
    if np.ptp(labels) == 0:
        return np.zeros((0, 0)), f"column {task.column} is constant"
    return kept[:, None], ""


def _one_hot(
    sample: Sample, task: ClassificationTask
) -> tuple[NDArray[np.float64], tuple[str, ...], str]:
    values = sample.columns[task.column]
    if task.edges:
        numbers = sample.numbers(task.column)
        if numbers is None:
            return np.zeros((0, 0)), (), f"column {task.column} holds no numbers to cut"
        names = task.classes
        place = np.where(np.isfinite(numbers), np.digitize(numbers, task.edges), -1)
    else:
        words = ["" if _unknown(value) else _word(value) for value in values.tolist()]
        names = task.classes or tuple(sorted({word for word in words if word}))
        place = np.array([names.index(word) if word in names else -1 for word in words])
    counts = np.array([(place == index).sum() for index in range(len(names))])
    if counts.sum() < LEAST_ROWS:
        return np.zeros((0, 0)), (), f"{counts.sum()} of {len(sample)} objects have a label"
    if (counts > 0).sum() < 2 or len(names) > MOST_CLASSES:
        return np.zeros((0, 0)), (), f"column {task.column} has {(counts > 0).sum()} classes"
    hot = np.where(place[:, None] < 0, np.nan, place[:, None] == np.arange(len(names)))
    return hot, names, ""


def _unknown(value: object) -> bool:
    return value is None or value != value  # noqa: PLR0124  # NaN


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
