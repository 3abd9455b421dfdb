"""Labelled rows in pieces: the partitions of an extension, or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.folds import sky_blocks
from skyvec.probes.labels import Labels
from skyvec.releases.hats.remote import open_parquet
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.reading import Memory
from skyvec_schemas.errors import ConfigurationError

Floats = NDArray[np.floating]

_TOGETHER = 1024
"""Vectors read at a time: few enough for the processor's cache."""


class LabelledPieces(Protocol):
    """Labelled rows, in pieces that can be taken one by one, again and again."""

    @property
    def where(self) -> str:
        """What they are, for errors."""

    def pieces(self) -> Sequence[Any]:
        """Names of the pieces, that travel to workers."""

    def labels(self, piece: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:  # noqa: ANN401
        """Sky block and labels of every row of a piece."""


class Rows(LabelledPieces, Protocol):
    """Labelled vectors."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of stored values."""

    def vectors(
        self,
        piece: Any,  # noqa: ANN401
        wanted: NDArray[np.bool_],
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Wanted rows of a piece and their vectors; rows without a vector are left out.

        Vectors may be written over once the next are asked for.
        """


@dataclass(kw_only=True)
class LabelledRows:
    """The rows of an extension with labels; partitions are pieces."""

    catalog: VectorCatalog
    source: Labels
    block_order: int

    @property
    def where(self) -> str:
        """What the rows are."""
        return f"{self.catalog.primary}, {self.source.description}"

    def pieces(self) -> Sequence[HealpixPixel]:
        """See `LabelledPieces.pieces`."""
        return self.catalog.release.pixels

    def labels(self, piece: HealpixPixel) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """See `LabelledPieces.labels`."""
        info = self.catalog.release.catalog.catalog_info
        columns = [self.catalog.id_column, info.ra_column, info.dec_column]
        with open_parquet(self.catalog.release.leaf(piece)) as leaf:
            table = leaf.read(columns=columns, use_threads=False)
        positions = np.stack([table.column(c).to_numpy() for c in columns[1:]], axis=1)
        ids = table.column(columns[0]).combine_chunks()
        return sky_blocks(positions, self.block_order), self.source.of(piece, ids, positions)


@dataclass(kw_only=True)
class CatalogRows(LabelledRows):
    """The rows of an embedding extension."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.catalog.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of stored values."""
        kind = self.catalog.release.schema.field(self.catalog.name).type
        return np.dtype(kind.value_type.to_pandas_dtype())

    def vectors(
        self, piece: HealpixPixel, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """See `Rows.vectors`."""
        yield from wanted_vectors(
            self.catalog.release.leaf(piece), self.catalog.name, np.asarray(wanted)
        )


@dataclass(kw_only=True)
class ArrayRows:
    """Rows in memory, in pieces of some thousand."""

    features: Floats
    targets: NDArray[Any]
    blocks: NDArray[np.int64]
    where: str = "the rows given"
    size: int = 4096

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.features.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of values."""
        return self.features.dtype

    def pieces(self) -> Sequence[int]:
        """See `LabelledPieces.pieces`."""
        return range(0, len(self.features), self.size)

    def labels(self, piece: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """See `LabelledPieces.labels`."""
        rows = slice(piece, piece + self.size)
        return self.blocks[rows], self.targets[rows]

    def vectors(
        self, piece: int, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """See `Rows.vectors`."""
        rows = np.flatnonzero(wanted)
        yield rows, self.features[piece + rows]


def array_rows(
    features: Floats,
    labels: NDArray[Any],
    groups: NDArray[np.int64] | None,
    *,
    targets: Sequence[str],
    words: bool,
) -> ArrayRows:
    """Rows of arrays; without groups each row is a block of its own.

    Raises
    ------
    ConfigurationError
        If the shapes do not fit.
    """
    words = words or labels.dtype.kind in "OUSb"
    labels = np.reshape(labels, (len(labels), -1))
    if (
        features.ndim != 2
        or labels.shape != (len(features), len(targets))
        or (groups is not None and len(groups) != len(features))
    ):
        raise ConfigurationError(
            f"vectors of shape {features.shape}, labels of shape {labels.shape}",
            where=f"probe for {', '.join(targets)}",
            remedy="Give one row a vector, one column a target and one group a row",
        )
    values = labels.astype(np.float64) if not words else np.empty(labels.shape, object)
    if words:
        values[:] = np.array(labels.tolist(), object).reshape(labels.shape)
    blocks = np.arange(len(features)) if groups is None else np.asarray(groups)
    _, blocks = np.unique(blocks, return_inverse=True)
    return ArrayRows(features=features, targets=values, blocks=blocks.astype(np.int64))


def wanted_vectors(
    leaf: Path, column: str, wanted: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Wanted rows of one file that have a vector; row groups without any are not touched.

    Each yield may write over the vectors of the one before.
    """
    if not wanted.any():
        return
    with open_parquet(leaf) as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [g for g, end in enumerate(ends) if wanted[end - sizes[g] : end].any()]
        vectors = open_vectors(leaf, column, file=file)
        for block in vectors.blocks(groups=groups, rows=_TOGETHER, memory=Memory()):
            asked = wanted[block.first_row : block.first_row + len(block.null)]
            rows = block.first_row + np.flatnonzero(asked & ~block.null)
            keep = asked[~block.null]
            yield rows, block.values if keep.all() else block.values[keep]


def known(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where there is a label."""
    there: NDArray[np.bool_] = ~pd.isna(labels) if labels.dtype == object else np.isfinite(labels)
    return there


def of_all(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows with every label."""
    every: NDArray[np.bool_] = np.logical_and.reduce(known(labels), axis=1)
    return every


def first_vectors(rows: Rows, most: int = 4096) -> Floats:
    """Some labelled vectors that are finite, for a centre near their mean."""
    for piece in rows.pieces():
        _, labels = rows.labels(piece)
        for _, vectors in rows.vectors(piece, of_all(labels)):
            some = vectors[:most].astype(np.float32)
            if len(good := some[np.isfinite(some).all(1)]):
                return good
    return np.zeros((0, rows.dim), np.float32)
