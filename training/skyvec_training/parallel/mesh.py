"""The processes of a run: one, or those that ``torchrun`` started.

Everything that ranks must agree on is said on the host (gloo), so that no GPU waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from skyvec_schemas.errors import ConfigurationError, InfrastructureError
from skyvec_training.recipe.parallel import ParallelRun

REPLICATE, SHARD = "replicate", "shard"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """One process among those of its run; by default it is alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    mesh: DeviceMesh | None = None
    """None without ``torchrun``: then nothing is sharded."""
    saving: dist.ProcessGroup | None = None
    """For checkpoints in the background, whose messages must not meet those of training."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sum of a host tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: object, group: dist.ProcessGroup | None = None) -> list[Any]:
        """What each rank says, in order."""
        if self.size == 1:
            return [value]
        said: list[object] = [None] * self.size
        dist.all_gather_object(said, value, group=group)
        return said

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        """Wait for all ranks."""
        self.gathered(None, group)


ALONE = World()


@contextmanager
def join(run: ParallelRun) -> Iterator[World]:
    """Meet the other processes if ``torchrun`` started this one; leave them when done.

    Raises
    ------
    ConfigurationError
        If ``shard`` does not divide the number of processes.
    InfrastructureError
        If another process is gone or does not answer in time.
    """
    if "RANK" not in os.environ:
        yield ALONE
        return
    with others_answer(run):
        world = _meet(run)
        yield world
        # After a failure there is nobody to take leave of: the process just ends.
        dist.destroy_process_group()


@contextmanager
def others_answer(run: ParallelRun) -> Iterator[None]:
    """Turn the errors of a broken process group into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in words and "NCCL" not in words:
            raise
        raise InfrastructureError(
            f"another process of this run is gone, or did not answer for {run.timeout_minutes:g} "
            f"minutes ({words.splitlines()[0][:160]})",
            where=f"rank {os.environ.get('RANK', '0')}",
            remedy="See what the other ranks say; the same command goes on from the newest "
            "checkpoint",
        ) from error


def _meet(run: ParallelRun) -> World:
    timeout = timedelta(minutes=run.timeout_minutes)
    device = _device()
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # One store outlives the attempts of an elastic run; without a prefix of its own an attempt
        # reads the addresses of the dead processes before it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt_{attempt}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return World(
        rank=rank,
        size=size,
        device=device,
        mesh=_mesh(run, device, size),
        saving=dist.new_group(backend="gloo", timeout=timeout),
    )


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _mesh(run: ParallelRun, device: torch.device, size: int) -> DeviceMesh:
    if run.strategy != "hybrid":
        return init_device_mesh(device.type, (size,), mesh_dim_names=(SHARD,))
    shard = run.shard or int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if size % shard:
        raise ConfigurationError(
            f"groups of {shard} ranks do not divide {size} processes",
            where="transformer.parallel.shard",
            remedy="Choose a divisor of the number of processes",
        )
    return init_device_mesh(device.type, (size // shard, shard), mesh_dim_names=(REPLICATE, SHARD))
