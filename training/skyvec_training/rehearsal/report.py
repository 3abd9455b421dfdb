"""What a rehearsal found, in numbers that a person can plan with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.rehearsal.network import GPUS, delay_of
from skyvec_training.rehearsal.objects import fills
from skyvec_training.rehearsal.plan import Plan
from skyvec_training.rehearsal.published import PUBLISHED
from skyvec_training.rehearsal.work import step_flops
from skyvec_training.rehearsal.world import Rehearsed

GIB = 2**30
UNKNOWN = (
    "values: fake tensors have none, so neither loss nor convergence nor NaN shows",
    "speed: the time is arithmetic at the stated MFU and the stated network, not a measurement",
    "overlap of messages and multiplications, kernels, clocks and stragglers",
    "hangs and messages that ranks send in different order: one rank is looked at",
    "NCCL, drivers, and what the allocator loses to fragments (plan for 10 to 20 percent more)",
    "memory of GPU kernels: activations are those of the CPU's",
)
"""What a rehearsal cannot tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    parameters: int
    """The float32 shard."""
    gradients: int
    optimizer: int
    gathered: int
    """Whole weights in the precision of the run, at the peak."""
    activations: int
    """Kept for the backward pass, and temporary, at the peak."""
    messages: int
    """Buffers of collectives, at the peak."""
    peak: int
    """All of it at the fullest moment of the forward and backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Messages of one kind in one step."""

    kind: str
    dtype: str
    ranks: int
    count: int
    bytes: int
    """Of the whole tensors, summed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Time:
    """Arithmetic, not measurement."""

    mfu: float
    """Assumed."""
    multiply_seconds: float
    bandwidth_seconds: float
    latency_seconds: float
    step_seconds: float
    """If messages hide behind multiplications; the longer of the two."""
    step_seconds_without_overlap: float
    days: float
    gpu_hours: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One rank's step and the run that it belongs to."""

    size: str
    ranks: int
    rank: int
    strategy: str
    shard: int
    microbatch: int
    microbatches: int
    activation_checkpointing: bool
    gpu: str
    model_parameters: int
    rank_parameters: int
    shards: Mapping[str, tuple[int, ...]]
    """Shape of this rank's part of some parameters."""
    memory: Memory
    memory_of_gpu: int
    traffic: list[Traffic]
    flops_counted: float
    """Of this rank's step, recomputation included."""
    flops_of_budgets: float
    """Of this rank's step, without recomputation, as if every budget were full."""
    flops_useful: float
    """The same for the tokens that are there."""
    fill: Mapping[str, Mapping[str, float]]
    """Shares of the budgets that each kind of object fills."""
    checkpoint_bytes: int
    """Weights and optimizer, all ranks together."""
    time: Time
    published: Mapping[str, float] | None
    """AION-1's run of this size."""
    unknown: tuple[str, ...] = UNKNOWN

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def report_of(plan: Plan, seen: Rehearsed, *, gpu: str, mfu: float) -> Report:
    """Put numbers together.

    Parameters
    ----------
    gpu
        One of `skyvec_training.rehearsal.network.GPUS`.
    mfu
        Share of its peak that multiplications are assumed to reach, recomputation not counted.
    """
    config, run = plan.config, plan.run
    own = sum(math.prod(shape) for shape in seen.shards.values())
    total = sum(math.prod(shape) for shape in seen.whole.values())
    traffic = [
        Traffic(kind=kind, dtype=dtype, ranks=ranks, count=count, bytes=size)
        for (kind, dtype, ranks), (count, size) in sorted(_summed(seen).items())
    ]
    full, useful = _flops(plan, seen)
    return Report(
        size=plan.size,
        ranks=plan.ranks,
        rank=plan.rank,
        strategy=plan.parallel.strategy,
        shard=plan.shard,
        microbatch=max(len(batch.masked) for batch in seen.batches),
        microbatches=len(seen.batches),
        activation_checkpointing=plan.parallel.activation_checkpointing,
        gpu=gpu,
        model_parameters=total,
        rank_parameters=own,
        shards={name: seen.shards[name] for name in _shown(seen)},
        memory=_memory(seen, own),
        memory_of_gpu=round(GPUS[gpu].memory_gib * GIB),
        traffic=traffic,
        flops_counted=seen.flops,
        flops_of_budgets=full,
        flops_useful=useful,
        fill=fills(Vocabulary(config.domains), run.masking),
        checkpoint_bytes=12 * total,
        time=_time(plan, seen, full, gpu, mfu),
        published=_published(plan.size),
    )


def _flops(plan: Plan, seen: Rehearsed) -> tuple[float, float]:
    full = useful = 0.0
    for batch in seen.batches:
        inputs_B = batch.masked.valid_BT.sum(1)
        targets_B = batch.masked.target_valid_BQ.sum(1)
        useful += step_flops(plan.config, inputs_B, targets_B)
        full += step_flops(
            plan.config,
            inputs_B * 0 + plan.masking.input_budget,
            targets_B * 0 + plan.masking.output_budget,
        )
    return full, useful


def _memory(seen: Rehearsed, own: int) -> Memory:
    peak = seen.peak
    gradients, optimizer = 4 * own, 8 * own
    # The tracker looks at the passes alone: gradients that are reduced already, and the
    # optimizer's averages, lie beside them from the second step on.
    extra = gradients - peak["Sharded Grad"] + optimizer
    return Memory(
        parameters=peak["Sharded Param"],
        gradients=gradients,
        optimizer=optimizer,
        gathered=peak["Unsharded Param"],
        activations=peak["Activation"] + peak["Temp"] + peak["Unsharded Grad"] + peak["Buffer"],
        messages=peak["All Gather"] + peak["Reduce Scatter"],
        peak=peak["Total"] + extra,
    )


def _summed(seen: Rehearsed) -> dict[tuple[str, str, int], tuple[int, int]]:
    found: dict[tuple[str, str, int], tuple[int, int]] = {}
    for message, times in seen.messages.items():
        key = (message.kind, message.dtype, message.ranks)
        count, size = found.get(key, (0, 0))
        found[key] = (count + times, size + times * message.size)
    return found


def _time(plan: Plan, seen: Rehearsed, flops: float, gpu: str, mfu: float) -> Time:
    kind = GPUS[gpu]
    multiply = flops / (kind.tera_flops * 1e12 * mfu)
    delay = delay_of(seen.messages, kind, shard=plan.shard)
    step = max(multiply, delay.seconds)
    return Time(
        mfu=mfu,
        multiply_seconds=multiply,
        bandwidth_seconds=delay.bandwidth,
        latency_seconds=delay.latency,
        step_seconds=step,
        step_seconds_without_overlap=multiply + delay.seconds,
        days=step * plan.steps / 86_400,
        gpu_hours=step * plan.steps * plan.ranks / 3600,
    )


def _published(size: str) -> dict[str, float] | None:
    run = PUBLISHED.get(size)
    if run is None:
        return None
    return {
        "gpus": run.gpus,
        "days": run.days,
        "gpu_hours": run.gpu_hours,
        "step_seconds": run.step_seconds,
        "mfu": run.mfu,
    }


def _shown(seen: Rehearsed) -> list[str]:
    wanted = ("token_table.weight", "head_table", "encoder.0.attn.qkv.weight",
              "decoder.0.mlp.fc2.weight", "decoder_norm.weight")  # fmt: skip
    return [name for name in wanted if name in seen.shards]
