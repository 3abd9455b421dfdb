"""Out-of-fold predictions of every method, kept on disk; heads are chosen without test rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from skyvec_training.scorecard.heads import Floats, Head, Rows
from skyvec_training.scorecard.metrics import r2
from skyvec_training.scorecard.resampling import inner_split
from skyvec_training.scorecard.targets import Targets

Role = Literal["embeddings", "head", "baseline", "control", "limit"]
CHOSEN = "chosen"


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is compared: heads, one of which is chosen for each task, on rows that have the inputs.

    ``embeddings`` are ours; a ``baseline`` is what they must beat; a ``control`` is what would
    betray a mistake; a ``limit`` is given truth that no survey has.
    """

    name: str
    role: Role
    inputs: str
    heads: Sequence[Head]
    has_B: NDArray[np.bool_]
    """Objects that have the inputs."""
    version: str
    """Changes whenever the method's numbers may."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Who is predicted when: fold and sky block of every row."""

    fold_B: Rows
    block_B: Rows
    seed: int

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.fold_B.max()) + 1


def predict_out_of_fold(
    method: Method,
    targets: Targets,
    folds: Folds,
    work: Path,
    *,
    inner_share: float,
    labels: int | None = None,
    repeats: int = 1,
    shuffled: bool = False,
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Predictions (repeats, B, K) by head, ``chosen`` among them; NaN where inputs lack.

    Parameters
    ----------
    work
        Folder of what is kept; equal methods, targets and folds are read back.
    labels
        Learn from so many rows, drawn anew in each fold and repeat; all by default.
    shuffled
        Learn from labels that were dealt out anew.

    Returns
    -------
    tuple
        The predictions, and for each task the heads that were chosen, by how often.
    """
    facts = {
        "method": method.name, "version": method.version, "seed": folds.seed, "labels": labels,
        "heads": [head.name for head in method.heads], "repeats": repeats, "shuffled": shuffled,
        "targets": _digest(targets.values_BK), "folds": _digest(folds.fold_B),
        "blocks": _digest(folds.block_B), "has": _digest(method.has_B), "inner": inner_share,
        "tasks": list(targets.columns),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = work / "predictions" / f"{key}.safetensors"
    if path.is_file():
        found: dict[str, Floats] = load_file(path)
        return found, json.loads(path.with_suffix(".json").read_text())
    names = [head.name for head in method.heads]
    shape = (repeats, *targets.values_BK.shape)
    out = {name: np.full(shape, np.nan, np.float32) for name in {*names, CHOSEN}}
    choices: dict[str, list[str]] = {task: [] for task in targets.columns}
    for repeat in range(repeats):
        for fold in range(folds.count):
            seed = folds.seed + folds.count * repeat + fold
            test = np.flatnonzero((folds.fold_B == fold) & method.has_B)
            train = np.flatnonzero((folds.fold_B != fold) & method.has_B)
            known = train[np.isfinite(targets.values_BK[train]).any(1)]
            if labels is not None:
                rng = np.random.default_rng([seed, labels])
                known = rng.choice(known, min(labels, len(known)), replace=False)
            if not len(test) or not len(known):
                continue
            learnt = targets.shuffled(known, seed=seed) if shuffled else targets
            best = _choose(method.heads, known, learnt, folds, share=inner_share, seed=seed)
            for head in method.heads:
                out[head.name][repeat, test] = head.predict(known, test, learnt, seed=seed)
            for task, columns in targets.columns.items():
                choices[task].append(best[task])
                out[CHOSEN][repeat, test, columns] = out[best[task]][repeat, test, columns]
    summed = {task: ", ".join(f"{name} {chosen.count(name)}" for name in names if name in chosen)
              for task, chosen in choices.items()}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(summed))
    aside = path.with_suffix(".tmp")
    save_file(out, aside)
    aside.chmod(0o644)  # safetensors writes 0600
    aside.rename(path)
    return out, summed


def _choose(
    heads: Sequence[Head], train: Rows, targets: Targets, folds: Folds, *, share: float, seed: int
) -> Mapping[str, str]:
    """Best head of each task on training rows that were kept apart."""
    if len(heads) == 1:
        return dict.fromkeys(targets.columns, heads[0].name)
    inner, apart = inner_split(folds.block_B[train], share=share, seed=seed)
    fit_on, choose_by = train[inner], train[apart]
    predicted = {h.name: h.predict(fit_on, choose_by, targets, seed=seed) for h in heads}
    best = {}
    for task, columns in targets.columns.items():
        known = targets.known(task)[choose_by]
        truth = targets.values_BK[choose_by][known][:, columns]
        scores = {name: _quality(truth, out[known][:, columns]) for name, out in predicted.items()}
        best[task] = max(scores, key=lambda name: scores[name])
    return best


def _quality(truth: Floats, predicted: Floats) -> float:
    scores = [r2(t, p) for t, p in zip(truth.T, predicted.T, strict=True) if len(t) > 1]
    finite = [score for score in scores if np.isfinite(score)]
    return float(np.mean(finite)) if finite else -np.inf


def _digest(values: NDArray[np.generic]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
