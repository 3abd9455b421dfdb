"""Masked objects, packed to their budgets: what a step of masked modelling sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.corpus import Corpus
from skyvec_training.data.draws import Stream, as_uniforms, words
from skyvec_training.masked.masks.draw import draw_masks
from skyvec_training.masked.masks.layout import layout_of
from skyvec_training.masked.readout import SAMPLE, ranks_of, scalar_places
from skyvec_training.recipe.transformer import TransformerRun

# Shape letters: B object, A all positions, T input token, Q target token, W random word, S scalar,
# V code.

EVALUATION_STEP = 1 << 40
"""Step number of the masks of every evaluation: always the same, never a training step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedBatch:
    """Inputs and targets of B objects, packed to their budgets, each by ascending position."""

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
    scalars_BS: Tensor
    """Codes of all scalars, seen or hidden, for a readout; -1 where nothing was observed."""

    def __len__(self) -> int:
        return len(self.pooled_B)

    def fill(self) -> Mapping[str, float]:
        """Shares of the two budgets that hold tokens; the rest is padding, and paid for."""
        return {
            "input_fill": float(self.valid_BT.float().mean()),
            "output_fill": float(self.target_valid_BQ.float().mean()),
        }


class MaskedBatches:
    """Masked objects of a corpus as a function of (seed, step, slot), on any number of ranks."""

    def __init__(
        self, corpus: Corpus, vocabulary: Vocabulary, run: TransformerRun, *, seed: int
    ) -> None:
        self.corpus, self.run, self.seed = corpus, run, seed
        self.layout = layout_of(vocabulary, run.masking)
        starts = [vocabulary.codes[m.token_key].start for m in vocabulary.modalities]
        self._starts_A = np.array(starts)[self.layout.modality_A]
        scalars = scalar_places(vocabulary)
        self._scalars_S = np.searchsorted(self.layout.modality_A, scalars)
        self._sizes = [vocabulary.modalities[place].vocabulary for place in scalars]

    def at(self, step: int, slots: range) -> MaskedBatch:
        """Some slots of a training step, out of ``range(run.batch)``."""
        rows = self.corpus.train.rows_of_slots(
            seed=self.seed, step=step, slots=slots, batch=self.run.batch
        )
        return self._masked(rows, step, slots)

    @property
    def held_out(self) -> int:
        """Objects that are never trained on."""
        return len(self.corpus.held_out_rows)

    @property
    def digest(self) -> str:
        """Identity of the tokens."""
        return self.corpus.digest

    def held_out_at(self, slots: range) -> MaskedBatch:
        """Some held-out objects, always masked alike."""
        rows = self.corpus.held_out_rows[slots.start : slots.stop]
        return self._masked(rows, EVALUATION_STEP, slots)

    def ranks(self) -> Tensor:
        """Ranks (S, V) of the codes of each scalar among objects of the first steps."""
        steps = range(max(1, SAMPLE // self.run.batch))
        rows = [
            self.corpus.train.rows_of_slots(
                seed=self.seed, step=step, slots=range(self.run.batch), batch=self.run.batch
            )
            for step in steps
        ]
        codes = [self.corpus.codes(some)[:, self._scalars_S] for some in rows]
        return ranks_of(np.concatenate(codes), self._sizes)

    def _masked(self, rows: NDArray[np.int64], step: int, slots: range) -> MaskedBatch:
        words_BW = words(
            seed=self.seed, stream=Stream.MASKING, step=step, slots=slots,
            width=self.layout.words + 1,
        )  # fmt: skip
        codes_BA = self.corpus.codes(rows)
        run = self.run
        masks = draw_masks(codes_BA >= 0, words_BW[:, :-1], self.layout, run.masking)
        own_BT = np.take_along_axis(codes_BA, masks.inputs_BT, 1)
        codes_BT = own_BT + self._starts_A[masks.inputs_BT]
        targets_BQ = np.take_along_axis(codes_BA, masks.targets_BQ, 1).astype(np.int64)
        return MaskedBatch(
            codes_BT=torch.from_numpy(np.where(masks.inputs_valid_BT, codes_BT, 0)),
            positions_BT=torch.from_numpy(masks.inputs_BT),
            valid_BT=torch.from_numpy(masks.inputs_valid_BT),
            target_codes_BQ=torch.from_numpy(np.where(masks.targets_valid_BQ, targets_BQ, 0)),
            target_positions_BQ=torch.from_numpy(masks.targets_BQ),
            target_valid_BQ=torch.from_numpy(masks.targets_valid_BQ),
            pooled_B=torch.from_numpy(as_uniforms(words_BW[:, -1]) < run.pooled_share),
            scalars_BS=torch.from_numpy(codes_BA[:, self._scalars_S].astype(np.int64)),
        )
