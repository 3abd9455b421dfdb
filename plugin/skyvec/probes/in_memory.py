"""Whole tables of labelled vectors in memory, and any model of scikit-learn tested on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.folds import BLOCK_ORDER, FOLDS
from skyvec.probes.labels import ColumnLabels
from skyvec.probes.ridge import ALPHAS
from skyvec.probes.rows import CatalogRows, of_all
from skyvec.probes.scores import Score

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Rows that have both a vector and a finite label."""

    features: Floats
    labels: Floats
    blocks: NDArray[np.int64]
    """Sky block of each row."""


def labelled_vectors(vectors: VectorCatalog, target: str) -> Labelled:
    """Vectors joined with a column of the primary catalog."""
    rows = CatalogRows(
        catalog=vectors, source=ColumnLabels(vectors, [target]), block_order=BLOCK_ORDER
    )
    features, labels, blocks = [np.zeros((0, rows.dim))], [np.zeros(0)], [np.zeros(0, np.int64)]
    for pixel in rows.pieces():
        places, values = rows.labels(pixel)
        for found, some in rows.vectors(pixel, of_all(values)):
            good = np.isfinite(some).all(1)
            features.append(some[good].astype(np.float64))
            labels.append(values[found[good], 0])
            blocks.append(places[found[good]])
    return Labelled(features=np.concatenate(features), labels=np.concatenate(labels),
                    blocks=np.concatenate(blocks))  # fmt: skip


def ridge() -> Pipeline:
    """Standardized features, ridge regression, its strength chosen by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))


def cross_validate(
    features: Floats,
    labels: Floats,
    blocks: NDArray[np.int64],
    *,
    model: Pipeline | None = None,
    seed: int = 0,
) -> tuple[Floats, Score]:
    """Out-of-fold predictions (rows,) and their score; folds are made of whole sky blocks."""
    folds = GroupKFold(n_splits=min(FOLDS, len(np.unique(blocks))))
    predicted = cross_val_predict(model or ridge(), features, labels, groups=blocks, cv=folds)
    return predicted, Score.of(labels, predicted, blocks, seed=seed)
