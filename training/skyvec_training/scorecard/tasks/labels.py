"""Numbers and classes: every head on every input set, beside baselines, controls and limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

from skyvec_training.recipe.evaluation import LabelTask, RegressionTask
from skyvec_training.scorecard.card import Comparison, TaskResult
from skyvec_training.scorecard.methods import (
    Bench,
    InputSet,
    baselines,
    embedding_method,
    oracle,
)
from skyvec_training.scorecard.metrics import CHANCE
from skyvec_training.scorecard.prediction import CHOSEN, Folds, Method, predict_out_of_fold
from skyvec_training.scorecard.resampling import Resamples
from skyvec_training.scorecard.scoring import (
    Predicted,
    compare,
    compared_metrics,
    predicted_of,
    score,
    sound,
)
from skyvec_training.scorecard.targets import Targets

SHUFFLED = "shuffled labels"


def predict_all(
    bench: Bench,
    random: dict[str, InputSet],
    network: Method | None,
    asked: Sequence[LabelTask],
    targets: Targets,
    folds: Folds,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, list[Predicted]]:
    """Task -> predictions of every method, heads included."""
    run = bench.run
    richest = bench.richest
    methods = [embedding_method(bench, found, run.heads.names) for found in bench.inputs.values()]
    methods += baselines(bench)
    if network is not None and run.supervised.folds:
        methods.append(network)
    methods.append(embedding_method(bench, random[richest.name], run.control_heads,
                                    role=f"random {folds.seed}"))  # fmt: skip
    out: dict[str, list[Predicted]] = {task.name: [] for task in asked}
    if not asked:
        return out
    for method in methods:
        say(f"heads: {method.name}")
        found, choices = predict_out_of_fold(method, targets, folds, work,
                                             inner_share=run.heads.inner_share)  # fmt: skip
        for name in out:
            out[name] += predicted_of(method, found, choices, targets, name)
    shuffled = embedding_method(bench, richest, run.control_heads)
    found, choices = predict_out_of_fold(shuffled, targets, folds, work, shuffled=True,
                                         inner_share=run.heads.inner_share)  # fmt: skip
    control = Method(name=SHUFFLED, role="control", inputs=shuffled.inputs,
                     heads=shuffled.heads, has_B=shuffled.has_B, version="")  # fmt: skip
    for task in asked:
        out[task.name] += predicted_of(control, found, choices, targets, task.name)[:1]
        if limit := oracle(bench, task.name, task.oracle):
            truth, choice = predict_out_of_fold(limit, targets.only(task.name), folds, work,
                                                inner_share=run.heads.inner_share)  # fmt: skip
            out[task.name] += predicted_of(limit, truth, choice, targets.only(task.name),
                                           task.name)  # fmt: skip
    return out


def result_of(
    task: LabelTask,
    bench: Bench,
    targets: Targets,
    found: Sequence[Predicted],
    resamples: Resamples,
) -> TaskResult:
    """Scores of every method, and who beats whom."""
    whole = [p for p in found if p.head == CHOSEN]
    ours = [p for p in whole if p.method.role == "embeddings"]
    others = [p for p in whole if p.method.role != "embeddings"]
    comparisons = [
        comparison
        for one in ours
        for other in others
        if _worth_comparing(one.method, other.method, bench)
        for comparison in compare(task, targets, one, other, resamples)
    ]
    comparisons += _fusion(task, bench, ours, targets, resamples)
    photometry = next((p for p in others if p.method.name == "boosting_photometry"), None)
    limit = next((p for p in others if p.method.role == "limit"), None)
    if photometry and limit:
        comparisons += compare(task, targets, limit, photometry, resamples)
    scores = tuple(score(task, targets, p, resamples) for p in found)
    notes = []
    metric = compared_metrics(task)[0]
    for one_score in scores:
        if one_score.method == SHUFFLED and metric in one_score.metrics:
            fine = sound(one_score.metrics[metric], chance=CHANCE[metric])
            notes.append("shuffled labels score chance, as they must" if fine else
                         "SHUFFLED LABELS SCORE ABOVE CHANCE: something leaks")  # fmt: skip
    if seen := sorted(set(task.excluded) & set(bench.model.config.domains_out)):
        notes.append(f"the model was pre-trained to predict {', '.join(seen)}: the encoder has seen "
                     "such labels of its training objects")  # fmt: skip
    is_number = isinstance(task, RegressionTask)
    return TaskResult(
        name=task.name, kind="regression" if is_number else "classification", column=task.column,
        unit=task.unit if isinstance(task, RegressionTask) else ", ".join(targets.classes[task.name]),
        rows=int(targets.known(task.name).sum()), metric=metric, tolerance=task.tolerance,
        excluded=bench.excluded, notes=tuple(notes), scores=scores, comparisons=tuple(comparisons),
    )  # fmt: skip


def _worth_comparing(ours: Method, theirs: Method, bench: Bench) -> bool:
    """A random encoder with the same inputs; a limit with the richest; every baseline with all."""
    if theirs.role == "control":
        return theirs.name != SHUFFLED and theirs.inputs == ours.inputs
    return theirs.role == "baseline" or ours.inputs == bench.richest.name


def _fusion(
    task: LabelTask, bench: Bench, ours: Sequence[Predicted], targets: Targets, resamples: Resamples
) -> list[Comparison]:
    """What more modalities add: every input set against each that it contains."""
    out: list[Comparison] = []
    for more, less in permutations(ours, 2):
        wide, narrow = (set(bench.inputs[p.method.inputs].embedded.domains) for p in (more, less))
        if narrow < wide:
            out += compare(task, targets, more, less, resamples)
    return out
