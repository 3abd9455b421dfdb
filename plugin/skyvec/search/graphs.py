"""Graphs of the vectors of single HATS pixels, by usearch, and the objects that are held out of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.metrics import Metric
from skyvec.search.rows import read_rows
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.pages import Block
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.vectors import tensor_values

_KINDS = {"cosine": "cos", "l2": "l2sq", "inner_product": "ip"}


def usearch_index() -> Any:  # noqa: ANN401
    """The class of graphs, if usearch is installed."""
    try:
        return import_module("usearch.index").Index
    except ModuleNotFoundError as problem:
        raise ConfigurationError(
            "usearch is not installed",
            where="approximate search",
            remedy="pip install 'skyvec[ann]', or search exactly",
        ) from problem


def empty_graph(dim: int, metric: Metric, expansion: int) -> Any:  # noqa: ANN401
    """A graph without vectors."""
    return usearch_index()(
        ndim=dim, metric=_KINDS[metric], dtype="f16", expansion_add=expansion,
        expansion_search=expansion,
    )  # fmt: skip


def restored_graph(path: Path, expansion: int, *, view: bool) -> Any:  # noqa: ANN401
    """A graph from its file; as a view of it, it cannot be changed."""
    index = usearch_index().restore(str(path), view=view)
    if index is None:
        raise ConfigurationError(
            "is damaged", where=str(path), remedy="Build the index again, or search without it"
        )
    index.expansion_add = index.expansion_search = expansion  # which the file does not keep
    return index


def fill_graph(
    index: Any,  # noqa: ANN401
    vectors: VectorCatalog,
    pixel: HealpixPixel,
    *,
    without: NDArray[np.int64],
) -> None:
    """Add the vectors of a pixel by the numbers of their rows, some rows left out."""
    for block in _blocks(vectors, pixel):
        rows = block.first_row + np.flatnonzero(~block.null)
        keep = ~np.isin(rows, without)
        if keep.any():
            index.add(rows[keep], block.values[keep].astype(np.float16), threads=1)


def _blocks(vectors: VectorCatalog, pixel: HealpixPixel) -> Iterator[Block]:
    path = vectors.release.leaf(pixel)
    with open_parquet(path) as file:
        yield from open_vectors(path, vectors.name, file=file).blocks()


def vectors_of(
    vectors: VectorCatalog, pixel: HealpixPixel, rows: NDArray[np.int64]
) -> NDArray[np.floating]:
    """Vectors (rows, dim) of some rows of a pixel."""
    with open_parquet(vectors.release.leaf(pixel)) as file:
        column = read_rows(file, [vectors.name], rows).column(0).combine_chunks()
    return tensor_values(column, missing=np.nan)


def held_out(
    vectors: VectorCatalog, queries: int, rng: np.random.Generator
) -> dict[HealpixPixel, NDArray[np.int64]]:
    """Some rows of all that have a vector, by pixel."""
    there = [
        np.concatenate([b.first_row + np.flatnonzero(~b.null) for b in _blocks(vectors, pixel)])
        for pixel in vectors.release.pixels
    ]
    ends = np.cumsum([len(rows) for rows in there])
    count = min(queries, int(ends[-1]) // 10)
    if count < 1:
        raise ConfigurationError(
            f"has only {ends[-1]} vectors, too few to measure what an index misses",
            where=f"extension {vectors.name}",
            remedy="Search exactly: it takes no time here",
        )
    chosen = np.sort(rng.choice(ends[-1], count, replace=False))
    held = {}
    for place, pixel in enumerate(vectors.release.pixels):
        start = ends[place] - len(there[place])
        mine = chosen[(chosen >= start) & (chosen < ends[place])] - start
        if len(mine):
            held[pixel] = there[place][mine]
    return held


def wilson_interval(share: float, trials: int) -> tuple[float, float]:
    """Ends of the 95% interval of a share of trials (Wilson, 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / 4 / trials**2)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def graph_file(folder: Path, pixel: HealpixPixel) -> Path:
    """Where the graph of a pixel lies."""
    return folder / f"Norder={pixel.order}-Npix={pixel.pixel}.usearch"
