"""Numbers or classes from all context vectors of an object: a learned query attends to them.

This is how AION-1 is probed by its makers (arXiv 2510.17960): one layer of cross-attention and a
linear head (`skyvec_core.model.attention_pool`). A query that weighs all tokens alike gives the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from skyvec.probes.calibration import calibrated, temperature_of
from skyvec.probes.contexts import Contexts
from skyvec_core.model.attention_pool import AttentionPool, fit_attention_pool
from skyvec_schemas.errors import ConfigurationError

Floats = NDArray[np.floating]

EPOCHS = 10
"""Each row is seen so often, ..."""
LEAST_STEPS = 200
"""... and more often where rows are few."""
BATCH = 64
LEARNING_RATE = 3e-3
"""Three times that of `fit_attention_pool`, for a third of the steps."""


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """A pool with its head, bound to the model whose contexts it was fitted to."""

    pool: AttentionPool
    classes: bool = False
    """Whether the head gives logits of classes."""
    temperature: float = 1.0

    def predict(self, contexts: Sequence[Tensor]) -> NDArray[np.float64]:
        """Predictions (rows, targets) or probabilities (rows, classes) from contexts (tokens, dim).

        Raises
        ------
        ConfigurationError
            If they are no contexts, or of another width.
        """
        width = self.pool.queries.shape[1]
        for context in contexts:
            shape = tuple(np.shape(context))
            if len(shape) != 2 or shape[1] != width or not shape[0]:
                raise ConfigurationError(
                    f"one row has shape {shape}, the probe learnt on (tokens, {width})",
                    where="an attentive probe",
                    remedy="Give what Model.contexts_of_objects returns for objects with tokens, "
                    "or apply it to a catalog",
                )
        found = _predicted(self.pool, contexts)
        return softmax(found / self.temperature, axis=1) if self.classes else found

    def facts(self) -> dict[str, Any]:
        """For JSON: what tensors do not tell."""
        return {"model_digest": self.pool.model_digest,
                "num_heads": self.pool.attention.num_heads}  # fmt: skip

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All weights, by name."""
        return {name: tensor.numpy() for name, tensor in self.pool.state_dict().items()}

    @classmethod
    def rebuilt(
        cls,
        facts: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        *,
        names: Sequence[str],
        classes: bool,
        temperature: float,
    ) -> Self:
        """From `facts` and `tensors`; ``names`` are those of the targets or classes."""
        queries, dim = tensors["queries"].shape
        pool = AttentionPool(dim, num_queries=queries, targets=names, **facts)
        pool.load_state_dict({name: torch.from_numpy(a) for name, a in tensors.items()})
        return cls(pool=pool.eval(), classes=classes, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a pool is taught, and for which model."""

    contexts: Contexts
    answers: NDArray[np.float64]
    """(rows, targets), or (rows, classes) with ones and zeros."""
    names: tuple[str, ...]
    """Of targets or classes."""
    classes: bool
    num_heads: int
    model_digest: str

    def constant(self, folds: NDArray[np.int64]) -> list[str]:
        """Targets that are constant where some fold is left out."""
        if self.classes:
            return []
        parts = [self.answers[folds != fold] for fold in np.unique(folds)]
        return [name for place, name in enumerate(self.names)
                if any(len(np.unique(part[:, place])) < 2 for part in parts)]  # fmt: skip

    def of(self, rows: NDArray[np.int64], answers: NDArray[np.float64]) -> Lesson:
        """Some rows, with other answers."""
        return replace(self, contexts=self.contexts.of(rows), answers=answers)


@dataclass(frozen=True, kw_only=True)
class AttentiveFit:
    """The model of all rows, and what those of the other folds said of each."""

    model: Attentive
    left_out: NDArray[np.float64]
    """(rows, targets), or calibrated probabilities (rows, classes)."""
    uncalibrated: NDArray[np.float64]
    """The same at temperature 1; of numbers the same."""


def fit_attentive(
    lesson: Lesson, folds: NDArray[np.int64], *, seed: int, workers: int
) -> AttentiveFit:
    """Fit one pool for each fold, to the others, and one to all rows; ``workers`` at a time.

    Raises
    ------
    ConfigurationError
        If a target is constant but for one fold.
    """
    if constant := lesson.constant(folds):
        raise ConfigurationError(
            f"{', '.join(constant)}: constant but for one fold of the sky", where="labels",
            remedy="There is nothing to learn on the others; label objects there, too",
        )  # fmt: skip
    with ThreadPoolExecutor(workers) as threads:
        whole = threads.submit(_pool, lesson, np.ones(len(folds), np.bool_), seed)
        left_out = _left_out(lesson, folds, seed, threads)
    pool = whole.result()
    if not lesson.classes:
        return AttentiveFit(model=Attentive(pool=pool), left_out=left_out, uncalibrated=left_out)
    codes = lesson.answers.argmax(1)
    return AttentiveFit(
        model=Attentive(pool=pool, classes=True, temperature=temperature_of(left_out, codes)),
        left_out=calibrated(left_out, codes, folds), uncalibrated=softmax(left_out, axis=1),
    )  # fmt: skip


def chance(
    lesson: Lesson, folds: NDArray[np.int64], *, seed: int, workers: int
) -> NDArray[np.float64]:
    """What a lesson of shuffled answers leads to: one half of the folds told by the other.

    Numbers (rows, targets) or logits (rows, classes); NaN where there is nothing to learn.
    """
    filled, place = np.unique(folds, return_inverse=True)
    halves = place % 2
    if len(filled) < 2 or lesson.constant(halves):
        return np.full(lesson.answers.shape, np.nan)
    with ThreadPoolExecutor(workers) as threads:
        return _left_out(lesson, halves, seed, threads)


def _left_out(
    lesson: Lesson, folds: NDArray[np.int64], seed: int, threads: ThreadPoolExecutor
) -> NDArray[np.float64]:
    """What the pools of the other folds say of each row."""

    def told(held: NDArray[np.bool_]) -> NDArray[np.float64]:
        return _predicted(_pool(lesson, ~held, seed), lesson.contexts.of(held))

    parts = [folds == fold for fold in np.unique(folds)]
    left_out = np.empty_like(lesson.answers)
    for held, found in zip(parts, threads.map(told, parts), strict=True):
        left_out[held] = found
    return left_out


def _pool(lesson: Lesson, rows: NDArray[np.bool_], seed: int) -> AttentionPool:
    """A pool that learnt from some rows, their labels standardized by themselves."""
    contexts, answers = lesson.contexts.of(rows), lesson.answers[rows]
    pool = AttentionPool(
        contexts.spool.dim, num_heads=lesson.num_heads, targets=lesson.names,
        model_digest=lesson.model_digest,
    )  # fmt: skip
    steps = -(-len(contexts) // BATCH)
    fit_attention_pool(
        pool, contexts, torch.from_numpy(answers), batch_size=BATCH,
        learning_rate=LEARNING_RATE, seed=seed,
        loss="cross_entropy" if lesson.classes else "squared",
        epochs=max(EPOCHS, -(-LEAST_STEPS // steps)),
    )  # fmt: skip
    return pool


def _predicted(pool: AttentionPool, contexts: Sequence[Tensor]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = pool.predict_contexts(contexts).double().numpy()
    return found
