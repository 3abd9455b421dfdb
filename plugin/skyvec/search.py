"""Nearest neighbours among the vectors of an extension: exact, in one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skyvec.extensions.vector_catalog import Part, VectorCatalog
from skyvec_schemas.errors import ConfigurationError

Metric = Literal["cosine", "l2"]


def search(
    catalog: str | Path,
    *,
    like: object | None = None,
    vector: NDArray[np.floating] | None = None,
    k: int = 10,
    extension: str | None = None,
    metric: Metric = "cosine",
) -> pa.Table:
    """The ``k`` objects most like one object or vector.

    Parameters
    ----------
    catalog
        Collection with an embedding extension, or an ``<extension>.properties`` file.
    like
        Id of an object of the catalog; it is left out of the answer.
    vector
        Query vector (dim,) of the same model, in place of ``like``.
    k
        Rows wanted; fewer come back from a smaller catalog.
    extension
        Which extension, if there are several.
    metric
        ``cosine``: 1 - cosine similarity to the mean-centred query; ``l2``: Euclidean distance.

    Returns
    -------
    pyarrow.Table
        The id column, ``ra`` and ``dec`` in degrees, ``distance``; nearest first.

    Raises
    ------
    ConfigurationError
        Unknown id, an object without a vector, a vector of another width, k < 1.
    """
    vectors = VectorCatalog.open(catalog, extension)
    if k < 1:
        raise ConfigurationError("must be at least 1", where=f"k = {k}", remedy="Ask for more")
    if (like is None) == (vector is None):
        raise ConfigurationError(
            "give either an id or a vector", where="search", remedy="Pass like=... or vector=..."
        )
    query = find_vector(vectors, like) if vector is None else np.asarray(vector, np.float32)
    if query.shape != (vectors.dim,):
        raise ConfigurationError(
            f"has shape {query.shape}, the vectors have {vectors.dim} values",
            where="query vector",
            remedy="Embed the query with the model of this extension",
        )
    center = mean_vector(vectors) if metric == "cosine" else np.zeros(vectors.dim, np.float32)
    best = _Best(k)
    for part in vectors.parts():
        distance = _distances(part.vectors, query, center=center, metric=metric)
        if like is not None:
            itself = pc.equal(part.ids, _as_id(like, part.ids.type))
            distance[itself.to_numpy(zero_copy_only=False)] = np.inf
        best.add(part, distance)
    return best.table(vectors.id_column)


def find_vector(vectors: VectorCatalog, object_id: object) -> NDArray[np.float32]:
    """Vector (dim,) of one object."""
    for part in vectors.parts():
        row = pc.index(part.ids, _as_id(object_id, part.ids.type)).as_py()
        if row >= 0:
            return part.vectors[row].astype(np.float32)
    raise ConfigurationError(
        f"no object {object_id!r} with a vector",
        where=f"{vectors.primary}, extension {vectors.name}",
        remedy="Check the id, and its status in the extension",
    )


def _as_id(value: object, kind: pa.DataType) -> pa.Scalar:
    """An id in the column's type; the command line has only text."""
    try:
        return (
            pa.scalar(str(value)).cast(kind) if isinstance(value, str) else pa.scalar(value, kind)
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
        raise ConfigurationError(
            f"{value!r} is not an id of type {kind}", where="like", remedy="Give an id as stored"
        ) from problem


def mean_vector(vectors: VectorCatalog) -> NDArray[np.float32]:
    """Mean of all vectors (dim,); what every object shares says nothing about likeness."""
    total, count = np.zeros(vectors.dim), 0
    for part in vectors.parts():
        total += part.vectors.sum(axis=0, dtype=np.float64)
        count += len(part.vectors)
    return (total / max(count, 1)).astype(np.float32)


def _distances(
    stored: NDArray[np.floating],
    query: NDArray[np.float32],
    *,
    center: NDArray[np.float32],
    metric: Metric,
) -> NDArray[np.float32]:
    difference = stored.astype(np.float32) - center
    wanted = query - center
    if metric == "l2":
        return np.linalg.norm(difference - wanted, axis=1)
    norms = np.linalg.norm(difference, axis=1) * np.linalg.norm(wanted)
    similarity = difference @ wanted / np.maximum(norms, np.finfo(np.float32).tiny)
    return np.asarray(1 - similarity, np.float32)


@dataclass
class _Best:
    """The k nearest so far; memory does not grow with the catalog."""

    k: int
    ids: pa.Array | None = None
    positions: NDArray[np.float64] | None = None
    distances: NDArray[np.float32] | None = None

    def add(self, part: Part, distance: NDArray[np.float32]) -> None:
        ids, positions = part.ids, part.positions
        if self.ids is not None and self.positions is not None and self.distances is not None:
            ids = pa.concat_arrays([self.ids, ids])
            positions = np.concatenate([self.positions, positions])
            distance = np.concatenate([self.distances, distance])
        nearest = np.argsort(distance, kind="stable")[: self.k]
        nearest = nearest[np.isfinite(distance[nearest])]
        self.ids, self.positions = ids.take(pa.array(nearest)), positions[nearest]
        self.distances = distance[nearest]

    def table(self, id_column: str) -> pa.Table:
        if self.ids is None or self.positions is None or self.distances is None:
            return pa.table({id_column: [], "ra": [], "dec": [], "distance": []})
        return pa.table(
            {
                id_column: self.ids,
                "ra": self.positions[:, 0],
                "dec": self.positions[:, 1],
                "distance": self.distances,
            }
        )


__all__: Sequence[str] = ("find_vector", "mean_vector", "search")
