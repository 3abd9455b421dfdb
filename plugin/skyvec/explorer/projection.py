"""A plane on which objects with like vectors lie together.

UMAP (McInnes, Healy and Melville, arXiv 1802.03426) of a random sample; every other object is
placed amid its nearest in the sample, as UMAP itself begins with objects that it has not seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors

from skyvec.explorer.objects import unit_blocks, unit_vectors
from skyvec.extensions.vector_catalog import VectorCatalog

SAMPLE = 20_000
"""Objects that UMAP itself places: more take longer, by their number."""
COMPONENTS = 50
"""Principal components that are compared, as is usual before UMAP."""
NEIGHBOURS = 15
"""Of UMAP, its default."""
AMID = 5
"""Objects of the sample that place another."""
FEWEST = 100
"""Objects below which there is no structure for UMAP to find."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """Coordinates of all objects, and how they came about."""

    xy: NDArray[np.float32]
    """(n, 2), without units."""
    method: str
    """For people."""


def plane_of(
    vectors: VectorCatalog, count: int, *, sample: int = SAMPLE, seed: int = 0, say: Say
) -> Plane:
    """Place every object; equal seeds give equal planes on one machine.

    Parameters
    ----------
    count
        Objects with a vector.
    sample
        Of them that UMAP places; never fewer than `FEWEST`, where there are so many.

    Raises
    ------
    ContractError
        If a vector holds NaN or infinity.
    """
    rng = np.random.default_rng(seed)
    size = min(max(sample, FEWEST), count)
    which = np.sort(rng.choice(count, size, replace=False))
    some = unit_vectors(vectors, which)
    components = PCA(min(COMPONENTS, *some.shape), svd_solver="randomized", random_state=seed).fit(
        some
    )
    kept = f"{components.n_components_} principal components, which hold "
    kept += f"{components.explained_variance_ratio_.sum():.0%} of the variance"
    reduced = components.transform(some).astype(np.float32)
    if count < FEWEST:
        xy = np.zeros((count, 2), np.float32)
        xy[:, : reduced.shape[1]] = reduced[:, :2]
        return Plane(
            xy=xy,
            method=f"The first two principal components: {count:,} objects are too few for UMAP.",
        )
    say(f"UMAP of {size:,} objects, once (some minutes for 20,000)")
    placed = _umap(reduced, seed)
    if size == count:
        return Plane(xy=placed, method=f"UMAP of all {count:,} objects, of {kept}.")
    say(f"placing the other {count - size:,} objects amid them")
    regressor = KNeighborsRegressor(AMID, weights="distance", algorithm="brute")
    regressor.fit(reduced, placed)
    xy = np.empty((count, 2), np.float32)
    for block in unit_blocks(vectors):
        rows = slice(block.first, block.first + len(block.values))
        xy[rows] = regressor.predict(components.transform(block.values).astype(np.float32))
    xy[which] = placed
    return Plane(
        xy=xy,
        method=f"UMAP of a random sample of {size:,} objects, of {kept}; each of the other "
        f"{count - size:,} lies amid its {AMID} nearest of the sample.",
    )


def _umap(values: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    # Found by brute force: exact, and quicker than compiling an approximate search.
    finder = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(values)
    distances, indices = finder.kneighbors(values)
    with warnings.catch_warnings():
        # Of transforming more objects, and of Tensorflow, neither of which is used.
        warnings.simplefilter("ignore")
        from umap import UMAP

        reducer = UMAP(
            n_neighbors=NEIGHBOURS, init="pca", random_state=seed, n_jobs=1,
            precomputed_knn=(indices, distances.astype(np.float32)),
        )  # fmt: skip
        return np.asarray(reducer.fit_transform(values), np.float32)
