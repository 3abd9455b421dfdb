"""Masked objects, packed to their budgets: what one step of masked modelling sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.masked.masking import Layout, draw_masks
from skyvec_training.recipe.transformer import TransformerRun

# Shape letters: B object, A all positions, T input token, Q target token, K uniform number.


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedBatch:
    """Inputs and targets of B objects, packed to their budgets."""

    codes_BT: Tensor
    """Rows of the joint code table."""
    positions_BT: Tensor
    valid_BT: Tensor
    target_codes_BQ: Tensor
    """Codes within their domains."""
    target_positions_BQ: Tensor
    target_valid_BQ: Tensor
    pooled_B: Tensor
    """True where the decoder sees only the mean of the context."""


def masked_batch(
    codes_BA: NDArray[np.int16],
    draws_BK: NDArray[np.float64],
    vocabulary: Vocabulary,
    layout: Layout,
    run: TransformerRun,
) -> MaskedBatch:
    """Mask and pack objects; a function of its arguments alone, row by row.

    The last column of ``draws_BK`` decides which objects are pooled, the others mask.
    """
    inputs_BA, targets_BA = draw_masks(codes_BA >= 0, draws_BK[:, :-1], layout, run.masking)
    starts_M = np.array([vocabulary.codes[m.token_key].start for m in vocabulary.modalities])
    joint_BA = codes_BA + starts_M[layout.modality_A]
    codes, positions, valid = _pack(joint_BA, inputs_BA, run.masking.input_budget)
    target_codes, target_positions, target_valid = _pack(
        codes_BA.astype(np.int64), targets_BA, run.masking.output_budget
    )
    return MaskedBatch(
        codes_BT=codes,
        positions_BT=positions,
        valid_BT=valid,
        target_codes_BQ=target_codes,
        target_positions_BQ=target_positions,
        target_valid_BQ=target_valid,
        pooled_B=torch.from_numpy(draws_BK[:, -1] < run.pooled_share),
    )


def _pack(
    codes_BA: NDArray[np.int64], chosen_BA: NDArray[np.bool_], budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    order_BT = np.argsort(~chosen_BA, axis=1, kind="stable")[:, :budget]
    valid_BT = np.take_along_axis(chosen_BA, order_BT, 1)
    codes_BT = np.where(valid_BT, np.take_along_axis(codes_BA, order_BT, 1), 0)
    positions_BT = np.where(valid_BT, order_BT, 0)
    return torch.from_numpy(codes_BT), torch.from_numpy(positions_BT), torch.from_numpy(valid_BT)
