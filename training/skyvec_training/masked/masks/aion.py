"""AION-1's rule: one modality first, the others at random; target counts from a skewed Beta.

Inputs: one modality gives a random number of its tokens, the others fill the rest uniformly; in
some objects scalars come before the others, as in an embedding, where all of them are there.
Targets, from what is left: one modality is unconstrained, the others give a share drawn from a
Beta skewed to 0. Source: AION-1 (arXiv 2510.17960).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skyvec_training.masked.masks import candidates as tokens
from skyvec_training.masked.masks.candidates import Bools, Candidates, Counts
from skyvec_training.masked.masks.layout import Draws, Layout
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, M modality, L place in an object's own tokens, S slot of a budget.

Chosen = tuple[Counts, Bools]
"""Positions (B, S), ascending, and which of them are real."""


def aion_masks(
    offered: Candidates, most_B: Counts, draws: Draws, layout: Layout, run: MaskingRun
) -> tuple[Chosen, Chosen]:
    """Inputs, at most ``most_B`` of each object, and targets."""
    allowed_BM = np.where(offered.allowed_BM, offered.counts_BM, 0)
    first_B = _choose(allowed_BM > 0, draws.controls_BK[:, 3])
    size_B = np.take_along_axis(allowed_BM, first_B[:, None], 1)[:, 0]
    taken_B = np.minimum(1 + np.floor(draws.controls_BK[:, 4] * size_B).astype(np.int64), most_B)
    rest_B = np.minimum(most_B - taken_B, allowed_BM.sum(1) - size_B)

    # Classes: the first modality, scalars where they come first, the others, what is no input.
    prefers_B = draws.controls_BK[:, 5] < run.scalars_first
    later_BM = prefers_B[:, None] & (layout.sizes_M > 1)
    classes_BM = np.where(offered.allowed_BM, 1 + later_BM, 3)
    np.put_along_axis(classes_BM, first_B[:, None], 0, 1)
    words_BL = offered.sorted_by(classes_BM)
    begins_B2 = np.stack([np.zeros_like(size_B), size_B], axis=1)
    inputs = tokens.taken(
        words_BL, begins_B2, np.stack([taken_B, rest_B], axis=1), run.input_budget
    )

    place_L = np.arange(words_BL.shape[1])
    gone_BL = (place_L < taken_B[:, None]) | (
        (place_L >= size_B[:, None]) & (place_L < (size_B + rest_B)[:, None])
    )
    gone_BL |= words_BL == tokens.NOTHING
    positions_BL = tokens.positions_of(words_BL)
    positions_BL[gone_BL] = 0
    kinds_BL = layout.modality_A[positions_BL]
    left_BL = np.where(gone_BL, tokens.NOTHING, tokens.classed(kinds_BL, words_BL))
    left_BM = offered.counts_BM - _by_modality(inputs, layout)
    counts_BM = _target_counts(left_BM, draws, layout, run)
    targets = tokens.taken(
        np.sort(left_BL, axis=1), tokens.first_places(left_BM), counts_BM, run.output_budget
    )
    return inputs, targets


def _target_counts(left_BM: Counts, draws: Draws, layout: Layout, run: MaskingRun) -> Counts:
    """Targets of each modality (B, M) within the budget; never none."""
    share_BM, order_BM = draws.targets_BM, draws.inputs_BM
    single_M = layout.sizes_M == 1
    # The inverse distribution function of Beta(a, 1) is u^(1/a).
    some_BM = np.floor(left_BM * share_BM ** (1 / run.target_skew)).astype(np.int64)
    one_BM = left_BM * (share_BM < run.scalar_target_probability)
    first_BM = np.arange(len(single_M)) == _choose(left_BM > 0, draws.controls_BK[:, 6])[:, None]
    wanted_BM = np.where(first_BM, left_BM, np.where(single_M, one_BM, some_BM))
    # Scalars are served first: they cost one place each.
    priority_BM = np.where(single_M, order_BM, np.where(first_BM, 1.0, 2 + order_BM))
    served = np.argsort(priority_BM, axis=1)
    sorted_BM = np.take_along_axis(wanted_BM, served, 1)
    before_BM = np.cumsum(sorted_BM, axis=1) - sorted_BM
    granted_BM = np.clip(run.output_budget - before_BM, 0, sorted_BM)
    counts_BM = np.zeros_like(wanted_BM)
    np.put_along_axis(counts_BM, served, granted_BM, 1)
    return counts_BM


def _by_modality(chosen: Chosen, layout: Layout) -> Counts:
    """How many of each modality (B, M) were chosen."""
    positions_BS, valid_BS = chosen
    objects, kinds = len(positions_BS), len(layout.sizes_M)
    cells_BS = np.arange(objects)[:, None] * kinds + layout.modality_A[positions_BS]
    return np.bincount(cells_BS[valid_BS], minlength=objects * kinds).reshape(objects, kinds)


def _choose(present_BM: Bools, draws_B: NDArray[np.float64]) -> Counts:
    """One of the modalities that are present, all equally likely."""
    wanted_B = np.floor(draws_B * present_BM.sum(1)).astype(np.int64)
    chosen: Counts = (np.cumsum(present_BM, axis=1) > wanted_B[:, None]).argmax(1)
    return chosen
