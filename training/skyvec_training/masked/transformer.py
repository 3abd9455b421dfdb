"""Training of the transformer by masked modelling of tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from skyvec_core.model.blocks import Rows
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.pooling import masked_mean, mean_of_domains
from skyvec_training.loop.shares import pieces_of
from skyvec_training.masked import tables
from skyvec_training.masked.batches import MaskedBatch
from skyvec_training.masked.losses import (
    Targets,
    domain_coefficients,
    normalized,
    sort_targets,
    sums_by_domain,
    weighted_loss,
)
from skyvec_training.masked.readout import Readout, scalar_places
from skyvec_training.parallel.mesh import ALONE, World
from skyvec_training.parallel.sharding import fill, prepare_blocks, release, shard_model
from skyvec_training.recipe.transformer import TransformerRun

# Shape letters: B object, T input token, Q target token, D width, n target, M domain,
# S scalar that is read out, K part of the loss (domains, then scalars), C counted quantity (the same,
# then inputs).


class Batches(Protocol):
    """Where masked objects come from: pure functions of step and slot."""

    @property
    def digest(self) -> str:
        """Identity of the tokens."""
        ...

    @property
    def held_out(self) -> int:
        """Objects that are never trained on."""
        ...

    def at(self, step: int, slots: range) -> MaskedBatch:
        """Objects of some slots of a step."""
        ...

    def held_out_at(self, slots: range) -> MaskedBatch:
        """Some held-out objects, always masked alike."""
        ...

    def ranks(self) -> Tensor:
        """Ranks (S, V) of the codes of each scalar; see `Readout`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Microbatch:
    """Objects of one forward pass and their targets by domain."""

    masked: MaskedBatch
    targets: Targets
    rows: Rows | None = None
    """Of the inputs: padding is left out of all but attention."""
    target_rows: Rows | None = None


class MaskedModel(nn.Module):
    """The whole forward pass of a microbatch: the one call that sharding knows of."""

    def __init__(
        self,
        model: EncoderDecoder,
        *,
        smoothing: float,
        bfloat16: bool,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.smoothing, self.in_bfloat16, self.readout = smoothing, bfloat16, readout

    def forward(self, batch: Microbatch) -> Tensor:
        """Summed cross-entropy (M,) of each domain, then squared errors (S,) of a readout.

        Plain and in float32 while evaluating.
        """
        masked, targets, model = batch.masked, batch.targets, self.model
        bfloat16 = self.in_bfloat16 and model.training
        with torch.autocast(masked.codes_BT.device.type, torch.bfloat16, enabled=bfloat16):
            context_BTD = model.encode(
                masked.codes_BT, masked.positions_BT, masked.valid_BT, batch.rows
            )
            vector_BD = _vectors(model, context_BTD, masked)
            context_BTD, seen_BT = _shown(context_BTD, vector_BD, masked)
            hidden_BQD = model.decode(
                context_BTD,
                seen_BT,
                masked.target_positions_BQ,
                masked.target_valid_BQ,
                batch.rows,
                batch.target_rows,
            )
            sums_M = sums_by_domain(
                model, hidden_BQD.flatten(0, 1)[targets.places_n], targets.codes_n, targets.counts,
                smoothing=self.smoothing if model.training else 0.0,
            )  # fmt: skip
        if self.readout is None:
            return sums_M
        return torch.cat([sums_M, self.readout.sums(vector_BD, masked.scalars_BS)])


class TransformerTask:
    """Masked modelling, its batch shared among the ranks of a world."""

    def __init__(
        self,
        model: EncoderDecoder,
        batches: Batches,
        run: TransformerRun,
        *,
        world: World = ALONE,
    ) -> None:
        self.module, self.batches, self.run, self.world = model, batches, run, world
        self.slots, self.vocabulary = run.batch, model.vocabulary
        self.root = MaskedModel(
            model,
            smoothing=run.ordinal_smoothing,
            bfloat16=run.precision == "bfloat16",
            readout=Readout.of(batches.ranks(), width=run.model.dim)
            if run.readout_weight
            else None,
        )
        weights = [run.domain_weights.get(m.token_key, 1.0) for m in self.vocabulary.modalities]
        self.multipliers_M = torch.tensor(weights)
        self.scalars = scalar_places(self.vocabulary) if run.readout_weight else []

    def read(self, step: int, slots: range) -> Microbatch:
        """Masked objects of some slots, their targets sorted."""
        return self._sorted(self.batches.at(step, slots))

    def counts(self, batch: Microbatch) -> Tensor:
        """Targets of each domain, objects that have each scalar, then input tokens."""
        return torch.tensor([*self._counted(batch), int(batch.masked.valid_BT.sum())])

    def coefficients(self, counts_C: Tensor) -> Tensor:
        """Weight (K,) of each domain's cross-entropy, and of the squared error of each scalar."""
        domains = len(self.multipliers_M)
        coefficients_M = domain_coefficients(
            counts_C[:domains], self.multipliers_M, power=self.run.count_power
        )
        if not self.scalars:
            return coefficients_M
        read_S = domain_coefficients(
            counts_C[domains:-1], self.multipliers_M[self.scalars], power=1.0
        )
        return torch.cat([coefficients_M, self.run.readout_weight * read_S])

    def sums(self, batch: Microbatch) -> Tensor:
        """Summed cross-entropy of each domain, then squared error of each scalar (K,)."""
        out_M: Tensor = self.root(_moved(batch, self.world.device))
        return out_M

    def describe(self, sums_K: Tensor, counts_C: Tensor) -> dict[str, float]:
        """How full the budgets are, and each domain's loss over log V."""
        masking = self.run.masking
        return {
            "input_fill": int(counts_C[-1]) / (self.slots * masking.input_budget),
            "output_fill": int(counts_C[: len(self.multipliers_M)].sum())
            / (self.slots * masking.output_budget),
            **self._scores(sums_K, counts_C[:-1]),
        }

    def evaluate(self) -> dict[str, float]:
        """Plain cross-entropy on held-out objects under fixed masks, each over log V as well.

        ``read_<domain>`` is the share of a scalar's variance that a readout misses: no part of ``loss``.
        """
        number = min(self.batches.held_out, self.run.evaluated)
        at_once = self.run.parallel.microbatch or -(-self.run.batch // self.world.size)
        domains = len(self.multipliers_M)
        parts = domains + len(self.scalars)
        sums_K, counts_K = torch.zeros(parts, dtype=torch.float64), torch.zeros(parts).long()
        for piece in pieces_of(number, self.world, microbatch=at_once):
            batch = self._sorted(self.batches.held_out_at(piece.slots))
            found_K = self.sums(batch)
            if piece.counts:
                sums_K += found_K.double().cpu()
                counts_K += torch.tensor(self._counted(batch))
        release(self.root)
        self.world.total(sums_K)
        self.world.total(counts_K)
        loss = weighted_loss(
            sums_K[:domains], counts_K[:domains], self.multipliers_M, power=self.run.count_power
        )
        return {"loss": float(loss), **self._scores(sums_K, counts_K)}

    def _counted(self, batch: Microbatch) -> list[int]:
        objects = (batch.masked.scalars_BS >= 0).sum(0).tolist() if self.scalars else []
        return [*batch.targets.counts, *objects]

    def _scores(self, sums_K: Tensor, counts_K: Tensor) -> dict[str, float]:
        domains, modalities = len(self.multipliers_M), self.vocabulary.modalities
        missed_S = (sums_K[domains:] / counts_K[domains:].clamp(min=1)).tolist()
        return {
            **normalized(self.vocabulary, sums_K[:domains], counts_K[:domains]),
            **{
                f"read_{modalities[place].token_key}": missed
                for place, missed in zip(self.scalars, missed_S, strict=True)
            },
        }

    def _sorted(self, masked: MaskedBatch) -> Microbatch:
        targets = sort_targets(masked.target_codes_BQ, masked.target_positions_BQ,
                               masked.target_valid_BQ, self.vocabulary)  # fmt: skip
        if self.run.parallel.compile:  # it wants the same shapes in every step
            return Microbatch(masked=masked, targets=targets)
        return Microbatch(masked=masked, targets=targets, rows=Rows.of(masked.valid_BT),
                          target_rows=Rows.of(masked.target_valid_BQ))  # fmt: skip


def build_transformer(run: TransformerRun, *, seed: int) -> EncoderDecoder:
    """A transformer with fresh weights."""
    model = EncoderDecoder(config_of(run))
    tables.initialize(model, torch.Generator().manual_seed(seed))
    return model


def build_task(
    batches: Batches, run: TransformerRun, *, seed: int, world: World = ALONE
) -> TransformerTask:
    """The task with fresh weights, equal on every world; sharded if the world has a mesh.

    Only rank 0 ever holds a whole model, on the host.
    """
    if world.mesh is None:
        task = TransformerTask(build_transformer(run, seed=seed), batches, run, world=world)
        prepare_blocks(task.root, run.parallel)
        return task
    with torch.device("meta"):
        model = EncoderDecoder(config_of(run))
    task = TransformerTask(model, batches, run, world=world)
    shard_model(task.root, world.mesh, run.parallel, precision=run.precision)
    whole = build_transformer(run, seed=seed).state_dict() if world.is_first else None
    fill(
        task.root,
        {f"model.{name}": tensor for name, tensor in whole.items()} if whole else None,
        world.device,
    )
    words = model.vocabulary
    model.position_encoding = words.position_encodings(model.config.dim).to(world.device)
    model.domain_of_position = words.domain_of_position().to(world.device)
    return task


def config_of(run: TransformerRun) -> TransformerConfig:
    """Sizes and domains as the model folder will have them."""
    sizes = run.model
    return TransformerConfig(
        dim=sizes.dim,
        num_heads=sizes.num_heads,
        encoder_depth=sizes.encoder_depth,
        decoder_depth=sizes.decoder_depth,
        domains_in=sizes.domains,
        domains_out=sizes.domains,
        pooling=sizes.pooling,
    )


def _moved(batch: Microbatch, device: torch.device) -> Microbatch:
    if device.type == "cpu":
        return batch
    masked = {f.name: getattr(batch.masked, f.name) for f in fields(batch.masked)}
    there = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
             for k, v in masked.items()}  # fmt: skip
    targets = replace(
        batch.targets,
        places_n=batch.targets.places_n.to(device, non_blocking=True),
        codes_n=batch.targets.codes_n.to(device, non_blocking=True),
    )
    return Microbatch(
        masked=replace(batch.masked, **there), targets=targets,
        rows=batch.rows and batch.rows.to(device),
        target_rows=batch.target_rows and batch.target_rows.to(device),
    )  # fmt: skip


def _vectors(model: EncoderDecoder, context_BTD: Tensor, masked: MaskedBatch) -> Tensor:
    if model.config.pooling == "mean":
        return masked_mean(context_BTD, masked.valid_BT)
    domains_BT = model.domain_of_position[masked.positions_BT]
    return mean_of_domains(
        context_BTD, masked.valid_BT, domains_BT, count=len(model.vocabulary.modalities)
    )


def _shown(context_BTD: Tensor, vector_BD: Tensor, masked: MaskedBatch) -> tuple[Tensor, Tensor]:
    """Replace the context of some objects by their vector, the only token that their decoder sees."""
    valid_BT, pooled_B = masked.valid_BT, masked.pooled_B
    first_T = torch.arange(valid_BT.shape[1], device=valid_BT.device) == 0
    context_BTD = torch.where(pooled_B[:, None, None], vector_BD[:, None], context_BTD)
    return context_BTD, torch.where(pooled_B[:, None], first_T, valid_BT)
