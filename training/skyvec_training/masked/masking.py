"""Which tokens of an object are inputs and which are targets: AION-1's rule, with guards.

Inputs: one modality gives a random number of its tokens, the others fill the budget uniformly; in
some objects scalars come before the others, as in an embedding, where all of them are there.
Targets, from what is left: one modality is unconstrained, the others give a share drawn from a
Beta skewed to 0. Source: AION-1 (arXiv 2510.17960). Always 1 <= inputs <= min(budget, n - 1),
targets >= 1, and the two are disjoint.

Everything is a function of the uniform numbers that are passed in, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, A all positions of a vocabulary, M modality, G group, K uniform number.

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
STAMP_SIDES = (4, 20)
"""Least and largest side in tokens of the central square that a stamp keeps."""
_CONTROLS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each modality's positions lie, and which positions a stamp may lose."""

    modality_A: NDArray[np.int64]
    """Modality of each position."""
    sizes_M: NDArray[np.int64]
    """Positions of each modality."""
    radius_A: Floats
    """Distance in tokens from the middle of an image, along the farther axis; 0 elsewhere."""
    groups_GA: Bools
    """Positions of each group that may be dropped together."""
    chances_G: Floats

    @property
    def draws(self) -> int:
        """Uniform numbers that an object needs."""
        return 2 * len(self.modality_A) + 2 * len(self.sizes_M) + len(self.chances_G) + _CONTROLS


def layout_of(vocabulary: Vocabulary, run: MaskingRun) -> Layout:
    """Layout of a vocabulary, with the groups of a recipe."""
    keys = [m.token_key for m in vocabulary.modalities]
    modality_A = vocabulary.domain_of_position().numpy()
    radius_A = np.zeros(len(modality_A))
    for modality in vocabulary.modalities:
        if modality.kind == "image":
            across, down = np.meshgrid(*(np.abs(np.arange(n) - (n - 1) / 2) for n in modality.grid))
            rows = vocabulary.positions[modality.token_key].rows
            radius_A[rows] = np.maximum(across, down).flatten()
    members = [[key in run.groups[name] for key in keys] for name in run.drop]
    return Layout(
        modality_A=modality_A,
        sizes_M=np.array([m.num_tokens for m in vocabulary.modalities]),
        radius_A=radius_A,
        groups_GA=np.array(members, dtype=bool).reshape(len(run.drop), len(keys))[:, modality_A],
        chances_G=np.array(list(run.drop.values()), dtype=float),
    )


def draw_masks(
    valid_BA: Bools, draws_BK: Floats, layout: Layout, run: MaskingRun
) -> tuple[Bools, Bools]:
    """Inputs and targets (B, A) of objects with at least two tokens each.

    Parameters
    ----------
    valid_BA
        Tokens that the object has.
    draws_BK
        Uniform numbers, ``layout.draws`` for each object.
    """
    if (valid_BA.sum(1) < 2).any():
        raise ValueError("an object with fewer than two tokens cannot be masked")
    positions, kinds = len(layout.modality_A), len(layout.sizes_M)
    cuts = np.cumsum([positions, positions, kinds, kinds, len(layout.chances_G)])
    keys_in, keys_out, share, order, dropped, control = np.split(draws_BK, cuts, axis=1)
    there_BA = _stamps(valid_BA, control[:, :2], layout, run)
    allowed_BA = _without_groups(there_BA, dropped, layout)
    inputs_BA = _inputs(there_BA, allowed_BA, keys_in, control[:, 2:6], layout, run)
    left_BA = there_BA & ~inputs_BA
    counts_BM = _target_counts(left_BA, share, order, control[:, 6], layout, run)
    targets_BA = left_BA & (_rank_in_modality(left_BA, keys_out, layout)
                            < counts_BM[:, layout.modality_A])  # fmt: skip
    return inputs_BA, targets_BA


def _stamps(valid_BA: Bools, control: Floats, layout: Layout, run: MaskingRun) -> Bools:
    """Keep only a central square of the image tokens of some objects."""
    low, high = STAMP_SIDES
    half = (low + np.floor(control[:, 1] * (high - low + 1))) / 2
    whole = control[:, 0] >= run.stamp_probability
    kept_BA: Bools = valid_BA & (whole[:, None] | (layout.radius_A < half[:, None]))
    too_few_B: Bools = kept_BA.sum(1) < 2
    return kept_BA | (valid_BA & too_few_B[:, None])


def _without_groups(there_BA: Bools, dropped_BG: Floats, layout: Layout) -> Bools:
    """Tokens that may be inputs; an object that would be left without any keeps all."""
    if not len(layout.chances_G):
        return there_BA
    gone_BA = (dropped_BG < layout.chances_G).astype(np.int64) @ layout.groups_GA > 0
    allowed_BA: Bools = there_BA & ~gone_BA
    none_B1: Bools = allowed_BA.sum(1, keepdims=True) == 0
    return allowed_BA | (there_BA & none_B1)


def _inputs(
    there_BA: Bools,
    allowed_BA: Bools,
    keys_BA: Floats,
    control: Floats,
    layout: Layout,
    run: MaskingRun,
) -> Bools:
    share = run.least_input_share + control[:, 0] * (1 - run.least_input_share)
    most_B = np.ceil(allowed_BA.sum(1) * share).astype(np.int64)
    most_B = np.minimum(np.minimum(most_B, run.input_budget), there_BA.sum(1) - 1)
    counts_BM = _counts(allowed_BA, layout)
    first_B = _choose(counts_BM > 0, control[:, 1])
    in_first_BA = allowed_BA & (layout.modality_A == first_B[:, None])
    size_B = in_first_BA.sum(1)
    taken_B = np.minimum(1 + np.floor(control[:, 2] * size_B).astype(np.int64), most_B)
    # Scalars before the others: 0..1 against 1..2, where an object prefers them.
    later_BA = (control[:, 3:4] < run.scalars_first) & (layout.sizes_M > 1)[layout.modality_A]
    # One sort: the first modality's tokens, then the others', then what may not be an input.
    others = np.where(allowed_BA, 1 + keys_BA + later_BA, 4.0)
    rank_BA = _rank(np.where(in_first_BA, keys_BA, others))
    others_BA = allowed_BA & ~in_first_BA & (rank_BA < (size_B + most_B - taken_B)[:, None])
    return (in_first_BA & (rank_BA < taken_B[:, None])) | others_BA


def _target_counts(
    left_BA: Bools,
    share_BM: Floats,
    order_BM: Floats,
    control_B: Floats,
    layout: Layout,
    run: MaskingRun,
) -> NDArray[np.int64]:
    """Targets of each modality (B, M) within the budget; never none."""
    left_BM = _counts(left_BA, layout)
    single_M = layout.sizes_M == 1
    # The inverse distribution function of Beta(a, 1) is u^(1/a).
    some_BM = np.floor(left_BM * share_BM ** (1 / run.target_skew)).astype(np.int64)
    one_BM = left_BM * (share_BM < run.scalar_target_probability)
    first_BM = np.arange(len(single_M)) == _choose(left_BM > 0, control_B)[:, None]
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


def _counts(mask_BA: Bools, layout: Layout) -> NDArray[np.int64]:
    starts = np.concatenate([[0], np.cumsum(layout.sizes_M)[:-1]])
    return np.add.reduceat(mask_BA.astype(np.int64), starts, axis=1)


def _choose(present_BM: Bools, draws_B: Floats) -> NDArray[np.int64]:
    """One of the modalities that are present, all equally likely."""
    wanted_B = np.floor(draws_B * present_BM.sum(1)).astype(np.int64)
    chosen: NDArray[np.int64] = (np.cumsum(present_BM, axis=1) > wanted_B[:, None]).argmax(1)
    return chosen


def _rank(keys_BA: Floats) -> NDArray[np.int64]:
    order = np.argsort(keys_BA, axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], 1)
    return rank


def _rank_in_modality(left_BA: Bools, keys_BA: Floats, layout: Layout) -> NDArray[np.int64]:
    rank_BA = _rank(np.where(left_BA, keys_BA, 2.0) + 4 * layout.modality_A)
    starts = np.cumsum(layout.sizes_M) - layout.sizes_M
    return rank_BA - starts[layout.modality_A]
