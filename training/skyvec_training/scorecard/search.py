"""Similarity search: nearest neighbours by cosine, and how relevant they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from skyvec_training.scorecard.heads import Floats, Rows
from skyvec_training.scorecard.metrics import ndcg

# Shape letters: B object, D width, Q query, k neighbour.


def centred(vectors_BD: Floats) -> Floats:
    """Unit vectors about the mean of all: the common direction says nothing about an object."""
    moved = vectors_BD - np.nanmean(vectors_BD, axis=0)
    return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12))


def neighbours(
    queries_QD: Floats, among_BD: Floats, *, k: int, without: Rows | None = None
) -> Rows:
    """Rows (Q, k) of the nearest by cosine, best first; ``without`` is each query's own row."""
    similar = queries_QD @ among_BD.T
    similar[~np.isfinite(similar)] = -np.inf
    if without is not None:
        similar[np.arange(len(similar)), without] = -np.inf
    k = min(k, similar.shape[1])
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similar, nearest, 1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, 1)


def queries_of(hot_BC: Floats, usable_B: NDArray[np.bool_], *, count: int, seed: int) -> Rows:
    """Rows of at most ``count`` queries of each class, in ascending order."""
    rng = np.random.default_rng(seed)
    found = []
    for column in hot_BC.T:
        members = np.flatnonzero((column > 0.5) & usable_B)
        found.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(found))


def class_scores(
    near: Rows, hot_BC: Floats, queries: Rows, usable_B: NDArray[np.bool_]
) -> Mapping[str, Floats]:
    """Score (nDCG) of every query, whose relevant neighbours are those of its class (never itself)."""
    classes = np.where(usable_B, np.nan_to_num(hot_BC).argmax(1), -1)
    relevant = classes[near] == classes[queries][:, None]
    count = np.array([(classes == index).sum() for index in range(hot_BC.shape[1])])
    return {"ndcg": ndcg(relevant, total=count[classes[queries]] - 1)}


def same_object_scores(near: Rows, queries: Rows) -> Mapping[str, Floats]:
    """Recall and nDCG of every query whose one relevant neighbour is itself."""
    relevant = near == queries[:, None]
    return {
        "recall": relevant.any(1).astype(np.float64),
        "ndcg": ndcg(relevant, total=np.ones(len(queries), np.int64)),
    }
