"""Inputs and targets of a batch of objects, by the policy of the recipe, with the guards of all.

Always 1 <= inputs <= min(budget, n - 1), 1 <= targets <= budget, and the two are disjoint: an
object smaller than the budget (116 tokens of a Gaia star) never ends up without a target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_training.masked.masks.aion import aion_masks
from skyvec_training.masked.masks.candidates import Bools, Candidates, Counts, candidates
from skyvec_training.masked.masks.dirichlet import dirichlet_masks
from skyvec_training.masked.masks.layout import Draws, Layout, draws_of
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, A all positions, T input token, Q target token, W random word.


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks:
    """Positions of inputs and targets, each ascending, packed to the left of their budgets."""

    inputs_BT: Counts
    inputs_valid_BT: Bools
    targets_BQ: Counts
    targets_valid_BQ: Bools


def draw_masks(
    valid_BA: Bools, words_BW: NDArray[np.uint64], layout: Layout, run: MaskingRun
) -> Masks:
    """Mask objects; a function of the arguments alone, row by row.

    Parameters
    ----------
    valid_BA
        Tokens that the object has, at least two.
    words_BW
        Random words, ``layout.words`` for each object.
    """
    if (valid_BA.sum(1) < 2).any():
        raise ValueError("an object with fewer than two tokens cannot be masked")
    draws = draws_of(words_BW, layout)
    offered = candidates(valid_BA, draws, layout, run)
    most_B = _most_inputs(offered, draws, run)
    if run.policy == "dirichlet":
        inputs, targets = dirichlet_masks(offered, most_B, draws, run)
    else:
        inputs, targets = aion_masks(offered, most_B, draws, layout, run)
    return Masks(
        inputs_BT=inputs[0],
        inputs_valid_BT=inputs[1],
        targets_BQ=targets[0],
        targets_valid_BQ=targets[1],
    )


def _most_inputs(offered: Candidates, draws: Draws, run: MaskingRun) -> Counts:
    """Inputs of each object: a random share of its tokens (capped: of its budget) at most."""
    allowed_B = np.where(offered.allowed_BM, offered.counts_BM, 0).sum(1)
    share_B = run.least_input_share + draws.controls_BK[:, 2] * (1 - run.least_input_share)
    base_B = np.minimum(allowed_B, run.input_budget) if run.policy == "capped" else allowed_B
    most_B = np.ceil(base_B * share_B).astype(np.int64)
    most_B = np.minimum(np.minimum(most_B, run.input_budget), allowed_B)
    return np.minimum(most_B, offered.counts_BM.sum(1) - 1)
