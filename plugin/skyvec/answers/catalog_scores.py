"""Scores of a sample of a catalog, beside which the scores of an answer mean something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.answers.scores import KEPT, ScoreSample, ScoreSampler
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.vector_pages.opening import open_vectors

Floats = NDArray[np.floating[Any]]
PIXELS = 32
"""HEALPix pixels that are looked into at most."""


def catalog_scores(
    vectors: VectorCatalog,
    query: Floats,
    *,
    head: Callable[[Floats], Floats] | None = None,
    center: Floats | None = None,
    rows: int = KEPT,
    seed: int = 0,
) -> ScoreSample:
    """Cosine similarities of a query (width,) with some vectors of an extension.

    All vectors of a small catalog; of a large one the first blocks of random HEALPix pixels, so
    that a sample costs no second pass.

    Parameters
    ----------
    head
        Applied to stored vectors before they are compared.
    center
        (width,), taken off the query and these vectors, where the search does so.
    rows
        About as many are looked at, and no more are kept.
    """
    pixels = list(vectors.release.pixels)
    np.random.default_rng(seed).shuffle(pixels)
    pixels = pixels if vectors.rows <= rows else pixels[:PIXELS]
    each = -(-rows // max(len(pixels), 1)) if vectors.rows > rows else vectors.rows
    sampler = ScoreSampler(kept=rows, seed=seed)
    middle = np.float32(0) if center is None else np.asarray(center, np.float32)
    wanted = np.asarray(query, np.float32) - middle
    wanted = wanted / max(float(np.linalg.norm(wanted)), 1e-12)
    for pixel in pixels:
        seen = 0
        for block in open_vectors(vectors.release.leaf(pixel), vectors.name).blocks():
            values = block.values if head is None else head(block.values)
            values = np.asarray(values, np.float32) - middle
            with np.errstate(invalid="ignore", divide="ignore"):
                sampler.add((values @ wanted) / np.linalg.norm(values, axis=1))
            seen += len(values)
            if seen >= each:
                break
    return sampler.sample()
