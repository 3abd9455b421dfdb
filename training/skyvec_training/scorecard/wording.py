"""Scores in words: tables for the terminal and for the page."""

from __future__ import annotations

import math

from rich.table import Table

from skyvec_training.scorecard.card import Comparison, Scorecard, TaskResult
from skyvec_training.scorecard.resampling import Estimate

LABELS = {
    "r2": "R²", "rmse": "RMSE", "bias": "bias", "sigma_nmad": "NMAD of dz/(1+z)",
    "outliers_0.15": "outliers > 0.15", "outliers_rail": "outliers (RAIL)", "auroc": "AUROC",
    "average_precision": "average precision", "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy", "iou": "IoU",
}  # fmt: skip
VERDICTS = {"better": "beats", "worse": "falls behind", "undecided": "is not told apart from"}


def label(metric: str) -> str:
    """Name of a metric for people."""
    return LABELS.get(metric, metric.replace("ndcg", "nDCG"))


def number(value: float) -> str:
    """Three decimals; scientific where that would hide the number; a dash for none."""
    if not math.isfinite(value):
        return "-"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e4):
        return f"{value:.2g}"
    return f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """The 95% interval."""
    return f"{number(estimate.low)} to {number(estimate.high)}"


def sentence(comparison: Comparison) -> str:
    """Who beats whom, by how much."""
    difference = comparison.difference
    sign = "+" if difference.value >= 0 else "-"
    ours, theirs = (name.replace("_", " ") for name in (comparison.ours, comparison.theirs))
    return (
        f"{ours} {VERDICTS[comparison.verdict]} {theirs}: "
        f"{label(comparison.metric)} {sign}{number(abs(difference.value))} "
        f"({interval(difference)})"
    )


def headline(task: TaskResult) -> Comparison | None:
    """The richest embeddings against boosting on photometry, or else the first baseline."""
    baselines = {s.method for s in task.scores if s.role == "baseline"}
    found = [c for c in task.comparisons if c.metric == task.metric and c.theirs in baselines]
    photometric = [c for c in found if c.theirs == "boosting_photometry"] or found
    values = {s.method: s.metrics[task.metric].value for s in task.scores
              if s.role == "embeddings" and task.metric in s.metrics}  # fmt: skip
    return max(photometric, key=lambda c: values.get(c.ours, -math.inf), default=None)


def table_of(card: Scorecard) -> Table:
    """The scorecard in the terminal: a line for each task."""
    table = Table(title=f"{card.model['name']} on {card.release['catalog']}, "
                        f"{card.release['rows']:,} objects")  # fmt: skip
    for column in ("task", "best embeddings", "score (95%)", "against"):
        table.add_column(column)
    for task in card.tasks:
        if task.skipped:
            table.add_row(task.name, "skipped", "", task.skipped, style="dim")
            continue
        ours = [s for s in task.scores if s.role == "embeddings" and task.metric in s.metrics]
        best = max(ours, key=lambda s: s.metrics[task.metric].value, default=None)
        against = headline(task)
        table.add_row(
            task.name,
            best.method if best else "-",
            f"{label(task.metric)} {number(best.metrics[task.metric].value)} "
            f"({interval(best.metrics[task.metric])})" if best else "",
            sentence(against) if against else "",
        )  # fmt: skip
    return table
