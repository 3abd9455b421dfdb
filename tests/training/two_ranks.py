"""What each of two ranks does in test_sharding.py; the first prints what it found as JSON.

Not a test by itself: it is started once for each rank.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from torch import nn

from skyvec_core.model.blocks import EncoderBlock, keep_mask
from skyvec_core.model.config import TransformerConfig
from skyvec_schemas.errors import InfrastructureError
from skyvec_training.loop import checkpoint
from skyvec_training.loop.checkpoint import Facts, Retention
from skyvec_training.parallel.mesh import join
from skyvec_training.parallel.sharding import named_parameters, shard_model
from skyvec_training.recipe.parallel import ParallelRun

CONFIG = TransformerConfig(dim=8, num_heads=2, encoder_depth=1, decoder_depth=0)


class TablePerModality(nn.Module):
    """One table for each modality, as in 4M: a rank uses only those of its own objects."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(6, 8) for _ in range(3))
        self.block = EncoderBlock(CONFIG)
        self.head = nn.Linear(8, 1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3, generator=generator)

    def forward(self, modality: int) -> torch.Tensor:
        x = self.tables[modality](torch.arange(6)[None])
        valid = torch.ones(1, 6, dtype=torch.bool)
        return self.head(self.block(x, keep_mask(valid, valid))).square().sum()


def gradients(model: nn.Module, modalities: list[int]) -> dict[str, torch.Tensor]:
    for modality in modalities:
        model(modality).backward()
    return {name: p.grad for name, p in named_parameters(model).items()}


def sharded_gradients(world, run: ParallelRun, *, reduce_unused: bool):
    model = TablePerModality()
    shard_model(model, world.mesh, run)
    for unit in (model, model.block):
        unit.set_reduce_scatter_unused_params(reduce_unused)
    found = gradients(model, [2 * world.rank])  # the first rank sees 0, the second 2
    # What a rank did not reduce has no gradient there, so it is not made whole with the others.
    return {name: None if grad is None else grad.to_local() for name, grad in found.items()}


def largest_error(world, found, expected) -> float:
    rows = {name: g.chunk(world.size)[world.rank] if len(g) > world.rank else g[:0]
            for name, g in expected.items()}  # fmt: skip
    errors = [
        (torch.zeros_like(rows[name]) if found[name] is None else found[name]) - rows[name]
        for name in expected
    ]
    mine = max(float(e.abs().max()) for e in errors if e.numel())
    return max(world.gathered(mine))


def full_disk_on_the_second(world, folder: Path) -> str:
    """The second rank cannot write; both must hear of it, and the older checkpoint must stay."""
    tensors = {f"module.{world.rank}": torch.ones(1000)}
    facts = Facts(step=1, seconds=0.0, run_digest="a")
    checkpoint.save(folder, tensors, facts, retention=Retention(newest=2), world=world)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        checkpoint.save(folder, tensors, Facts(step=2, seconds=0.0, run_digest="a"),
                        retention=Retention(newest=2), world=world)  # fmt: skip
    except InfrastructureError as error:
        said = str(error)
    else:
        said = "nothing"
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    found = checkpoint.newest(folder)
    return f"{said} | newest {found.step if found else None}"


def main(folder: Path) -> None:
    whole = TablePerModality()
    expected = gradients(whole, [0, 2])
    expected = {n: torch.zeros_like(p) if expected[n] is None else expected[n]
                for n, p in named_parameters(whole).items()}  # fmt: skip
    with join(ParallelRun(timeout_minutes=1)) as world:
        found = {}
        for strategy in ("zero2", "zero3"):
            run = ParallelRun(strategy=strategy)
            for reduce_unused in (True, False):
                got = sharded_gradients(world, run, reduce_unused=reduce_unused)
                found[f"{strategy} {reduce_unused}"] = largest_error(world, got, expected)
        found["disk"] = world.gathered(full_disk_on_the_second(world, folder))
        if world.is_first:
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
