"""Objects that have vectors by two models, partition by partition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.bridge import Floats
from skyvec.extensions.vector_catalog import Part, VectorCatalog
from skyvec.probes.folds import sky_blocks
from skyvec_schemas.vectors import tensor_values


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Objects of one partition that have both vectors."""

    ids: pa.Array
    blocks: NDArray[np.int64]
    new: Floats
    old: Floats

    def where(self, keep: NDArray[np.bool_]) -> Pairs:
        """Some of them."""
        return Pairs(ids=self.ids.filter(pa.array(keep)), blocks=self.blocks[keep],
                     new=self.new[keep], old=self.old[keep])  # fmt: skip


def pairs(ours: VectorCatalog, theirs: VectorCatalog) -> Iterator[Pairs]:
    """Objects that have both vectors, partition by partition of the newer extension."""
    ranges = {pixel: _range(pixel) for pixel in theirs.release.pixels}
    read: dict[HealpixPixel, tuple[pd.Index, Floats]] = {}
    for pixel, part in zip(ours.release.pixels, ours.parts(), strict=True):
        first, last = _range(pixel)
        near = [p for p, (start, stop) in ranges.items() if start < last and first < stop]
        # Where the older partitions are larger, the next one asks for the same file again.
        read = {p: read[p] if p in read else _vectors(theirs, p) for p in near}
        yield from (_joined(part, *read[p]) for p in near)


def _joined(part: Part, ids: pd.Index, vectors: Floats) -> Pairs:
    found = ids.get_indexer(pd.Index(part.ids.to_pylist()))
    known = np.isfinite(part.vectors).all(1) & (found >= 0)
    return Pairs(
        ids=part.ids.filter(pa.array(known)), blocks=sky_blocks(part.positions[known]),
        new=part.vectors[known], old=vectors[found[known]],
    )  # fmt: skip


def _vectors(vectors: VectorCatalog, pixel: HealpixPixel) -> tuple[pd.Index, Floats]:
    with pq.ParquetFile(vectors.release.leaf(pixel)) as leaf:
        table = leaf.read(columns=[vectors.id_column, vectors.name])
    table = table.filter(table.column(vectors.name).is_valid())
    ids = pd.Index(table.column(vectors.id_column).to_pylist())
    return ids, tensor_values(table.column(vectors.name), missing=np.nan)


def _range(pixel: HealpixPixel) -> tuple[int, int]:
    width = 1 << 2 * (29 - pixel.order)
    return pixel.pixel * width, (pixel.pixel + 1) * width
