"""From a checkpoint back to weights: which one, whether it is what was written, and whose it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from skyvec_schemas.errors import ConfigurationError, WeightsError
from skyvec_training.loop.checkpoint import Checkpoint, checkpoints, digest_of_file
from skyvec_training.parallel.mesh import ALONE, World


def newest_sound(
    folder: Path, *, world: World = ALONE, tell: Callable[[str], None] = lambda _: None
) -> Checkpoint | None:
    """The newest checkpoint whose shards have their digests; all ranks get the same one.

    Raises
    ------
    WeightsError
        If there are checkpoints but all are damaged.
    """
    found: list[Checkpoint] = world.gathered(checkpoints(folder) if world.is_first else [])[0]
    damaged: list[str] = []
    for checkpoint in reversed(found):
        wrong = damage(checkpoint, world=world)
        if not wrong:
            return checkpoint
        damaged += wrong
        tell(f"{', '.join(wrong)}: not the bytes that were written; trying an older checkpoint")
    if damaged:
        raise WeightsError(
            f"no checkpoint is sound; {', '.join(damaged)} changed after it was written",
            where=str(folder),
            remedy="Restore a checkpoint from a copy, or delete them to start anew",
        )
    return None


def start_of(folder: Path, *, world: World = ALONE) -> Checkpoint:
    """Where another run may go on from: its last plateau, or else its newest checkpoint.

    Raises
    ------
    WeightsError
        If there is none, or it is damaged.
    """
    found: list[Checkpoint] = world.gathered(checkpoints(folder) if world.is_first else [])[0]
    if not found:
        raise WeightsError(
            "there is no complete checkpoint", where=str(folder), remedy="Name the folder of a run"
        )
    chosen = next((c for c in reversed(found) if c.facts.trunk), found[-1])
    if wrong := damage(chosen, world=world):
        raise WeightsError(
            f"{', '.join(wrong)} changed after it was written",
            where=str(folder),
            remedy="Restore it from a copy, or name another run",
        )
    return chosen


def damage(checkpoint: Checkpoint, *, world: World = ALONE) -> list[str]:
    """Shards that are not what was written; ranks share the reading."""
    mine = sorted(checkpoint.digests)[world.rank :: world.size]
    wrong = [
        str(checkpoint.folder / name)
        for name in mine
        if digest_of_file(checkpoint.folder / name) != checkpoint.digests[name]
    ]
    return [path for part in world.gathered(wrong) for path in part]


def require_same_run(checkpoint: Checkpoint, *, run_digest: str, data_digest: str) -> None:
    """Refuse a checkpoint of other settings or other data."""
    facts = checkpoint.facts
    for what, theirs, ours in (
        ("another recipe or seed", facts.run_digest, run_digest),
        ("other data", facts.data_digest, data_digest),
    ):
        if theirs != ours:
            raise ConfigurationError(
                f"the checkpoint was made with {what}",
                where=str(checkpoint.folder),
                remedy="Use the same recipe, seed and data, or another --out; --from starts a new "
                "run from these weights",
            )


def load(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], *, world: World = ALONE) -> None:
    """Fill tensors, whole or sharded, by name; the checkpoint may hold others besides.

    Raises
    ------
    WeightsError
        If a tensor is not there or has another shape; names the first of them.
    """
    reader = HuggingFaceStorageReader(str(checkpoint.folder))
    stored = {
        name: tuple(entry.size)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    wrong = [
        f"{name} is {stored.get(name, 'absent')} there and {tuple(tensor.shape)} here"
        for name, tensor in tensors.items()
        if stored.get(name) != tuple(tensor.shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise WeightsError(
            f"it is of another model: {'; '.join(wrong[:3])}{more}",
            where=str(checkpoint.folder),
            remedy="Use the sizes and domains that it was trained with",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load_shards(dict(tensors), storage_reader=reader, no_dist=world.mesh is None)
