"""What a probe is and how well it does, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skyvec.probes.conformal import Intervals
    from skyvec.probes.probe import Probe


def report_lines(probe: Probe) -> dict[str, str]:
    """Title and text of each line but the tables of intervals."""
    record = probe.record
    lines = {"target": ", ".join(probe.targets), "kind": _kind(probe)}
    if probe.fingerprint:
        by = "read by" if probe.attentive else "by"
        lines["tokens" if probe.attentive else "vectors"] = (
            f"{probe.extension} {by} {record.get('model', '?')} (fingerprint "
            f"{probe.fingerprint[:12]})"
        )
    if "labels" in record:
        lines["labels"] = record["labels"]
    if probe.classes:
        lines |= _of_classes(probe)
    else:
        for target in probe.targets:
            lines |= _of_number(probe.metrics[target], target if len(probe.targets) > 1 else "")
    lines["measured on"] = (
        f"{record['sample']:,} of {record['used']:,} labelled rows, {record['blocks']} sky blocks "
        f"in {record['folds']} folds, left out in turn"
    )
    for place, note in enumerate(record["notes"], start=1):
        lines[f"note {place}"] = note
    return lines


def interval_rows(intervals: Intervals) -> list[dict[str, str]]:
    """One row for each bin of prediction."""
    return [
        {
            "from": _end(b.low), "to": _end(b.high), "rows": f"{b.rows:,}",
            "width": "unbounded" if np.isinf(b.half_width) else f"{2 * b.half_width:.4g}",
            "coverage": "-" if np.isnan(b.coverage)
            else f"{b.coverage:.3f} +- {b.coverage_error:.3f}",
        } for b in intervals.bins
    ]  # fmt: skip


def _kind(probe: Probe) -> str:
    if probe.neighbours:
        rows = len(probe.neighbours.vectors)
        return f"knn, the nearest {probe.neighbours.k} of {rows:,} labelled vectors"
    if probe.attentive and probe.classes:
        return f"attentive, {len(probe.classes)} classes, temperature {probe.temperature:.2f}"
    if probe.kind == "logistic":
        return f"logistic, {len(probe.classes)} classes, temperature {probe.temperature:.2f}"
    return probe.kind


def _of_number(metrics: dict[str, Any], target: str) -> dict[str, str]:
    of = f" {target}" if target else ""
    lines = {
        f"R2{of}": f"{metrics['r2']:.3f} (95%: {_told(metrics['r2_low'])} to "
        f"{_told(metrics['r2_high'])}); labels shuffled: {_told(metrics['r2_shuffled'])}",
        f"RMSE, NMAD, bias{of}": f"{metrics['rmse']:.4f}, {metrics['nmad']:.4f}, "
        f"{metrics['bias']:+.4f}",
    }
    if photoz := metrics.get("photoz"):
        lines[f"photo-z{of}"] = (
            f"of dz/(1+z): bias {photoz['bias']:+.4f}, sigma_NMAD {photoz['sigma_nmad']:.4f} (about "
            f"the median), sigma_IQR {photoz['sigma_iqr']:.4f}, outliers {photoz['outliers']:.1%} "
            f"beyond 0.15 and {photoz['outliers_rail']:.1%} beyond max(0.06, 3 sigma_IQR)"
        )
    return lines


def _of_classes(probe: Probe) -> dict[str, str]:
    metrics = probe.metrics
    counts = probe.record["class_rows"]
    return {
        "classes": ", ".join(f"{c} ({n:,})" for c, n in zip(probe.classes, counts, strict=True)),
        "AUROC": f"{_told(metrics['auroc'])}; labels shuffled: {_told(metrics['auroc_shuffled'])}",
        "average precision": f"{_told(metrics['average_precision'])} at a prevalence of "
        f"{_told(metrics['prevalence'])} of {_scored(probe.classes)}",
        "accuracy": f"{metrics['accuracy']:.3f}, balanced {metrics['balanced_accuracy']:.3f}",
        "calibration": f"ECE {metrics['ece']:.3f}"
        + (f" (before: {metrics['ece_uncalibrated']:.3f})" if "ece_uncalibrated" in metrics else "")
        + f", Brier {metrics['brier']:.3f} (summed over classes)",
    }


def _scored(classes: Sequence[str]) -> str:
    return str(classes[1]) if len(classes) == 2 else "each class, on average"


def _end(value: float) -> str:
    return "..." if np.isinf(value) else f"{value:.4g}"


def _told(value: float | None) -> str:
    return "unknown" if value is None or np.isnan(value) else f"{value:.3f}"
