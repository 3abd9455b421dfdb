"""From predictions to scores with intervals, and to paired differences of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_training.recipe.evaluation import ClassificationTask, LabelTask
from skyvec_training.scorecard.card import Comparison, Score
from skyvec_training.scorecard.metrics import CLASSIFICATION, REDSHIFT, REGRESSION, Floats, Metric
from skyvec_training.scorecard.prediction import CHOSEN, Method
from skyvec_training.scorecard.resampling import Estimate, Resamples
from skyvec_training.scorecard.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Out-of-fold predictions of one method for one task."""

    method: Method
    head: str
    """``chosen`` or the name of a head."""
    values: Floats
    """(repeats, B) of a number or (repeats, B, classes); NaN where inputs lack."""
    choice: str
    """Heads that were chosen, by how often."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rows with a prediction (B,)."""
        return np.asarray(np.isfinite(self.values.reshape(*self.values.shape[:2], -1)).all((0, 2)))


def predicted_of(
    method: Method,
    found: Mapping[str, Floats],
    choices: Mapping[str, str],
    targets: Targets,
    task: str,
) -> list[Predicted]:
    """The chosen head's predictions of one task, then those of every head if there are several."""
    columns = targets.columns[task]
    names = [CHOSEN, *(h.name for h in method.heads if len(method.heads) > 1)]
    return [
        Predicted(
            method=method, head=name, choice=choices.get(task, "") if name == CHOSEN else name,
            values=found[name][:, :, columns] if task in targets.classes
            else found[name][:, :, columns.start],
        )
        for name in names
    ]  # fmt: skip


def metrics_of(task: LabelTask) -> Mapping[str, Metric]:
    """Metrics of a task, the declared one first."""
    if isinstance(task, ClassificationTask):
        return CLASSIFICATION
    return REDSHIFT if task.redshift else REGRESSION


def compared_metrics(task: LabelTask) -> tuple[str, ...]:
    """Metrics by which methods are compared, the declared one first."""
    if isinstance(task, ClassificationTask):
        return ("auroc",)
    return ("r2", "sigma_nmad") if task.redshift else ("r2",)


def score(task: LabelTask, targets: Targets, found: Predicted, resamples: Resamples) -> Score:
    """Every metric of the task with its interval; of a single head, the declared one."""
    truth, values, known = _arrays(task, targets, found)
    metrics = metrics_of(task)
    if found.head != CHOSEN:
        metrics = {name: metrics[name] for name in compared_metrics(task)[:1]}
    return Score(
        method=found.method.name,
        role=found.method.role if found.head == CHOSEN else "head",
        inputs=found.method.inputs,
        head=found.choice,
        rows=int(known.sum()),
        metrics={name: resamples.estimate(over_repeats(metric), truth, values, known)
                 for name, metric in metrics.items()} if known.sum() > 1 else {},
    )  # fmt: skip


def compare(
    task: LabelTask,
    targets: Targets,
    ours: Predicted,
    theirs: Predicted,
    resamples: Resamples,
    *,
    names: tuple[str, str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Iterator[Comparison]:
    """Paired differences on the rows that both predict; none if there are no such rows."""
    truth, our_values, our_known = _arrays(task, targets, ours)
    _, their_values, their_known = _arrays(task, targets, theirs)
    known = our_known & their_known
    if known.sum() < 2:
        return
    for name in metrics or compared_metrics(task):
        metric = over_repeats(metrics_of(task)[name])
        difference = resamples.difference(metric, (truth, our_values), (truth, their_values), known)
        first, second = names or (ours.method.name, theirs.method.name)
        yield Comparison(ours=first, theirs=second, metric=name, rows=int(known.sum()),
                         difference=difference)  # fmt: skip


def by_repeat(task: LabelTask, targets: Targets, found: Predicted, groups: NDArray[np.int64]
              ) -> tuple[float, ...]:  # fmt: skip
    """The declared metric of each repeat and fold (group of rows): one number for each seed."""
    truth, values, known = _arrays(task, targets, found)
    metric = metrics_of(task)[compared_metrics(task)[0]]
    return tuple(
        metric(truth[rows], values[rows, repeat])
        for repeat in range(values.shape[1])
        for group in np.unique(groups)
        if (rows := known & (groups == group)).sum() > 1
    )


def over_repeats(metric: Metric) -> Metric:
    """The mean of a metric over the repeats of predictions (rows, repeats, ...)."""

    def averaged(truth: Floats, values: Floats) -> float:
        return float(np.mean([metric(truth, values[:, r]) for r in range(values.shape[1])]))

    return averaged


def sound(control: Estimate, *, chance: float) -> bool:
    """Whether a control learnt nothing: its interval reaches down to chance."""
    return bool(not np.isfinite(control.low) or control.low <= chance)


def _arrays(
    task: LabelTask, targets: Targets, found: Predicted
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Truth (B, ...), predictions (B, repeats, ...), and rows where both are there."""
    return (
        targets.of(task.name),
        np.swapaxes(found.values, 0, 1),
        targets.known(task.name) & found.known,
    )
