"""Promotion: a candidate takes the place of the current model only if no declared metric falls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_training.scorecard.card import PREDICTIONS_FILE, Scorecard, TaskResult, read_card
from skyvec_training.scorecard.heads import Floats
from skyvec_training.scorecard.metrics import auroc, r2
from skyvec_training.scorecard.resampling import Estimate, Resamples
from skyvec_training.scorecard.wording import label, number

PROMOTED_FILE = "promoted.json"
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How one declared metric moved from the current model to the candidate."""

    task: str
    method: str
    metric: str
    current: float
    candidate: float
    difference: Estimate
    """Candidate minus current: paired over sky blocks, or from both intervals where rows of the
    current model are not at hand."""
    paired: bool
    tolerance: float
    missing: str = ""
    """Why the candidate has no such score."""

    @property
    def fell(self) -> bool:
        """Whether it fell by more than the tolerance, or is gone."""
        return bool(self.missing) or not self.difference.value >= -self.tolerance

    @property
    def sure(self) -> bool:
        """Whether the interval leaves no doubt about a fall."""
        return bool(self.missing) or self.difference.high < 0

    def words(self) -> str:
        """One line for people."""
        where = f"{self.task}, {self.method}"
        if self.missing:
            return f"{where}: {self.missing}"
        said = "holds" if not self.fell else "falls" if self.sure else "falls, within its interval"
        return (
            f"{where}: {label(self.metric)} {said}, {number(self.current)} to "
            f"{number(self.candidate)} (difference {number(self.difference.value)}, "
            f"{number(self.difference.low)} to {number(self.difference.high)}; tolerance "
            f"{number(self.tolerance)})"
        )


def compare_cards(candidate: Path, current: Path) -> tuple[Scorecard, Scorecard, list[Change]]:
    """Both scorecards, and every declared metric of the current one.

    Raises
    ------
    ConfigurationError
        If one is no scorecard, or they asked other things of other objects.
    """
    new, old = read_card(candidate), read_card(current)
    for what, ours, theirs in (
        ("settings", new.settings["digest"], old.settings["digest"]),
        ("seed", new.settings["seed"], old.settings["seed"]),
        ("objects", new.release["rows"], old.release["rows"]),
        ("catalog", new.release["catalog"], old.release["catalog"]),
    ):
        if ours != theirs:
            raise ConfigurationError(
                f"its {what} ({ours}) are not those of {current} ({theirs})", where=str(candidate),
                remedy="Evaluate both models on one release by one recipe",
            )  # fmt: skip
    rows = _Rows.of(candidate, current)
    return new, old, [change for task in old.tasks for change in _changes(task, new, rows)]


def promote(candidate: Path, current: Path, out: Path) -> list[Change]:
    """Write ``promoted.json`` into ``out`` if nothing fell; returns what moved.

    Raises
    ------
    ContractError
        If a declared metric fell by more than its tolerance; nothing is written.
    """
    new, old, changes = compare_cards(candidate, current)
    if not changes:
        raise ContractError(
            "it scores no task, so there is nothing to promote by", where=str(current),
            remedy="Evaluate on a release with labels",
        )  # fmt: skip
    if fallen := [change.words() for change in changes if change.fell]:
        raise ContractError(
            f"{new.model['name']} is not promoted: " + "; ".join(fallen), where=str(candidate),
            remedy="Keep the current model, or train on and evaluate again",
        )  # fmt: skip
    facts = {
        "promoted": dict(new.model), "instead_of": dict(old.model),
        "release": {key: new.release[key] for key in ("catalog", "rows", "token_fingerprint")},
        "settings_digest": new.settings["digest"],
        "changes": [asdict(change) for change in changes],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    aside = out / f"{PROMOTED_FILE}.tmp"
    aside.write_text(json.dumps(facts, indent=1))
    aside.rename(out / PROMOTED_FILE)
    return changes


class _Rows:
    """Predictions of both models, row by row, where they are of the same objects."""

    def __init__(self, new: Mapping[str, Floats], old: Mapping[str, Floats]) -> None:
        self.new, self.old = new, old
        self.resamples = Resamples(old["blocks"].astype(np.int64), count=RESAMPLES, seed=0)

    @classmethod
    def of(cls, candidate: Path, current: Path) -> _Rows | None:
        """None if predictions are missing or in another order."""
        files = [path / PREDICTIONS_FILE for path in (candidate, current)]
        if not all(file.is_file() for file in files):
            return None
        ids = []
        for file in files:
            with safe_open(file, framework="numpy") as stored:
                ids.append((stored.metadata() or {}).get("ids"))
        return cls(load_file(files[0]), load_file(files[1])) if ids[0] == ids[1] else None

    def difference(self, task: TaskResult, method: str) -> Estimate | None:
        """Paired difference of the declared metric; None where rows are not kept for it."""
        metric = {"r2": r2, "auroc": auroc}.get(task.metric)
        key = f"{task.name}/{method}"
        if metric is None or key not in self.new or key not in self.old:
            return None
        truth = self.old[f"{task.name}/truth"]
        known = np.asarray(np.isfinite(truth.reshape(len(truth), -1)).all(1))
        for values in (self.new[key], self.old[key]):
            known = known & np.isfinite(values.reshape(len(values), -1)).all(1)
        return self.resamples.difference(
            metric, (truth, self.new[key]), (truth, self.old[key]), known
        )


def _changes(task: TaskResult, new: Scorecard, rows: _Rows | None) -> Iterator[Change]:
    theirs = new.task(task.name)
    for score in task.scores:
        if score.role != "embeddings" or task.metric not in score.metrics:
            continue
        before = score.metrics[task.metric]
        after = next((s.metrics[task.metric] for s in (theirs.scores if theirs else ())
                      if s.method == score.method and task.metric in s.metrics), None)  # fmt: skip
        if after is None:
            reason = theirs.skipped if theirs and theirs.skipped else "no such score"
            nothing = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
            yield Change(task=task.name, method=score.method, metric=task.metric,
                         current=before.value, candidate=float("nan"), difference=nothing,
                         paired=False, tolerance=task.tolerance, missing=reason)  # fmt: skip
            continue
        paired = rows.difference(task, score.method) if rows else None
        yield Change(
            task=task.name, method=score.method, metric=task.metric, current=before.value,
            candidate=after.value, difference=paired or _apart(after, before),
            paired=paired is not None, tolerance=task.tolerance,
        )  # fmt: skip


def _apart(after: Estimate, before: Estimate) -> Estimate:
    """Difference of two scores that were measured apart: half widths add in quadrature."""
    value = after.value - before.value
    down = np.hypot(after.value - after.low, before.high - before.value)
    up = np.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value=value, low=value - float(down), high=value + float(up))
