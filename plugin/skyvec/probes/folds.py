"""Which rows stand together when a probe is tested: whole blocks of the sky, dealt to folds."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError

FOLDS = 5
BLOCK_ORDER = 4
"""Objects of one HEALPix pixel of this order (3.7 degrees) share a fold, so that neighbours on the
sky, which share seeing and calibration, never stand on both sides of a split."""


def sky_blocks(positions: NDArray[np.float64], order: int = BLOCK_ORDER) -> NDArray[np.int64]:
    """HEALPix pixel of some order of each right ascension and declination (rows, 2), degrees."""
    index = compute_spatial_index(positions[:, 0], positions[:, 1])
    blocks: NDArray[np.int64] = spatial_index_to_healpix(index, order)
    return blocks


class Folds:
    """Deals blocks to folds, the fullest first, each to the emptiest fold.

    Parameters
    ----------
    counts
        Labelled rows of each block.
    folds
        How many are wanted; fewer where there are fewer blocks.
    where
        What the rows are of, for errors.

    Raises
    ------
    ConfigurationError
        Fewer labels than twice the folds, or fewer than two blocks.
    """

    def __init__(self, counts: Mapping[int, int], folds: int, *, where: str) -> None:
        if folds < 2:
            raise ConfigurationError(
                "at least 2 are needed", where=f"folds = {folds}", remedy=f"{FOLDS} is usual"
            )
        rows = sum(counts.values())
        if rows < 2 * folds or len(counts) < 2:
            raise ConfigurationError(
                f"only {rows} rows in {len(counts)} sky blocks have a vector and a finite label",
                where=where,
                remedy=f"At least {2 * folds} rows in 2 blocks are needed for {folds} folds (blocks "
                f"are {BLOCK_ORDER}th order HEALPix pixels of 3.7 degrees unless block_order says "
                "otherwise)",
            )
        self.count = min(folds, len(counts))
        order = sorted(counts, key=lambda block: (-counts[block], block))
        emptiest = [(0, fold) for fold in range(self.count)]
        dealt = {}
        for block in order:
            held, fold = heapq.heappop(emptiest)
            dealt[block] = fold
            heapq.heappush(emptiest, (held + counts[block], fold))
        self.blocks = np.array(sorted(dealt), np.int64)
        self._fold = np.array([dealt[block] for block in self.blocks.tolist()], np.int64)

    def of(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fold of each row by its block, which must be one of those that were counted."""
        found: NDArray[np.int64] = self._fold[np.searchsorted(self.blocks, blocks)]
        return found
