"""The scorecard as data: what ``scorecard.json`` holds, and reading it again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.scorecard.resampling import Estimate

SCHEMA = "skyvec.scorecard/1"
CARD_FILE = "scorecard.json"
PAGE_FILE = "scorecard.html"
PREDICTIONS_FILE = "predictions.safetensors"
LOWER_IS_BETTER = frozenset({"sigma_nmad", "rmse", "bias", "outliers_0.15", "outliers_rail"})

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One method on one task."""

    method: str
    role: str
    """``embeddings``, ``head``, ``baseline``, ``control`` or ``limit``."""
    inputs: str
    head: str
    """Which head, or how often which was chosen."""
    rows: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Paired difference of two methods on the rows that both predict."""

    ours: str
    theirs: str
    metric: str
    rows: int
    difference: Estimate
    """Ours minus theirs."""

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
        low, high = self.difference.low, self.difference.high
        if self.metric in LOWER_IS_BETTER:
            low, high = -high, -low
        return "better" if low > 0 else "worse" if high < 0 else "undecided"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """What came out of one task, or why nothing did."""

    name: str
    kind: str
    skipped: str = ""
    """Reason; empty if it was scored."""
    column: str = ""
    unit: str = ""
    rows: int = 0
    metric: str = ""
    """The declared one, by which models are promoted."""
    tolerance: float = 0.0
    excluded: tuple[str, ...] = ()
    """Token keys that state the label, or were stored for training, and were no inputs."""
    notes: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """A method taught with so many labels, over several draws of them."""

    task: str
    method: str
    role: str
    labels: int
    metric: str
    score: Estimate
    by_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LowData:
    """Quality against the number of labels."""

    seeds: int = 0
    points: tuple[CurvePoint, ...] = ()
    comparisons: Mapping[str, tuple[Comparison, ...]] = field(default_factory=dict)
    """Task -> differences; names of the methods end in the number of labels."""
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorecard:
    """Everything that was measured of one model on one release."""

    model: Mapping[str, Any]
    release: Mapping[str, Any]
    settings: Mapping[str, Any]
    tasks: tuple[TaskResult, ...]
    low_data: LowData
    reconstruction: Mapping[str, Any]
    seconds: float

    def task(self, name: str) -> TaskResult | None:
        """A task by its name."""
        return next((task for task in self.tasks if task.name == name), None)

    def write(self, folder: Path) -> Path:
        """Write ``scorecard.json``; what is not a number becomes null."""
        path = folder / CARD_FILE
        facts = {"schema": SCHEMA, **asdict(self)}
        for task, found in zip(facts["tasks"], self.tasks, strict=True):
            for stated, comparison in zip(task["comparisons"], found.comparisons, strict=True):
                stated["verdict"] = comparison.verdict
        for name, found_all in self.low_data.comparisons.items():
            stated_all = facts["low_data"]["comparisons"][name]
            for stated, comparison in zip(stated_all, found_all, strict=True):
                stated["verdict"] = comparison.verdict
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(_finite(facts), indent=1))
        aside.rename(path)
        return path


def read_card(path: Path) -> Scorecard:
    """Read ``scorecard.json``, given as the file or its folder.

    Raises
    ------
    ConfigurationError
        If it is none, or of another version.
    """
    path = path / CARD_FILE if path.is_dir() else path
    try:
        facts = json.loads(path.read_text())
        if facts.get("schema") != SCHEMA:
            raise ConfigurationError(
                f"its schema is {facts.get('schema')}, this reads {SCHEMA}", where=str(path),
                remedy="Run `evaluate` again with this version",
            )  # fmt: skip
        low = facts["low_data"]
        return Scorecard(
            **{name: facts[name] for name in ("model", "release", "settings", "reconstruction",
                                              "seconds")},
            tasks=tuple(_task(task) for task in facts["tasks"]),
            low_data=LowData(
                seeds=low["seeds"],
                points=tuple(CurvePoint(**p | {"score": _estimate(p["score"]),
                                               "by_seed": tuple(p["by_seed"])})
                             for p in low["points"]),
                comparisons={name: tuple(map(_comparison, found))
                             for name, found in low["comparisons"].items()},
                skipped=tuple(low["skipped"]),
            ),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        if isinstance(problem, ConfigurationError):
            raise
        raise ConfigurationError(
            f"not a scorecard ({type(problem).__name__}: {problem})", where=str(path),
            remedy="Give the folder that `evaluate --out` wrote",
        ) from problem  # fmt: skip


def _task(facts: dict[str, Any]) -> TaskResult:
    scores = tuple(
        Score(**score | {"metrics": {k: _estimate(v) for k, v in score["metrics"].items()}})
        for score in facts["scores"]
    )
    lists = {name: tuple(facts[name]) for name in ("excluded", "notes")}
    comparisons = tuple(map(_comparison, facts["comparisons"]))
    return TaskResult(**facts | lists | {"scores": scores, "comparisons": comparisons})


def _comparison(facts: dict[str, Any]) -> Comparison:
    plain = {key: value for key, value in facts.items() if key != "verdict"}
    return Comparison(**plain | {"difference": _estimate(facts["difference"])})


def _estimate(facts: dict[str, float | None]) -> Estimate:
    return Estimate(**{key: math.nan if value is None else value for key, value in facts.items()})


def _finite(value: Any) -> Any:  # noqa: ANN401  # JSON
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
