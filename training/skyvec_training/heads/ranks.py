"""What a contrastive loss needs of the other ranks: their vectors, with the gradient."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

# Shape letters: m object of this rank, B object of all ranks, D width.


def rank_and_world() -> tuple[int, int]:
    """Of the default process group; (0, 1) without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(x_mD: Tensor) -> Tensor:
    """Rows (B, D) of all ranks, in their order, through which the gradient flows back.

    A gather without gradient leaves out what the other ranks' losses say about our rows: the
    gradient is then wrong by percents, and nothing shows it.
    """
    _, world = rank_and_world()
    return x_mD if world == 1 else torch.cat(all_gather(x_mD.contiguous()))  # type: ignore[no-untyped-call]


def gathered_keys(keys_m: Tensor) -> Tensor:
    """Keys (B,) of all ranks."""
    _, world = rank_and_world()
    if world == 1:
        return keys_m
    parts = [torch.empty_like(keys_m) for _ in range(world)]
    dist.all_gather(parts, keys_m.contiguous())
    return torch.cat(parts)


def add_over_ranks(module: nn.Module) -> None:
    """From now on the gradient of each parameter is the sum over all ranks."""
    _, world = rank_and_world()
    if world == 1:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_hook(_added)  # type: ignore[no-untyped-call]


def _added(gradient: Tensor) -> Tensor:
    total = gradient.clone()
    dist.all_reduce(total)
    return total
