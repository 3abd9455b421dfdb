"""Masked modelling of a new survey through small changes of a trained model.

First only the rows of new domains move, against a frozen model; then these rows together with
low-rank changes of the linear layers. What comes out is a plain model with all domains, old and
new, whose shared weights carry the changes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_training.heads.adapters import add_low_rank, add_rows, merge
from skyvec_training.heads.domains import Grown, copy_shared, with_domains
from skyvec_training.recipe.heads import LowRankRun
from skyvec_training.recipe.transformer import TransformerRun, TransformerSizes


def survey_model(base: EncoderDecoder, run: LowRankRun, *, seed: int) -> Grown:
    """The base model with the domains of the survey and no others."""
    return with_domains(
        base, run.domains, generator=torch.Generator().manual_seed(seed), noise=run.row_noise
    )


def rows_run(run: LowRankRun) -> LowRankRun:
    """The first part of a run, in which only rows of new domains move."""
    warmup = min(run.optimizer.warmup_steps, run.row_steps)
    return replace(run, optimizer=replace(run.optimizer, steps=run.row_steps, warmup_steps=warmup))


def free_rows(grown: Grown) -> None:
    """Let nothing but the rows of new domains move."""
    grown.model.requires_grad_(requires_grad=False)
    add_rows(grown.model, grown.codes, grown.domains)


def free_low_rank(grown: Grown, run: LowRankRun, *, seed: int) -> None:
    """Keep what the first part learnt; let rows of new domains and low-rank changes move."""
    merge(grown.model)
    generator = torch.Generator().manual_seed(seed)
    add_low_rank(grown.model, rank=run.rank, alpha=run.alpha, generator=generator, parts=run.parts)
    if grown.new:
        add_rows(grown.model, grown.codes, grown.domains)


def whole_model(base: EncoderDecoder, grown: Grown, *, seed: int) -> EncoderDecoder:
    """A plain model with the domains of both; the survey's model is merged on the way."""
    merge(grown.model)
    generator = torch.Generator().manual_seed(seed)
    whole = with_domains(base, (*base.config.domains, *grown.new), generator=generator).model
    copy_shared(grown.model, whole)
    return whole


def masked_run(model: EncoderDecoder, run: LowRankRun) -> TransformerRun:
    """Settings of masked modelling on such a model."""
    config = model.config
    sizes = TransformerSizes(
        dim=config.dim, num_heads=config.num_heads, encoder_depth=config.encoder_depth,
        decoder_depth=config.decoder_depth, domains=config.domains,
    )  # fmt: skip
    return TransformerRun(
        optimizer=run.optimizer, model=sizes, masking=run.masking, batch=run.batch,
        precision=run.precision, evaluated=run.evaluated,
    )  # fmt: skip
