"""Passes over the partitions of an extension: one counts labels, one looks at vectors, once.

The first reads ids, positions and labels, and decides on folds. The second reads the vectors of
labelled rows off their Parquet pages and keeps sums and a bounded sample, so memory does not grow
with rows. Both run on threads or on the workers of a Dask client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from skyvec.probes.folds import Folds
from skyvec.probes.products import Accumulator, Centre, Moments, merged
from skyvec.probes.rows import LabelledPieces, Rows, known, of_all

if TYPE_CHECKING:
    from distributed import Client

Floats = NDArray[np.floating]

CLASSES = 100
"""More than these are no classes but numbers or names."""
BATCHES = 4
"""Groups of partitions for each worker, so that none waits long for the last."""


@dataclass(kw_only=True)
class Census:
    """What the labels are, before any vector is looked at."""

    rows: int = 0
    labelled: int = 0
    """Rows with every target."""
    partly: int = 0
    """Rows with some targets but not all, which are left out."""
    blocks: Counter[int] = field(default_factory=Counter)
    classes: Counter[Any] = field(default_factory=Counter)
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))
    """Sums of labels and of their squares, about `near`."""
    near: NDArray[np.float64] | None = None

    def add(self, blocks: NDArray[np.int64], labels: NDArray[Any]) -> None:
        """Count rows of one partition with their labels, as a source gave them."""
        there = known(labels)
        every = there.all(1)
        self.rows += len(labels)
        self.labelled += int(every.sum())
        self.partly += int((there.any(1) & ~every).sum())
        names, counts = np.unique(blocks[every], return_counts=True)
        self.blocks.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
        if labels.dtype == object:
            self.classes.update(labels[every, 0].tolist())
        elif every.any():
            if self.near is None:
                self.near, self.sums = labels[every][0], np.zeros((2, labels.shape[1]))
            moved = labels[every] - self.near
            self.sums = self.sums + np.stack([moved.sum(0), (moved**2).sum(0)])

    def __add__(self, other: Census) -> Census:
        total = Census(
            rows=self.rows + other.rows, labelled=self.labelled + other.labelled,
            partly=self.partly + other.partly, blocks=self.blocks + other.blocks,
            classes=self.classes + other.classes, near=self.near, sums=self.sums,
        )  # fmt: skip
        if other.near is None:
            return total
        if self.near is None:
            total.near, total.sums = other.near, other.sums
            return total
        shift, first, second = other.near - self.near, other.sums[0], other.sums[1]
        moved = [first + other.labelled * shift,
                 second + 2 * shift * first + other.labelled * shift**2]  # fmt: skip
        total.sums = self.sums + np.stack(moved)
        return total

    @property
    def means(self) -> NDArray[np.float64]:
        """Of each target."""
        near = np.zeros(0) if self.near is None else self.near
        means: NDArray[np.float64] = near + self.sums[0] / max(self.labelled, 1)
        return means

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviation of each target."""
        mean, square = self.sums / max(self.labelled, 1)
        deviations: NDArray[np.float64] = np.sqrt((square - mean**2).clip(min=0))
        return deviations


@dataclass(kw_only=True)
class Drawn:
    """Labelled rows that are kept."""

    labels: NDArray[np.float64]
    """(rows, targets); of classes their codes."""
    blocks: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.blocks)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Rows of all parts, in their order."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: np.concatenate(values) for name, values in columns.items()})

    def of(self, rows: NDArray[np.int64]) -> Self:
        """Some of the rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(kw_only=True)
class Sample(Drawn):
    """Rows with their vectors."""

    vectors: Floats


def no_sample(dim: int, targets: int, dtype: np.dtype[Any]) -> Sample:
    """Of no row."""
    return Sample(vectors=np.empty((0, dim), dtype), labels=np.empty((0, targets)),
                  blocks=np.empty(0, np.int64))  # fmt: skip


DrawnRows = TypeVar("DrawnRows", bound=Drawn)


@dataclass(kw_only=True)
class Gathered(Generic[DrawnRows]):
    """What one pass over vectors leaves."""

    moments: dict[int, Moments] = field(default_factory=dict)
    parts: list[DrawnRows]
    """Of the sample; at least one, which may hold no row."""
    null: int = 0
    """Labelled rows without a vector."""
    not_finite: int = 0
    """Labelled rows whose vector holds NaN or infinity."""

    def __add__(self, other: Gathered[DrawnRows]) -> Gathered[DrawnRows]:
        return Gathered(
            moments=merged(self.moments, other.moments), parts=self.parts + other.parts,
            null=self.null + other.null, not_finite=self.not_finite + other.not_finite,
        )  # fmt: skip

    @cached_property
    def sample(self) -> DrawnRows:
        """All rows that were drawn."""
        return type(self.parts[0]).joined(self.parts)


@dataclass(frozen=True, kw_only=True)
class Count:
    """The first pass."""

    rows: LabelledPieces

    def __call__(self, pieces: Sequence[Any]) -> Census:
        """Count some pieces."""
        census = Census()
        for piece in pieces:
            census.add(*self.rows.labels(piece))
        return census


@dataclass(frozen=True, kw_only=True)
class Gather:
    """The second pass."""

    rows: Rows
    folds: Folds
    centre: Centre
    classes: tuple[Any, ...]
    """Labels of a classifier, by code."""
    share: float
    """Of the labelled rows that the sample takes, each with equal chance."""
    seed: int
    products: bool
    """Whether the sums are needed."""

    def __call__(self, pieces: Sequence[Any]) -> Gathered[Sample]:
        """Look at the vectors of some pieces."""
        with threadpool_limits(1):
            sums = Accumulator(self.centre, self.folds.count)
            found = [self._piece(piece, sums) for piece in pieces]
            moments = sums.moments()
        dim, targets = self.rows.dim, len(self.centre.labels)
        start = Gathered(moments={}, parts=[no_sample(dim, targets, self.rows.dtype)])
        total = sum(found, start)
        total.moments = moments
        total.not_finite += sums.not_finite
        return total

    def _piece(self, piece: Any, sums: Accumulator) -> Gathered[Sample]:  # noqa: ANN401
        blocks, labels = self.rows.labels(piece)
        every = of_all(labels)
        labels = coded(labels, self.classes)
        drawn = lots(self.seed, piece, len(labels)) < self.share
        kept: list[tuple[Floats, NDArray[np.int64]]] = []
        seen = not_finite = 0
        for rows, vectors in self.rows.vectors(piece, every):
            seen += len(rows)
            if self.products:
                sums.add(vectors, labels[rows], self.folds.of(blocks[rows]))
            some = drawn[rows]
            if some.any():
                # A copy, since the next vectors may be written over these.
                kept.append((vectors[some], rows[some]))
            if not self.products:
                not_finite += int((~np.isfinite(vectors).all(1)).sum())
        dim = self.rows.dim
        sampled = np.concatenate([np.empty((0, dim), self.rows.dtype), *[v for v, _ in kept]])
        rows = np.concatenate([np.empty(0, np.int64), *[r for _, r in kept]])
        good = np.isfinite(sampled).all(1)
        sample = Sample(vectors=sampled[good], labels=labels[rows[good]], blocks=blocks[rows[good]])
        return Gathered(moments={}, parts=[sample], null=int(every.sum()) - seen,
                        not_finite=not_finite)  # fmt: skip


def coded(labels: NDArray[Any], classes: Sequence[Any]) -> NDArray[np.float64]:
    """Labels as numbers (rows, targets): of classes their places, NaN for none."""
    if labels.dtype != object:
        return labels
    codes = {name: code for code, name in enumerate(classes)}
    found = [codes.get(label, np.nan) for label in labels[:, 0]]
    return np.array(found, np.float64).reshape(-1, 1)


def lots(seed: int, piece: Any, rows: int) -> NDArray[np.float64]:  # noqa: ANN401
    """A number in [0, 1) for each row of a piece, which no order of work changes."""
    place = (piece.order, piece.pixel) if isinstance(piece, HealpixPixel) else (piece,)
    return np.random.default_rng([seed, *place]).random(rows)


class Addable(Protocol):
    """What passes add up."""

    def __add__(self, other: Self, /) -> Self:
        """Both together."""


Result = TypeVar("Result", bound=Addable)


def over(
    work: Callable[[Sequence[Any]], Result],
    pieces: Sequence[Any],
    start: Result,
    *,
    workers: int,
    client: Client | None,
) -> Result:
    """Run a pass over all pieces, on threads or a Dask cluster, and add up what it found.

    Parameters
    ----------
    start
        Of no pieces.
    workers
        Threads; of no meaning with a client.
    """
    if client is not None:
        workers = max(1, sum(client.nthreads().values()))
    groups = _groups(pieces, workers * BATCHES if workers > 1 else 1)
    if client is not None:
        # In order, so that the sample has one.
        for future in client.map(work, groups, pure=False):
            start = start + future.result()
            future.release()
        return start
    if workers == 1:
        return sum(map(work, groups), start)
    with ThreadPoolExecutor(workers) as threads:
        return sum(threads.map(work, groups), start)


def _groups(pieces: Sequence[Any], count: int) -> list[list[Any]]:
    """Runs of neighbouring pieces: their rows mostly share folds."""
    bounds = np.linspace(0, len(pieces), min(count, len(pieces)) + 1).round().astype(int)
    return [list(pieces[a:b]) for a, b in pairwise(bounds) if b > a]
