"""Numbers or classes from the labelled vectors that are nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from skyvec.probes.shapes import of_width

Floats = NDArray[np.floating]

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
ROWS = 20_000
"""Labelled vectors that a probe keeps."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Labelled vectors; the mean over the ``k`` nearest, by distance, answers.

    Distances are Euclidean between standardized vectors; each neighbour weighs by its inverse.
    """

    vectors: NDArray[np.float32]
    """(rows, dim), standardized."""
    answers: NDArray[np.float64]
    """(rows, targets), or (rows, classes) with ones and zeros."""
    k: int
    mean: Floats
    scale: Floats

    def predict(self, vectors: Floats) -> NDArray[np.float64]:
        """Mean answers (rows, targets or classes)."""
        vectors = of_width(vectors, self.vectors.shape[1])
        if not len(vectors):
            return np.zeros((0, self.answers.shape[1]))
        standard = ((vectors - self.mean) / self.scale).astype(np.float32)
        return _answers(*_nearest(self.vectors, standard, self.k), self.answers, self.k)


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighboursFit:
    """The chosen number, the model of all rows, and out-of-fold answers."""

    model: Neighbours
    left_out: NDArray[np.float64]


def fit_neighbours(
    vectors: Floats,
    answers: NDArray[np.float64],
    folds: NDArray[np.int64],
    *,
    counts: Sequence[int] = COUNTS,
) -> NeighboursFit:
    """Keep the rows; ``k`` is that of least squared error on folds left out."""
    mean = vectors.mean(0, dtype=np.float64)
    scale = vectors.std(0, dtype=np.float64)
    scale[scale <= 1e-6 * max(float(scale.max(initial=0)), 1e-30)] = 1
    standard = ((vectors - mean) / scale).astype(np.float32)
    least = min(int((folds != fold).sum()) for fold in np.unique(folds))
    tried = [k for k in counts if k <= least]
    left_out = np.empty((len(tried), *answers.shape))
    for fold in np.unique(folds):
        held = folds == fold
        apart, which = _nearest(standard[~held], standard[held], tried[-1])
        for place, k in enumerate(tried):
            left_out[place, held] = _answers(apart, which, answers[~held], k)
    # Each target counts by its own variance.
    spread = answers.var(0) + 1e-300
    best = int(np.argmin((((left_out - answers) ** 2).mean(1) / spread).mean(1)))
    model = Neighbours(vectors=standard, answers=answers, k=tried[best], mean=mean, scale=scale)
    return NeighboursFit(model=model, left_out=left_out[best])


def _nearest(known: Floats, asked: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(known)
    apart, which = search.kneighbors(asked)
    return apart, which


def _answers(
    apart: Floats, which: NDArray[np.int64], answers: Floats, k: int
) -> NDArray[np.float64]:
    weights = 1 / np.maximum(apart[:, :k], 1e-6)
    found: NDArray[np.float64] = np.einsum(
        "nk,nkt->nt", weights / weights.sum(1, keepdims=True), answers[which[:, :k]]
    )
    return found
