"""Typical objects of AION-1's surveys: how full they leave the budgets.

Codes are random; which positions an object has is not, and nothing else matters to a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.draws import Stream, words
from skyvec_training.masked.batches import MaskedBatch
from skyvec_training.masked.masks.draw import draw_masks
from skyvec_training.masked.masks.layout import layout_of
from skyvec_training.masked.readout import scalar_places
from skyvec_training.recipe.masking import MaskingRun

# Shape letters: B object, A all positions of a vocabulary, W random word.

_FLUXES = ("tok_flux_g", "tok_flux_r", "tok_flux_i", "tok_flux_z")
_INFRARED = ("tok_flux_w1", "tok_flux_w2", "tok_flux_w3", "tok_flux_w4")
_SHAPES = ("tok_shape_r", "tok_shape_e1", "tok_shape_e2")
_HSC = tuple(f"tok_{kind}_{band}" for kind in ("mag", "a") for band in "grizy")
_GAIA = ("tok_flux_g_gaia", "tok_flux_bp_gaia", "tok_flux_rp_gaia", "tok_parallax")
_LEGACY = ("tok_image", *_FLUXES, *_INFRARED, *_SHAPES, "tok_ebv")

TYPICAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Legacy Survey image": _LEGACY,
        "Legacy Survey image, SDSS spectrum": (*_LEGACY, "tok_spectrum_sdss", "tok_z"),
        "HSC image": ("tok_image_hsc", *_HSC, "tok_shape11", "tok_shape12", "tok_shape22"),
        "DESI spectrum": ("tok_spectrum_desi", "tok_z"),
        "Gaia star": ("tok_xp_bp", "tok_xp_rp", *_GAIA, "tok_ra", "tok_dec"),
    }
)
"""Kind of object -> the domains that it has."""


class TypicalObjects:
    """Objects of some kinds in turn, masked by the policy of a run; a function of (step, slot)."""

    digest = "typical objects"
    held_out = 0

    def __init__(
        self,
        vocabulary: Vocabulary,
        run: MaskingRun,
        *,
        kinds: Sequence[tuple[str, ...]] = tuple(TYPICAL.values()),
        seed: int = 0,
    ) -> None:
        self.vocabulary, self.run, self.kinds, self.seed = vocabulary, run, tuple(kinds), seed
        self.layout = layout_of(vocabulary, run)
        sizes = np.array([m.vocabulary for m in vocabulary.modalities])
        starts = np.array([vocabulary.codes[m.token_key].start for m in vocabulary.modalities])
        self._sizes_A, self._starts_A = (
            sizes[self.layout.modality_A],
            starts[self.layout.modality_A],
        )
        self._scalars_S = np.searchsorted(self.layout.modality_A, scalar_places(vocabulary))

    def codes(self, step: int, slots: range) -> NDArray[np.int64]:
        """Code (B, A) of each position, within its domain; -1 where the kind has none."""
        random = np.random.default_rng((self.seed, step, slots.start))
        codes_BA = random.integers(0, self._sizes_A - 1, (len(slots), len(self._sizes_A)))
        has_BA = np.zeros(codes_BA.shape, dtype=bool)
        for row, slot in enumerate(slots):
            for key in self.kinds[slot % len(self.kinds)]:
                has_BA[row, self.vocabulary.positions[key].rows] = True
        return np.where(has_BA, codes_BA, -1)

    def at(self, step: int, slots: range) -> MaskedBatch:
        """Objects of some slots of a step."""
        codes_BA = self.codes(step, slots)
        words_BW = words(
            seed=self.seed, stream=Stream.MASKING, step=step, slots=slots, width=self.layout.words
        )
        masks = draw_masks(codes_BA >= 0, words_BW, self.layout, self.run)
        inputs_BT = np.take_along_axis(codes_BA + self._starts_A, masks.inputs_BT, 1)
        targets_BQ = np.take_along_axis(codes_BA, masks.targets_BQ, 1)
        return MaskedBatch(
            codes_BT=torch.from_numpy(np.where(masks.inputs_valid_BT, inputs_BT, 0)),
            positions_BT=torch.from_numpy(masks.inputs_BT),
            valid_BT=torch.from_numpy(masks.inputs_valid_BT),
            target_codes_BQ=torch.from_numpy(np.where(masks.targets_valid_BQ, targets_BQ, 0)),
            target_positions_BQ=torch.from_numpy(masks.targets_BQ),
            target_valid_BQ=torch.from_numpy(masks.targets_valid_BQ),
            pooled_B=torch.zeros(len(slots), dtype=torch.bool),
            scalars_BS=torch.from_numpy(codes_BA[:, self._scalars_S]),
        )

    def ranks(self) -> Tensor:
        """Ranks (S, V) of codes that are all alike frequent."""
        sizes_S = self._sizes_A[self._scalars_S]
        return (torch.arange(int(sizes_S.max(initial=1))) + 0.5) / torch.from_numpy(sizes_S)[
            :, None
        ]

    def held_out_at(self, slots: range) -> MaskedBatch:
        """There are none apart."""
        return self.at(1 << 40, slots)


def fills(
    vocabulary: Vocabulary, run: MaskingRun, *, objects: int = 256
) -> dict[str, dict[str, float]]:
    """Shares of the two budgets that each kind of object fills, over so many draws."""
    return {
        name: dict(TypicalObjects(vocabulary, run, kinds=[keys]).at(0, range(objects)).fill())
        for name, keys in TYPICAL.items()
    }
