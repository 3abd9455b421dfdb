"""Attentive pools fitted to columns of a catalog, on cached contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from skyvec_core.model.attention_pool import AttentionPool, fit_attention_pool
from skyvec_training.data.leaves import leaves_of, require_columns
from skyvec_training.heads.cache import CachedContexts, ContextCache
from skyvec_training.heads.identities import id_column_of, identities
from skyvec_training.recipe.heads import PoolRun
from skyvec_training.recipe.reading import rows_to_train

# Shape letters: B object, K target.

TOWER = "contexts"
"""Name of the one tower of a cache for pools."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPool:
    """A pool, and how well it does on rows that it has not seen."""

    pool: AttentionPool
    r2: dict[str, float]
    """Of each target on held-out rows, the last of the cache; NaN with fewer than two labels."""
    held_out: int


def fit_pool(
    cache: ContextCache, labels_BK: NDArray[np.float64], run: PoolRun, *, num_heads: int, seed: int
) -> FittedPool:
    """Fit a pool to all rows but the held-out ones."""
    trained = rows_to_train(len(cache), run.held_out, where="pool")
    rows = np.arange(len(cache))
    pool = AttentionPool(
        cache.towers[TOWER].width, num_heads=num_heads, targets=run.targets,
        model_digest=cache.model_digest, num_queries=run.num_queries,
    )  # fmt: skip
    fit_attention_pool(
        pool, CachedContexts(cache, TOWER, rows[:trained]), torch.from_numpy(labels_BK[:trained]),
        epochs=run.epochs, batch_size=run.batch, learning_rate=run.learning_rate,
        weight_decay=run.weight_decay, seed=seed,
    )  # fmt: skip
    found_BK = pool.predict_contexts(CachedContexts(cache, TOWER, rows[trained:]))
    scores = [_r2(labels_BK[trained:, k], found_BK[:, k].double().numpy())
              for k in range(len(run.targets))]  # fmt: skip
    return FittedPool(
        pool=pool,
        r2=dict(zip(run.targets, scores, strict=True)),
        held_out=len(cache) - trained,
    )


def read_labels(
    catalog: Path, targets: Sequence[str], ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Columns of a HATS catalog (B, K) for these ids; NaN for an id that it lacks."""
    labels_BK = np.full((len(ids), len(targets)), np.nan)
    order = np.argsort(ids, kind="stable")
    for leaf in leaves_of(catalog):
        id_column = id_column_of(leaf)
        require_columns(leaf, list(targets), remedy="Correct the targets of the recipe")
        table = pq.ParquetFile(leaf).read(columns=[id_column, *targets])
        own = identities(table.column(id_column))
        first = np.searchsorted(ids, own, sorter=order).clip(max=len(ids) - 1)
        rows = order[first]
        hit = ids[rows] == own
        for k, target in enumerate(targets):
            values = table.column(target).cast(pa.float64()).to_numpy()
            labels_BK[rows[hit], k] = values[hit]
    return labels_BK


def _r2(labels_B: NDArray[np.float64], found_B: NDArray[np.float64]) -> float:
    known = np.isfinite(labels_B)
    labels_B, found_B = labels_B[known], found_B[known]
    total = float(np.sum((labels_B - labels_B.mean()) ** 2)) if len(labels_B) > 1 else 0.0
    return 1 - float(np.sum((labels_B - found_B) ** 2)) / total if total else float("nan")
