"""Training of the transformer by masked modelling of tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.pooling import masked_mean
from skyvec_training.data.draws import Stream, rows_of_step, uniforms
from skyvec_training.data.tokens import TokenStore
from skyvec_training.masked import tables
from skyvec_training.masked.batches import MaskedBatch, masked_batch
from skyvec_training.masked.losses import normalized, sums_by_domain, weighted_loss
from skyvec_training.masked.masking import layout_of
from skyvec_training.recipe.reading import rows_to_train
from skyvec_training.recipe.transformer import TransformerRun

# Shape letters: B object, A all positions, T input token, Q target token, D width, n target.

EVALUATION_STEP = 1 << 40
"""Step number of the masks of every evaluation: always the same, never a training step."""


def build_transformer(run: TransformerRun, *, seed: int) -> EncoderDecoder:
    """A transformer with fresh weights."""
    sizes = run.model
    config = TransformerConfig(
        dim=sizes.dim,
        num_heads=sizes.num_heads,
        encoder_depth=sizes.encoder_depth,
        decoder_depth=sizes.decoder_depth,
        domains_in=sizes.domains,
        domains_out=sizes.domains,
    )
    model = EncoderDecoder(config)
    tables.initialize(model, torch.Generator().manual_seed(seed))
    return model


def losses_of_batch(
    model: EncoderDecoder, batch: MaskedBatch, *, smoothing: float, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and number of targets of each domain; see `losses.sums_by_domain`."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        context_BTD = model.encode(batch.codes_BT, batch.positions_BT, batch.valid_BT)
        context_BTD, seen_BT = _pool(context_BTD, batch.valid_BT, batch.pooled_B)
        hidden_BQD = model.decode(
            context_BTD, seen_BT, batch.target_positions_BQ, batch.target_valid_BQ
        )
        chosen = batch.target_valid_BQ
        domains_n = model.domain_of_position[batch.target_positions_BQ[chosen]]
        return sums_by_domain(
            model, hidden_BQD[chosen], batch.target_codes_BQ[chosen], domains_n, smoothing=smoothing
        )


class TransformerTask:
    """Masked modelling on one token extension, its last objects held out."""

    def __init__(
        self, model: EncoderDecoder, store: TokenStore, run: TransformerRun, *, seed: int
    ) -> None:
        self.module = model
        self.store, self.run, self.seed = store, run, seed
        self.layout = layout_of(model.vocabulary, run.masking)
        self.train_rows = rows_to_train(len(store), run.held_out, where="transformer")
        weights = [run.domain_weights.get(m.token_key, 1.0) for m in model.vocabulary.modalities]
        self.multipliers_M = torch.tensor(weights)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss of one batch, and how full the budgets are."""
        run = self.run
        rows = rows_of_step(seed=self.seed, step=step, batch=run.batch, rows=self.train_rows)
        batch = self._batch(rows, step, range(run.batch))
        sums_M, counts_M = losses_of_batch(
            self.module, batch, smoothing=run.ordinal_smoothing,
            bfloat16=run.precision == "bfloat16",
        )  # fmt: skip
        loss = weighted_loss(sums_M, counts_M, self.multipliers_M, power=run.count_power)
        fill = {
            "input_fill": float(batch.valid_BT.float().mean()),
            "output_fill": float(batch.target_valid_BQ.float().mean()),
        }
        return loss, fill

    def evaluate(self) -> dict[str, float]:
        """Plain cross-entropy on held-out objects under fixed masks, each over log V as well."""
        last = min(len(self.store), self.train_rows + self.run.evaluated)
        kinds = len(self.multipliers_M)
        sums_M, counts_M = torch.zeros(kinds), torch.zeros(kinds, dtype=torch.int64)
        for start in range(self.train_rows, last, self.run.batch):
            rows = np.arange(start, min(start + self.run.batch, last))
            slots = range(start - self.train_rows, start - self.train_rows + len(rows))
            batch = self._batch(rows, EVALUATION_STEP, slots)
            sums, counts = losses_of_batch(self.module, batch, smoothing=0.0, bfloat16=False)
            sums_M, counts_M = sums_M + sums, counts_M + counts
        loss = weighted_loss(sums_M, counts_M, self.multipliers_M, power=self.run.count_power)
        return {"loss": float(loss), **normalized(self.module, sums_M, counts_M)}

    def _batch(self, rows: NDArray[np.int64], step: int, slots: range) -> MaskedBatch:
        draws_BK = uniforms(
            seed=self.seed, stream=Stream.MASKING, step=step, slots=slots,
            width=self.layout.draws + 1,
        )  # fmt: skip
        codes_BA = self.store.codes_BA[rows]
        return masked_batch(codes_BA, draws_BK, self.module.vocabulary, self.layout, self.run)


def _pool(context_BTD: Tensor, valid_BT: Tensor, pooled_B: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the context of some objects by its mean, the only token that their decoder sees."""
    mean_BD = masked_mean(context_BTD, valid_BT)
    first_T = torch.arange(valid_BT.shape[1]) == 0
    context_BTD = torch.where(pooled_B[:, None, None], mean_BD[:, None], context_BTD)
    return context_BTD, torch.where(pooled_B[:, None], first_T, valid_BT)
