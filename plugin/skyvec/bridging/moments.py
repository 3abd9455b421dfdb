"""Sums that stand for any number of pairs of vectors, and the maps that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skyvec.bridge import Floats

RIDGES = tuple(10.0**power for power in range(-8, 2))
ROWS = 8192
"""Rows whose products are summed at once."""


class Moments:
    """Sums and products of new and old vectors side by side, about a point near their mean."""

    def __init__(self, centre: Floats) -> None:
        self.centre, width = centre, len(centre)
        self.count = 0
        self.sums: Floats = np.zeros(width)
        self.products: Floats = np.zeros((width, width))

    def add(self, both: Floats) -> None:
        """Add objects (rows, width)."""
        for start in range(0, len(both), ROWS):
            moved = both[start : start + ROWS].astype(np.float64) - self.centre
            self.count += len(moved)
            self.sums += moved.sum(0)
            self.products += moved.T @ moved

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.centre)
        total.count = self.count + other.count
        total.sums = self.sums + other.sums
        total.products = self.products + other.products
        return total

    @property
    def mean(self) -> Floats:
        """Mean of both vectors."""
        mean: Floats = self.centre + self.sums / self.count
        return mean

    def about(self, point: Floats) -> Floats:
        """Mean product of each two dimensions about a point."""
        offset, shift = self.sums / self.count, point - self.centre
        spread: Floats = self.products / self.count - np.outer(offset, offset)
        return spread + np.outer(offset - shift, offset - shift)


def ridge_maps(
    moments: Moments, width: int, ridges: Sequence[float] = RIDGES
) -> dict[float, Floats]:
    """Weights (width, other width) from the first ``width`` dimensions to the others, by ridge."""
    spread = moments.about(moments.mean)
    values, vectors = np.linalg.eigh(spread[:width, :width])
    values = values.clip(min=0)
    mixed = vectors.T @ spread[:width, width:]
    scale = max(float(values.mean()), np.finfo(np.float64).tiny)
    return {r: vectors @ (mixed / (values + r * scale)[:, None]) for r in ridges}


def error_products(weights: Floats, products: Floats) -> Floats:
    """Mean products of the errors of ``new @ weights``, from mean products of both."""
    change = np.concatenate([-weights, np.eye(weights.shape[1])])
    errors: Floats = change.T @ products @ change
    return errors
