"""The scorecard as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from skyvec_training.scorecard import figures
from skyvec_training.scorecard.card import PAGE_FILE, Comparison, Scorecard, TaskResult
from skyvec_training.scorecard.wording import (
    VERDICTS,
    headline,
    interval,
    label,
    number,
    sentence,
)

KINDS = {
    "regression": "Numbers",
    "classification": "Classes",
    "transfer": "From survey to survey",
    "segmentation": "Segmentation",
    "search": "Similarity search",
}


def write_page(card: Scorecard, folder: Path) -> Path:
    """Write ``scorecard.html`` and return it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters |= {"number": number, "interval": interval, "label": label}
    source = resources.files("skyvec_training.scorecard").joinpath("page.html.j2")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    path = folder / PAGE_FILE
    aside = path.with_suffix(".tmp")
    aside.write_text(template.render(context(card)), encoding="utf-8")
    aside.rename(path)
    return path


def context(card: Scorecard) -> dict[str, object]:
    """Everything that the template shows."""
    scored = [task for task in card.tasks if not task.skipped]
    return {
        "card": card,
        "recipe": json.dumps(card.settings["recipe"], indent=1),
        "summary": [
            _verdict(found) | {"sentence": f"{task.name.capitalize()}: {sentence(found)}"}
            for task in scored
            if (found := headline(task))
        ],
        "groups": [
            (title, [_task(task) for task in scored if task.kind == kind])
            for kind, title in KINDS.items()
            if any(task.kind == kind for task in scored)
        ],
        "curves": [_curve(card, task) for task in _with_curves(card)],
        "skipped": [(task.name, task.skipped) for task in card.tasks if task.skipped],
        "images": [(key, facts) for key, facts in card.reconstruction.items() if "r2" in facts],
        "scalars": card.reconstruction.get("scalars", {}),
    }


def anchor(name: str) -> str:
    """Name of a task as an HTML id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _task(task: TaskResult) -> dict[str, object]:
    metrics = list(dict.fromkeys(m for score in task.scores for m in score.metrics))
    charted = [score for score in task.scores if score.role != "head"]
    return {
        "facts": task,
        "anchor": anchor(task.name),
        "metrics": metrics,
        "chart": Markup(figures.score_chart(charted, task.metric, name=anchor(task.name))),  # noqa: S704  # made here
        "comparisons": [_verdict(c) for c in _by_importance(task)],
    }


def _by_importance(task: TaskResult) -> list[Comparison]:
    """What is said in short first, then the declared metric, then the others."""
    first = headline(task)
    ours = first.ours if first else ""
    return sorted(task.comparisons, key=lambda c: (c.ours != ours, c.metric != task.metric))


def _curve(card: Scorecard, task: str) -> dict[str, object]:
    name = f"curve-{anchor(task)}"
    return {
        "task": task,
        "anchor": name,
        "chart": Markup(figures.curve_chart(card.low_data, task, name=name)),  # noqa: S704  # made here
        "comparisons": [_verdict(c) for c in card.low_data.comparisons.get(task, ())],
        "points": [point for point in card.low_data.points if point.task == task],
    }


def _with_curves(card: Scorecard) -> list[str]:
    return list(dict.fromkeys(point.task for point in card.low_data.points))


def _verdict(comparison: Comparison) -> dict[str, object]:
    return {
        "verdict": comparison.verdict,
        "words": VERDICTS[comparison.verdict],
        "sentence": sentence(comparison),
        "comparison": comparison,
    }
