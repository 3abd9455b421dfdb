"""Similarity search by mean vectors, or in the space of an alignment head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.heads.alignment import TEXT, AlignmentHead
from skyvec_training.recipe.evaluation import SearchTask
from skyvec_training.scorecard import search
from skyvec_training.scorecard.card import Comparison, Score, TaskResult
from skyvec_training.scorecard.methods import Bench, InputSet
from skyvec_training.scorecard.metrics import Floats, mean_of, ndcg
from skyvec_training.scorecard.photometry import photometric_features
from skyvec_training.scorecard.resampling import Resamples
from skyvec_training.scorecard.targets import Targets
from skyvec_training.scorecard.tasks.by_row import scored, skipped, spread


@dataclass(frozen=True, kw_only=True)
class Space:
    """Vectors in which neighbours are looked for."""

    queries_BD: Floats
    among_BD: Floats
    role: str


def find(
    task: SearchTask,
    bench: Bench,
    random: InputSet | None,
    targets: Targets,
    alignments: Sequence[AlignmentHead],
    resamples: Resamples,
    *,
    seed: int,
) -> TaskResult:
    """Score neighbours by nDCG and recall, beside a random encoder and the magnitudes."""
    alignment = next((a for a in alignments if {task.query, task.among} <= set(a.towers)), None)
    if reason := _reason(task, bench, targets, alignment):
        return skipped(task.name, "search", reason, column=task.labels)
    among = bench.inputs[task.among]
    usable_B = among.has_B & (targets.known(task.labels) if task.labels else among.has_B)
    if task.query == TEXT:
        assert alignment is not None  # noqa: S101  # `_reason` says so
        return _by_text(task, among, usable_B, targets, alignment, bench)
    query = bench.inputs[task.query]
    hot_BC = targets.of(task.labels) if task.labels else np.ones((len(bench.sample), 1))
    rows = search.queries_of(hot_BC, usable_B & query.has_B, count=task.queries, seed=seed)
    if not len(rows):
        return skipped(task.name, "search", "no object has both modalities", column=task.labels)
    found: dict[str, dict[str, Floats]] = {}
    spaces = _spaces(task, bench, query, among, random, alignment)
    for name, space in spaces.items():
        ranked_BD = np.where(usable_B[:, None], space.among_BD, np.nan)
        near = search.neighbours(space.queries_BD[rows], ranked_BD, k=task.k,
                                 without=rows if task.labels else None)  # fmt: skip
        scores = (search.class_scores(near, hot_BC, rows, usable_B) if task.labels
                  else search.same_object_scores(near, rows))  # fmt: skip
        for metric, values in scores.items():
            found.setdefault(f"{metric}@{task.k}", {})[name] = values
    chance = (float(np.nan_to_num(hot_BC[usable_B]).mean(0)[hot_BC[rows].argmax(1)].mean())
              if task.labels else task.k / int(usable_B.sum()))  # fmt: skip
    return _result(task, found, spaces, rows, resamples, bench, chance=chance)


def _reason(
    task: SearchTask, bench: Bench, targets: Targets, alignment: AlignmentHead | None
) -> str:
    """Why a search cannot be scored; empty if it can."""
    if task.query == TEXT and alignment is None:
        return "no alignment head that knows text is given"
    for name in {task.query, task.among} - {TEXT}:
        if name not in bench.inputs:
            return f"{name}: {bench.skipped[name]}"
    if task.labels and task.labels not in targets.classes:
        return f"no classes of {task.labels}"
    if not task.labels and task.query == task.among:
        return "an object always finds itself among the same vectors"
    return ""


def _spaces(
    task: SearchTask,
    bench: Bench,
    query: InputSet,
    among: InputSet,
    random: InputSet | None,
    alignment: AlignmentHead | None,
) -> dict[str, Space]:
    """Ours first."""
    if alignment is not None:
        name = "aligned embeddings"
        asked, ranked = (_aligned(alignment, s) for s in (query, among))
    else:
        name = "embeddings"
        asked, ranked = (search.centred(s.embedded.mean_BD) for s in (query, among))
    spaces = {f"{name}, {task.query}": Space(queries_BD=asked, among_BD=ranked, role="embeddings")}
    if task.query != task.among:
        return spaces
    if random is not None:
        floor = search.centred(random.embedded.mean_BD)
        spaces[f"random encoder, {task.query}"] = Space(queries_BD=floor, among_BD=floor,
                                                        role="control")  # fmt: skip
    magnitudes, used = photometric_features(
        bench.sample, bench.run.photometry, shapes=False, colours=False
    )
    if used:
        spread_F = np.maximum(np.nanstd(magnitudes, axis=0), 1e-12)
        scaled = search.centred(np.nan_to_num(magnitudes / spread_F))
        spaces["photometry"] = Space(queries_BD=scaled, among_BD=scaled, role="baseline")
    return spaces


def _aligned(alignment: AlignmentHead, found: InputSet) -> Floats:
    contexts = [torch.from_numpy(np.array(found.embedded.contexts(row)))
                for row in range(len(found.embedded))]  # fmt: skip
    return alignment.embed(found.name, contexts).double().numpy()


def _by_text(
    task: SearchTask,
    among: InputSet,
    usable_B: NDArray[np.bool_],
    targets: Targets,
    alignment: AlignmentHead,
    bench: Bench,
) -> TaskResult:
    """Each class is one query, so intervals come from drawing classes anew, not the sky."""
    classes = targets.classes[task.labels]
    hot_BC = np.nan_to_num(targets.of(task.labels)) * usable_B[:, None]
    ranked_BD = np.where(usable_B[:, None], _aligned(alignment, among), np.nan)
    words = alignment.embed_text(task.texts or classes).double().numpy()
    near = search.neighbours(words, ranked_BD, k=task.k)
    relevant = np.stack([hot_BC[row, index] > 0.5 for index, row in enumerate(near)])
    values = ndcg(relevant, total=(hot_BC > 0.5).sum(0))
    draws = Resamples(np.arange(len(values)), count=bench.run.resamples, seed=0)
    estimate = draws.estimate(mean_of, values, values, np.ones(len(values), bool))
    metric = f"ndcg@{task.k}"
    score = Score(method="aligned embeddings, text", role="embeddings", inputs=among.name,
                  head="cosine", rows=len(values), metrics={metric: estimate})  # fmt: skip
    chance = float(((hot_BC > 0.5).sum(0) / max(1, usable_B.sum())).mean())
    return TaskResult(
        name=task.name, kind="search", column=task.labels, rows=int(usable_B.sum()), metric=metric,
        tolerance=task.tolerance, scores=(score,), notes=(f"chance is about {chance:.3g}",),
    )  # fmt: skip


def _result(
    task: SearchTask,
    found: dict[str, dict[str, Floats]],
    spaces: dict[str, Space],
    rows: NDArray[np.int64],
    resamples: Resamples,
    bench: Bench,
    *,
    chance: float,
) -> TaskResult:
    merged: dict[str, Score] = {}
    comparisons: tuple[Comparison, ...] = ()
    for metric, values in found.items():
        columns = {name: spread(v, rows, len(bench.sample)) for name, v in values.items()}
        scores, differences = scored(
            {name: (column, column) for name, column in columns.items()},
            {name: space.role for name, space in spaces.items()},
            metric, mean_of, resamples, inputs=f"{task.query} among {task.among}",
        )  # fmt: skip
        comparisons += differences
        for one in scores:
            before = merged[one.method].metrics if one.method in merged else {}
            merged[one.method] = replace(one, head="cosine", metrics={**before, **one.metrics})
    return TaskResult(
        name=task.name, kind="search", column=task.labels, rows=len(rows), metric=next(iter(found)),
        tolerance=task.tolerance, excluded=bench.excluded, scores=tuple(merged.values()),
        comparisons=comparisons, notes=(f"chance is about {chance:.3g}",),
    )  # fmt: skip
