"""Who holds which weights (FSDP2), arranged so that a step on any world has the same gradient.

The loss is a sum over tokens divided by counts of the whole batch, so gradients are added over
ranks, not averaged. Blocks are units of their own; code tables, norms and heads stay in the root,
which runs on every rank in every microbatch: a unit that only some ranks run pairs the collectives
of different weights, and gradients are wrong without an error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from skyvec_core.model.blocks import DecoderBlock, EncoderBlock
from skyvec_training.recipe.optimizer import Precision
from skyvec_training.recipe.parallel import ParallelRun

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WRAPPED = "_checkpoint_wrapped_module."


def shard_model(
    model: nn.Module,
    mesh: DeviceMesh,
    run: ParallelRun,
    *,
    precision: Precision = "float32",
) -> None:
    """Shard a module in place; from then on call nothing but its ``forward``.

    Parameters
    ----------
    model
        On any device, meta included; see `fill`.
    mesh
        Of `skyvec_training.parallel.mesh.World`.
    precision
        Of the gathered weights; the shards, and so the optimizer, are float32.
    """
    prepare_blocks(model, run)
    policy = MixedPrecisionPolicy(
        param_dtype=_DTYPES[precision] if precision != "float32" else None,
        reduce_dtype=_DTYPES[run.reduce],
        cast_forward_inputs=True,  # a norm wants its input in the type of its weight
    )
    for block in _blocks(model):
        fully_shard(
            block, mesh=mesh, mp_policy=policy, reshard_after_forward=run.strategy == "zero3"
        )
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for unit in _units(model):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums
        # Else a rank reduces only weights that it used itself, with whatever others send.
        unit.set_reduce_scatter_unused_params(True)


def prepare_blocks(model: nn.Module, run: ParallelRun) -> None:
    """Activation checkpointing and compilation of each block, with or without sharding."""
    for holder in list(model.modules()):
        for name, block in list(holder.named_children()):
            if not isinstance(block, EncoderBlock | DecoderBlock):
                continue
            if run.activation_checkpointing:
                setattr(holder, name, checkpoint_wrapper(block, preserve_rng_state=False))
            if run.compile:
                getattr(holder, name).compile()


def fill(model: nn.Module, weights: dict[str, Tensor] | None, device: torch.device) -> None:
    """Give memory to a sharded model on the meta device, and the weights of rank 0 to all.

    Parameters
    ----------
    weights
        Whole tensors by name on rank 0, None elsewhere.
    """
    model.to_empty(device=device)
    set_model_state_dict(
        model,
        dict(weights or {}),
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    )


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have without any wrapper."""
    return {name.replace(_WRAPPED, ""): p for name, p in module.named_parameters()}


def keep_gathered(model: nn.Module, run: ParallelRun, *, is_last: bool) -> None:
    """Before a backward pass: whether it is the last of its step, after which shards suffice."""
    for unit in _units(model):
        unit.set_is_last_backward(is_last)
        if run.strategy != "zero3":
            unit.set_reshard_after_backward(is_last)


def release(model: nn.Module) -> None:
    """Back to shards after forward passes without a backward one."""
    for unit in _units(model):
        unit.reshard()


def _blocks(model: nn.Module) -> list[nn.Module]:
    kinds = EncoderBlock | DecoderBlock
    wrapped = [m for m in model.modules() if isinstance(getattr(m, _WRAPPED[:-1], None), kinds)]
    inside = {id(getattr(m, _WRAPPED[:-1])) for m in wrapped}
    plain = [m for m in model.modules() if isinstance(m, kinds) and id(m) not in inside]
    return wrapped + plain


def _units(model: nn.Module) -> list[FSDPModule]:
    return [m for m in model.modules() if isinstance(m, FSDPModule)]
