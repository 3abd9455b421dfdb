"""4M's rule: the budgets are shared out to modalities by a Dirichlet distribution.

What a modality has no tokens for goes to the others in proportion to their shares (water-filling),
so budgets are filled as far as there are tokens; 4M loses it. Source: 4M (arXiv 2312.06647).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from skyvec_training.masked.masks import candidates as tokens
from skyvec_training.masked.masks.aion import Chosen
from skyvec_training.masked.masks.candidates import Candidates, Counts
from skyvec_training.masked.masks.layout import Draws
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, M modality.

Floats = NDArray[np.float64]

LEAST_SHARE = 1e-250
"""Of the largest: a modality without a share still takes what the others cannot."""


def dirichlet_masks(
    offered: Candidates, most_B: Counts, draws: Draws, run: MaskingRun
) -> tuple[Chosen, Chosen]:
    """Inputs, ``most_B`` of each object, and targets."""
    counts_BM = offered.counts_BM
    alphas = np.array(run.alphas)
    alpha_in_B, alpha_out_B = (
        alphas[np.floor(draws.controls_BK[:, k] * len(alphas)).astype(np.int64)] for k in (3, 4)
    )
    allowed_BM = np.where(offered.allowed_BM, counts_BM, 0)
    in_BM = shared_out(most_B, dirichlet_shares(alpha_in_B, draws.inputs_BM, allowed_BM > 0),
                       allowed_BM)  # fmt: skip
    left_BM = counts_BM - in_BM
    out_B = np.minimum(left_BM.sum(1), run.output_budget)
    out_BM = shared_out(out_B, dirichlet_shares(alpha_out_B, draws.targets_BM, left_BM > 0),
                        left_BM)  # fmt: skip
    # One shuffle serves both: targets come after the inputs of their modality.
    words_BL = offered.sorted_by(np.broadcast_to(np.arange(counts_BM.shape[1]), counts_BM.shape))
    begins_BM = tokens.first_places(counts_BM)
    inputs = tokens.taken(words_BL, begins_BM, in_BM, run.input_budget)
    return inputs, tokens.taken(words_BL, begins_BM + in_BM, out_BM, run.output_budget)


def dirichlet_shares(alpha_B: Floats, uniforms_BM: Floats, present_BM: NDArray[np.bool_]) -> Floats:
    """Shares of a symmetric Dirichlet, up to a factor; 0 where a modality is absent."""
    alpha_BM = np.broadcast_to(alpha_B[:, None], uniforms_BM.shape)
    gamma_BM = np.zeros(uniforms_BM.shape)
    gamma_BM[present_BM] = gammaincinv(alpha_BM[present_BM], uniforms_BM[present_BM])
    largest_B1 = np.maximum(gamma_BM.max(axis=1, keepdims=True), np.finfo(float).tiny)
    return np.where(present_BM, gamma_BM / largest_B1 + LEAST_SHARE, 0.0)


def shared_out(totals_B: Counts, shares_BM: Floats, room_BM: Counts) -> Counts:
    """Whole numbers (B, M) that sum to ``totals_B``, near the shares and within the room.

    Parameters
    ----------
    totals_B
        At most the room of the object.
    shares_BM
        Positive wherever there is room.
    """
    # Level of water at which each modality is full; below it, it holds level x share.
    full_BM = np.where(room_BM > 0, room_BM / np.where(room_BM > 0, shares_BM, 1), 0.0)
    order_BM = np.argsort(full_BM, axis=1, kind="stable")
    room, share = (np.take_along_axis(t, order_BM, 1) for t in (room_BM, shares_BM))
    below_BM = np.cumsum(room, axis=1) - room
    open_BM = np.cumsum(share[:, ::-1], axis=1)[:, ::-1]
    level_BM = (totals_B[:, None] - below_BM) / np.where(open_BM > 0, open_BM, 1)
    fits_BM = level_BM <= np.take_along_axis(full_BM, order_BM, 1)
    fits_BM[:, -1] = True
    level_B1 = np.take_along_axis(level_BM, fits_BM.argmax(1)[:, None], 1)
    exact_BM = np.minimum(level_B1 * shares_BM, room_BM)
    whole_BM = np.floor(exact_BM + 1e-9).astype(np.int64)
    # Rounding: one more for those that lost most, where there is room.
    lost_BM = np.where(whole_BM < room_BM, exact_BM - whole_BM, -np.inf)
    rank_BM = np.argsort(np.argsort(-lost_BM, axis=1, kind="stable"), axis=1)
    return whole_BM + (rank_BM < (totals_B - whole_BM.sum(1))[:, None])
