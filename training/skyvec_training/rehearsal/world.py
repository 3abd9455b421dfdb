"""One step of the real training loop on a process group and tensors that are not there.

Torch's fake process group answers every message at once, and fake tensors have shapes but no
values. Everything else is what a run does: the model, its sharding, the loss, the optimizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore

from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.loop.trainer import Loop
from skyvec_training.masked.transformer import Microbatch, TransformerTask
from skyvec_training.parallel.mesh import REPLICATE, SHARD, World
from skyvec_training.parallel.sharding import named_parameters, shard_model
from skyvec_training.rehearsal.collectives import Collectives, Message
from skyvec_training.rehearsal.objects import TypicalObjects
from skyvec_training.rehearsal.plan import Plan
from skyvec_training.rehearsal.work import flop_counter

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed:
    """What was seen of one rank's step."""

    batches: list[Microbatch]
    """Its microbatches, in earnest."""
    whole: dict[str, tuple[int, ...]]
    """Shape of each parameter."""
    shards: dict[str, tuple[int, ...]]
    """Shape of the part of each parameter that this rank holds."""
    messages: Counter[Message]
    flops: float
    """Counted in the forward and backward passes, recomputation included."""
    peak: dict[str, int]
    """Bytes by class when the forward and backward passes need most; without the optimizer."""


def rehearse(plan: Plan) -> Rehearsed:
    """Take the step; seconds to minutes on one core, in less than 2 GB.

    Raises
    ------
    ConfigurationError
        If this process has a process group already.
    """
    fake, run = FakeTensorMode(allow_non_fake_inputs=True), plan.run
    with _fake_world(plan) as world:
        with torch.device("meta"):
            model = EncoderDecoder(plan.config)
        objects = TypicalObjects(model.vocabulary, run.masking)
        task = _Watched(model, objects, run, world=world)
        with fake:
            assert world.mesh is not None  # noqa: S101 - for the type checker
            shard_model(task.root, world.mesh, run.parallel, precision=run.precision)
            task.root.to_empty(device=CPU)
            loop = Loop(task, run.optimizer, Path(), world, run.parallel)
        # Shapes follow from real targets, which are sorted on the host.
        batches = [task.read(0, piece.slots) for piece in loop.pieces]
        counts_C = torch.stack([task.counts(batch) for batch in batches]).sum(0)
        sent, flops, task.memory = Collectives(), flop_counter(), FSDPMemTracker(task.root)
        with fake, sent, sdpa_kernel(SDPBackend.FLASH_ATTENTION), ExitStack() as watching:
            watching.enter_context(task.memory)
            watching.enter_context(flops)
            loop.optimizer.register_step_pre_hook(lambda *_: watching.close())
            loop.step(batches, counts_C, 0)
        parameters = named_parameters(model)
        return Rehearsed(
            batches=batches,
            whole={name: tuple(p.shape) for name, p in parameters.items()},
            shards={name: _local_shape(p) for name, p in parameters.items()},
            messages=sent.messages,
            flops=float(flops.get_total_flops()),
            peak=task.peak,
        )


class _Watched(TransformerTask):
    """A task that looks at the memory of each microbatch when its backward pass ends.

    Clipping comes next: there the tracker would take the shapes of whole gradients for memory.
    """

    memory: FSDPMemTracker
    peak: dict[str, int]

    def sums(self, batch: Microbatch) -> Tensor:
        """Summed cross-entropy of each domain."""
        self.memory.reset_mod_stats()
        sums_M = super().sums(batch)
        sums_M.register_hook(self._look_at_the_end)  # type: ignore[no-untyped-call]
        return sums_M

    def _look_at_the_end(self, _: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self._look)  # noqa: SLF001

    def _look(self) -> None:
        peak = self.memory.get_tracker_snapshot("peak")[CPU]
        self.peak = {getattr(kind, "value", str(kind)): size for kind, size in peak.items()}


@contextmanager
def _fake_world(plan: Plan) -> Iterator[World]:
    if dist.is_initialized():
        raise ConfigurationError(
            "a rehearsal needs a process of its own, and this one belongs to a run",
            where="rehearse", remedy="Start it without torchrun",
        )  # fmt: skip
    dist.init_process_group("fake", store=FakeStore(), rank=plan.rank, world_size=plan.ranks)
    try:
        sizes = {SHARD: plan.ranks}
        if plan.parallel.strategy == "hybrid":
            sizes = {REPLICATE: plan.ranks // plan.shard, SHARD: plan.shard}
        mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        yield World(rank=plan.rank, size=plan.ranks, mesh=mesh)
    finally:
        dist.destroy_process_group()


def _local_shape(parameter: Tensor) -> tuple[int, ...]:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return tuple(local.shape)
