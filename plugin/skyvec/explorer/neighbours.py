"""The nearest objects of one on the map, exact over the stored vectors."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec.explorer.objects import Objects
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search.ask import search
from skyvec.vector_pages.opening import open_vectors
from skyvec_schemas.errors import ContractError

K = 12
"""Neighbours that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Objects like one, nearest first."""

    which: NDArray[np.int64]
    """(k,), among all objects."""
    similarity: NDArray[np.float64]
    """Cosine."""
    distance: NDArray[np.float64]
    """1 - similarity."""
    seconds: float
    """That the search took."""


def neighbours_of(
    vectors: VectorCatalog, objects: Objects, which: int, *, k: int = K
) -> Neighbours:
    """One pass over all vectors of the extension, as `skyvec.search` makes it.

    Raises
    ------
    ContractError
        If the extension was written anew since the map was opened.
    """
    started = time.perf_counter()
    pixel = vectors.release.pixels[objects.place[which]]
    vector = open_vectors(vectors.release.leaf(pixel), vectors.name).row(int(objects.row[which]))
    if vector is None:
        raise ContractError(
            f"object {objects.name(which)} has no vector any more",
            where=f"{vectors.primary}, extension {vectors.name}",
            remedy="Start the explorer again: the extension was written anew",
        )
    found = search(vectors, vector=vector, k=k + 1).table
    places = objects.find(found.column(vectors.id_column).combine_chunks())
    keep = np.flatnonzero((places != which) & (places >= 0))[:k]
    similarity, distance = (found.column(n).to_numpy()[keep] for n in ("similarity", "distance"))
    return Neighbours(
        which=places[keep], similarity=similarity, distance=distance,
        seconds=time.perf_counter() - started,
    )  # fmt: skip
