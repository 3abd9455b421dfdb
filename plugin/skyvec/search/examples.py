"""Several objects as one query: averages, contrasts, and what all vectors have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.metrics import Doubles, Metric
from skyvec.search.products import in_singles
from skyvec.search.scan import Head
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.reading import Memory
from skyvec_schemas.errors import ConfigurationError, ContractError


def average(
    positive: Doubles, negative: Doubles, *, metric: Metric, center: NDArray[np.float32] | None
) -> Doubles:
    """One query (1, dim): the mean of some examples less the mean of others.

    By cosine each example counts at unit length; the centre stays the origin (Rocchio, 1971, with
    equal weights).

    Raises
    ------
    ConfigurationError
        For a contrast by ``l2``: the difference of two means is no place among the vectors.
    """
    if len(negative) and metric == "l2":
        raise ConfigurationError(
            "a contrast is a direction, which has no distance",
            where="unlike, metric l2",
            remedy="Search by cosine or inner_product, or leave out the examples to stay away from",
        )
    if len(positive) == 1 and not len(negative):
        return positive
    origin = np.zeros(positive.shape[1]) if center is None else center.astype(np.float64)
    mean: Doubles = _counted(positive - origin, metric).mean(axis=0)
    if len(negative):
        mean = mean - _counted(negative - origin, metric).mean(axis=0)
    return (origin + mean)[None]


def _counted(rows: Doubles, metric: Metric) -> Doubles:
    if metric != "cosine":
        return rows
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0))


def mean_vector(vectors: VectorCatalog, head: Head | None = None) -> NDArray[np.float32]:
    """Mean of all vectors (dim,), after ``head`` if there is one; a pass of its own.

    Raises
    ------
    ContractError
        If a file holds NaN or infinity.
    """
    total: Doubles | None = None
    count, memory = 0, Memory()
    for pixel in vectors.release.pixels:
        path = vectors.release.leaf(pixel)
        with open_parquet(path) as file:
            for block in open_vectors(path, vectors.name, file=file).blocks(memory=memory):
                rows = in_singles(block.values)
                if head is not None:
                    rows = np.asarray(head(rows))
                some = rows.sum(axis=0, dtype=np.float64)
                total = some if total is None else total + some
                count += len(rows)
        if total is not None and not np.isfinite(total).all():
            raise ContractError(
                "a vector holds NaN or infinity",
                where=str(path),
                remedy="`skyvec verify` lists what is damaged; embed this pixel again",
            )
    if total is None:
        return np.zeros(vectors.dim, np.float32)
    return (total / max(count, 1)).astype(np.float32)
