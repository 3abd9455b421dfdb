"""The tokens that an object offers for its mask, shuffled: what stamps and dropped groups leave.

An object's tokens are 64-bit words, class | random | position: one sort puts them into classes,
random within each, and the position is read off again. Distinct words sort alike everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_training.masked.masks.layout import Draws, Layout
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, A all positions, M modality, L place in an object's own tokens, n token
# of any object, S slot of a budget.

Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]

STAMP_SIDES = (4, 20)
"""Least and largest side in tokens of the central square that a stamp keeps."""
NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)
NOWHERE = 0xFFFF
_CLASS, _POSITION = np.uint64(48), np.uint64(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Tokens of B objects that may be inputs or targets."""

    cells_n: Counts
    """Object x modalities + modality of each token, ascending."""
    places_n: Counts
    """Object x length + place of each token, in a table (B, length)."""
    words_n: Words
    """Random | position of each token."""
    length: int
    """Most tokens of an object."""
    counts_BM: Counts
    """Tokens of each modality."""
    allowed_BM: Bools
    """Modalities that are there and may be inputs."""

    def sorted_by(self, classes_BM: Counts) -> Words:
        """Words (B, L) of each object, sorted by the class of their modality and then at random."""
        words_BL = np.full(len(classes_BM) * self.length, NOTHING)
        words_BL[self.places_n] = classed(classes_BM.reshape(-1)[self.cells_n], self.words_n)
        return np.sort(words_BL.reshape(-1, self.length), axis=1)


def candidates(valid_BA: Bools, draws: Draws, layout: Layout, run: MaskingRun) -> Candidates:
    """What objects with at least two tokens offer."""
    there_BA = _stamps(valid_BA, draws, layout, run)
    objects, kinds = len(valid_BA), len(layout.sizes_M)
    rows_n, positions_n = np.nonzero(there_BA)
    cells_n = rows_n * kinds + layout.modality_A[positions_n]
    counts_BM = np.bincount(cells_n, minlength=objects * kinds).reshape(objects, kinds)
    sizes_B = counts_BM.sum(1)
    length, first_B = int(sizes_B.max(initial=0)), np.cumsum(sizes_B) - sizes_B
    random_n = draws.keys_BA[there_BA].astype(np.uint64)
    return Candidates(
        cells_n=cells_n,
        places_n=np.arange(len(rows_n)) + (np.arange(objects) * length - first_B)[rows_n],
        words_n=random_n << _POSITION | positions_n.astype(np.uint64),
        length=length,
        counts_BM=counts_BM,
        allowed_BM=_without_groups(counts_BM > 0, draws, layout),
    )


def classed(classes: Counts, words: Words) -> Words:
    """Words with other classes."""
    low = words & np.uint64((1 << 48) - 1)
    return classes.astype(np.uint64) << _CLASS | low


def positions_of(words: Words) -> Counts:
    """Positions of tokens."""
    return (words & np.uint64(NOWHERE)).astype(np.int64)


def taken(
    words_BL: Words, begins_BR: Counts, counts_BR: Counts, budget: int
) -> tuple[Counts, Bools]:
    """Positions (B, budget) of some runs of places of each object, ascending, and which are real.

    Parameters
    ----------
    begins_BR, counts_BR
        First place and length of each run.
    """
    runs, counts_r = counts_BR.shape[1], counts_BR.reshape(-1)
    runs_n = np.repeat(np.arange(len(counts_r)), counts_r)
    within_n = np.arange(len(runs_n)) - (np.cumsum(counts_r) - counts_r)[runs_n]
    rows_n = runs_n // runs
    sizes_B = counts_BR.sum(1)
    slots_n = np.arange(len(runs_n)) - (np.cumsum(sizes_B) - sizes_B)[rows_n]
    chosen_BS = np.full((len(words_BL), budget), NOWHERE, np.uint16)
    words_n = words_BL[rows_n, begins_BR.reshape(-1)[runs_n] + within_n]
    chosen_BS[rows_n, slots_n] = (words_n & np.uint64(NOWHERE)).astype(np.uint16)
    positions_BS = np.sort(chosen_BS, axis=1)
    valid_BS = positions_BS != NOWHERE
    return np.where(valid_BS, positions_BS, 0).astype(np.int64), valid_BS


def first_places(counts_BM: Counts) -> Counts:
    """First place of each modality among tokens that are sorted by modality."""
    begins: Counts = np.cumsum(counts_BM, axis=1) - counts_BM
    return begins


def _stamps(valid_BA: Bools, draws: Draws, layout: Layout, run: MaskingRun) -> Bools:
    """Keep only a central square of the image tokens of some objects."""
    low, high = STAMP_SIDES
    side_B = low + np.floor(draws.controls_BK[:, 1] * (high - low + 1)).astype(np.int16)
    stamped_B = draws.controls_BK[:, 0] < run.stamp_probability
    if not stamped_B.any():
        return valid_BA
    kept_BA = valid_BA.copy()
    kept_BA[stamped_B] &= layout.sides_A <= side_B[stamped_B, None]
    too_few_B = kept_BA.sum(1) < 2
    kept_BA[too_few_B] = valid_BA[too_few_B]
    return kept_BA


def _without_groups(there_BM: Bools, draws: Draws, layout: Layout) -> Bools:
    """Modalities that may be inputs; an object that would be left without any keeps all."""
    dropped_BG = (draws.dropped_BG < layout.chances_G).astype(np.int64)
    gone_BM = dropped_BG @ layout.groups_GM.astype(np.int64) > 0
    allowed_BM: Bools = there_BM & ~gone_BM
    none_B1 = allowed_BM.sum(1, keepdims=True) == 0
    return allowed_BM | (there_BM & none_B1)
