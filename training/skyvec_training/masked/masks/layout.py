"""Where the modalities of a vocabulary lie, and how many random words an object's mask needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.draws import as_uniforms
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, A all positions of a vocabulary, M modality, G group, W random word.

CONTROLS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each modality's positions lie, and which positions a stamp may lose."""

    modality_A: NDArray[np.int64]
    """Modality of each position."""
    sizes_M: NDArray[np.int64]
    """Positions of each modality."""
    sides_A: NDArray[np.int16]
    """Side in tokens of the smallest central square of an image that has the position; 0 elsewhere."""
    groups_GM: NDArray[np.bool_]
    """Modalities of each group that may be dropped together."""
    chances_G: NDArray[np.float64]

    @property
    def words(self) -> int:
        """Random words that an object's mask needs."""
        return (
            -(-len(self.modality_A) // 2) + 2 * len(self.sizes_M) + len(self.chances_G) + CONTROLS
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The random numbers of a mask, by use."""

    keys_BA: NDArray[np.uint32]
    """Sorting positions by them shuffles an object's tokens."""
    inputs_BM: NDArray[np.float64]
    targets_BM: NDArray[np.float64]
    dropped_BG: NDArray[np.float64]
    controls_BK: NDArray[np.float64]


def layout_of(vocabulary: Vocabulary, run: MaskingRun) -> Layout:
    """Layout of a vocabulary, with the groups of a recipe."""
    keys = [m.token_key for m in vocabulary.modalities]
    sides_A = np.zeros(vocabulary.num_positions, np.int16)
    for modality in vocabulary.modalities:
        if modality.kind == "image":
            down, across = (np.abs(2 * np.arange(n) - (n - 1)) + 1 for n in modality.grid)
            rows = vocabulary.positions[modality.token_key].rows
            sides_A[rows] = np.maximum(down[:, None], across[None]).flatten()
    members = [[key in run.groups[name] for key in keys] for name in run.drop]
    return Layout(
        modality_A=vocabulary.domain_of_position().numpy(),
        sizes_M=np.array([m.num_tokens for m in vocabulary.modalities]),
        sides_A=sides_A,
        groups_GM=np.array(members, dtype=bool).reshape(len(run.drop), len(keys)),
        chances_G=np.array(list(run.drop.values()), dtype=float),
    )


def draws_of(words_BW: NDArray[np.uint64], layout: Layout) -> Draws:
    """Deal out random words (B, ``layout.words``)."""
    positions, kinds, groups = len(layout.modality_A), len(layout.sizes_M), len(layout.chances_G)
    cuts = np.cumsum([-(-positions // 2), kinds, kinds, groups])
    keys, inputs, targets, dropped, controls = np.split(words_BW, cuts, axis=1)
    halves_BA = np.ascontiguousarray(keys, "<u8").view("<u4")
    return Draws(
        keys_BA=halves_BA[:, :positions],
        inputs_BM=as_uniforms(inputs),
        targets_BM=as_uniforms(targets),
        dropped_BG=as_uniforms(dropped),
        controls_BK=as_uniforms(controls),
    )
