"""Sums that stand for any number of labelled vectors, from float32 products.

Each row is a vector less a centre, its standardized labels, and a one: the products of these
columns hold the counts, sums, covariances and everything that a linear least-squares fit needs.
The products of a few thousand rows are made in float32, where matrices multiply fast, about a
centre near the mean, so that little is lost; they are added up in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ROWS = 4096
"""Rows whose products are one matrix product."""


@dataclass(kw_only=True)
class Moments:
    """Mean products of the rows of one or more folds."""

    products: NDArray[np.float64]
    """(dim + targets + 1, the same), summed."""
    dim: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(products=self.products + other.products, dim=self.dim)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(products=self.products - other.products, dim=self.dim)

    @property
    def count(self) -> float:
        """Rows."""
        return float(self.products[-1, -1])

    @property
    def means(self) -> NDArray[np.float64]:
        """Of vectors and labels, about their centres (dim + targets,)."""
        means: NDArray[np.float64] = self.products[-1, :-1] / self.count
        return means

    @property
    def spread(self) -> NDArray[np.float64]:
        """Covariances of vectors and labels (dim + targets, the same)."""
        means = self.means
        spread: NDArray[np.float64] = self.products[:-1, :-1] / self.count - np.outer(means, means)
        return spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Centre:
    """What is taken off vectors and labels before they are multiplied."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.float64]
    scale: NDArray[np.float64]
    """Of each label."""


class Accumulator:
    """Adds up the products of labelled vectors, apart for each fold; not for several threads."""

    def __init__(self, centre: Centre, folds: int) -> None:
        self.centre, self.dim = centre, len(centre.vectors)
        self.width = self.dim + len(centre.labels) + 1
        self.not_finite = 0
        """Rows left out since their vectors hold NaN or infinity."""
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._filled = [0] * folds
        self._product = np.empty((self.width, self.width), np.float32)
        self._off = torch.from_numpy(centre.vectors)

    def add(self, vectors: Floats, labels: Floats, folds: NDArray[np.int64]) -> None:
        """Add vectors (rows, dim) of any float type with labels (rows, targets) and folds."""
        scaled = (labels - self.centre.labels) / self.centre.scale
        first = int(folds[0]) if len(folds) else 0
        if (folds == first).all():
            self._append(first, vectors, scaled)
            return
        for fold in np.unique(folds).tolist():
            rows = np.flatnonzero(folds == fold)
            self._append(fold, vectors[rows], scaled[rows])

    def moments(self) -> dict[int, Moments]:
        """Sums of each fold that had rows."""
        for fold in self._rows:
            self._multiply(fold)
        return {fold: Moments(products=sums, dim=self.dim) for fold, sums in self._sums.items()}

    def _append(self, fold: int, vectors: Floats, labels: Floats) -> None:
        if fold not in self._rows:
            self._rows[fold] = np.ones((ROWS, self.width), np.float32)
            self._sums[fold] = np.zeros((self.width, self.width))
        done = 0
        while done < len(vectors):
            at = self._filled[fold]
            some = min(ROWS - at, len(vectors) - done)
            place = self._rows[fold][at : at + some]
            wide = torch.from_numpy(place)[:, : self.dim]
            # torch widens float16 ten times as fast as numpy, and slower in the difference itself.
            wide.copy_(tensor_of(vectors[done : done + some])).sub_(self._off)
            place[:, self.dim : -1] = labels[done : done + some]
            done += some
            self._filled[fold] = at + some
            if at + some == ROWS:
                self._multiply(fold)

    def _multiply(self, fold: int) -> None:
        rows = self._rows[fold][: self._filled[fold]]
        self._filled[fold] = 0
        if not len(rows):
            return
        # numpy sees that both are one matrix, and computes half of the product (syrk).
        np.matmul(rows.T, rows, out=self._product)
        # The last column is one, so its products are sums: any value that is not finite shows.
        if not np.isfinite(self._product[-1]).all():
            good = np.isfinite(rows).all(1)
            self.not_finite += int((~good).sum())
            rows = np.ascontiguousarray(rows[good])
            np.matmul(rows.T, rows, out=self._product)
        self._sums[fold] += self._product


class _Alias:
    """A view that numpy takes for writable, which it is only to be read as."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values
        place = values.__array_interface__["data"][0]
        self.__array_interface__ = {**values.__array_interface__, "data": (place, False)}


def tensor_of(values: NDArray[Any]) -> torch.Tensor:
    """Read-only values as a tensor over the same memory, which nobody may write to."""
    # torch warns of arrays that cannot be written, such as views of a file.
    return torch.from_numpy(values if values.flags.writeable else np.asarray(_Alias(values)))


def merged(parts: Mapping[int, Moments], more: Mapping[int, Moments]) -> dict[int, Moments]:
    """Sums of both, fold by fold."""
    total = dict(parts)
    for fold, moments in more.items():
        total[fold] = total[fold] + moments if fold in total else moments
    return total
