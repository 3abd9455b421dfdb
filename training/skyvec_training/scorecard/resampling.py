"""Sky blocks: folds made of them, and intervals from drawing them again.

Neighbours on the sky share seeing and calibration, so they never stand on both sides of a split,
and a score is as uncertain as its blocks, not its rows, are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.scorecard.metrics import Floats, Metric

Rows = NDArray[np.int64]
SPATIAL_ORDER = 29
FINEST_ORDER = 8
"""A block of this order is a quarter of a degree wide; smaller ones are not independent."""
LEVEL = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


def sky_blocks(spatial_index: Rows, *, order: int, least: int) -> tuple[Rows, int]:
    """Block of every row, and their order: ``order``, or finer until there are ``least`` blocks.

    Parameters
    ----------
    spatial_index
        Nested HEALPix pixels of order 29, as in HATS' ``_healpix_29``.
    """
    while True:
        blocks = spatial_index >> (2 * (SPATIAL_ORDER - order))
        if len(np.unique(blocks)) >= least or order >= FINEST_ORDER:
            return blocks, order
        order += 1


def folds_of(blocks: Rows, *, folds: int, where: str) -> Rows:
    """Fold of every row; a block lies in one fold.

    Raises
    ------
    ConfigurationError
        If there are fewer blocks than folds.
    """
    if len(np.unique(blocks)) < folds:
        raise ConfigurationError(
            f"its {len(blocks)} rows lie in {len(np.unique(blocks))} sky blocks, {folds} folds "
            "need as many",
            where=where,
            remedy="Evaluate on a release that covers more of the sky, or lower folds",
        )
    fold_of = np.zeros(len(blocks), np.int64)
    for fold, (_, test) in enumerate(GroupKFold(n_splits=folds).split(blocks, groups=blocks)):
        fold_of[test] = fold
    return fold_of


def inner_split(blocks: Rows, *, share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to fit on and rows to choose by: whole blocks, about ``share`` of the rows."""
    rng = np.random.default_rng(seed)
    found = rng.permutation(np.unique(blocks))
    sizes = np.array([(blocks == block).sum() for block in found])
    count = max(1, int(np.searchsorted(np.cumsum(sizes), share * len(blocks))))
    chosen = np.isin(blocks, found[:count])
    if len(found) < 2 or chosen.all():
        chosen = rng.random(len(blocks)) < share
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


class Resamples:
    """The same draws of sky blocks for every score, so that differences are paired.

    Parameters
    ----------
    blocks
        Block of every row of the sample.
    """

    def __init__(self, blocks: Rows, *, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
        self.draws = [
            np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
            for _ in range(count)
        ]

    def estimate(self, metric: Metric, first: Floats, second: Floats, known: NDArray[np.bool_]
                 ) -> Estimate:  # fmt: skip
        """A metric over the rows that are known, with its interval."""
        scores = [metric(first[rows], second[rows]) for rows in self._rows(known)]
        return _estimate(metric(first[known], second[known]), scores)

    def difference(
        self,
        metric: Metric,
        ours: tuple[Floats, Floats],
        theirs: tuple[Floats, Floats],
        known: NDArray[np.bool_],
    ) -> Estimate:
        """Ours minus theirs on the same rows, and on the same draws of blocks."""
        scores = [
            metric(ours[0][rows], ours[1][rows]) - metric(theirs[0][rows], theirs[1][rows])
            for rows in self._rows(known)
        ]
        value = metric(ours[0][known], ours[1][known]) - metric(theirs[0][known], theirs[1][known])
        return _estimate(value, scores)

    def _rows(self, known: NDArray[np.bool_]) -> list[Rows]:
        kept = (draw[known[draw]] for draw in self.draws)
        return [rows for rows in kept if len(rows) > 1]


def _estimate(value: float, scores: Sequence[float]) -> Estimate:
    finite = [score for score in scores if np.isfinite(score)]
    low, high = np.percentile(finite, LEVEL) if finite else (float("nan"), float("nan"))
    return Estimate(value=float(value), low=float(low), high=float(high))
