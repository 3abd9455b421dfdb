"""Checkpoints that are whole or absent: written aside, digested, renamed; never pickle.

A run folder holds ``step-<n>/`` with one ``shard-<rank>-*.safetensors`` of each rank (the format of
`torch.distributed.checkpoint` for safetensors, so any number of ranks can load it) and
``COMMIT.json``: sizes and SHA-256 of the shards, step, time, digests of recipe and data. A folder
without it, or with other sizes, is not a checkpoint; `skyvec_training.loop.restoring` refuses a
shard of another digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from skyvec_schemas.errors import InfrastructureError
from skyvec_training.parallel.mesh import ALONE, World

COMMIT = "COMMIT.json"
_ONLY_SHARD = "shard-00001-model-00001-of-00001.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a checkpoint says of itself."""

    step: int
    """Steps that were done when it was written."""
    seconds: float
    """Time trained so far."""
    run_digest: str
    """Of the settings; see `skyvec_training.recipe.reading.digest_of_run`."""
    data_digest: str = ""
    """Of what it was trained on."""
    trunk: bool = False
    """Whether the learning rate begins to fall here; never deleted."""
    origin: str = ""
    """The checkpoint that the run started from; empty for fresh weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    folder: Path
    facts: Facts
    digests: Mapping[str, str]
    """SHA-256 of each shard."""

    @property
    def step(self) -> int:
        """Steps that were done."""
        return self.facts.step

    @property
    def seconds(self) -> float:
        """Time trained so far."""
        return self.facts.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which checkpoints stay, besides those before a decay."""

    newest: int
    every: int = 0
    """Multiples of so many steps; 0: none."""


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    facts: Facts,
    *,
    retention: Retention,
    world: World = ALONE,
) -> Path:
    """Write ``folder/step-<n>`` so that it appears at once and whole; all ranks call it together.

    Raises
    ------
    InfrastructureError
        On every rank, if any of them could not write; older checkpoints are as they were.
    """
    final = folder / f"step-{facts.step:08d}"
    aside = final.with_suffix(".tmp")
    try:
        _together(world, lambda: _fresh(aside) if world.is_first else None)
        written = _write(aside, tensors, world)
        digests = {k: v for part in written for k, v in part.items()}
        _together(world, lambda: _commit(aside, final, facts, digests) if world.is_first else None)
    except (OSError, CheckpointException) as error:
        if world.is_first:
            shutil.rmtree(aside, ignore_errors=True)
        raise InfrastructureError(
            f"the checkpoint of step {facts.step} could not be written ({_cause(error)}); "
            "older ones are intact",
            where=str(folder),
            remedy="Make room or mend the disk, and run the same command again",
        ) from error
    if world.is_first:
        _prune(folder, retention)
    return final


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first; digests are not checked here."""
    found = (_read(place) for place in sorted(folder.glob("step-*")) if place.suffix != ".tmp")
    return [checkpoint for checkpoint in found if checkpoint]


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, None if there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def digest_of_file(path: Path) -> str:
    """SHA-256 of its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(aside: Path, tensors: Mapping[str, Tensor], world: World) -> list[dict[str, str]]:
    """Shards of all ranks and their digests; each rank syncs and digests its own."""
    if world.mesh is None:
        save_file({k: v.contiguous() for k, v in tensors.items()}, aside / _ONLY_SHARD)
    else:
        writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
        save_shards(dict(tensors), storage_writer=writer, process_group=world.saving)
    return _together(world, lambda: _digests(aside, world.rank))


def _together(world: World, work: Callable[[], object]) -> list[dict[str, str]]:
    """Do something on each rank; if it fails on one it fails on all."""
    done: object = None
    try:
        done = work()
    except OSError as error:
        done = error
    said = world.gathered(done, world.saving)
    for part in said:
        if isinstance(part, OSError):
            raise part
    return [part for part in said if isinstance(part, dict)]


def _fresh(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _digests(aside: Path, rank: int) -> dict[str, str]:
    own = sorted(aside.glob(f"shard-{rank + 1:05d}-*.safetensors"))
    for path in own:
        path.chmod(0o644)  # safetensors writes 0600
        _sync(path)
    return {path.name: digest_of_file(path) for path in own}


def _commit(aside: Path, final: Path, facts: Facts, digests: Mapping[str, str]) -> None:
    shards = {
        name: {"bytes": (aside / name).stat().st_size, "sha256": digest}
        for name, digest in digests.items()
    }
    (aside / COMMIT).write_text(json.dumps({**asdict(facts), "shards": shards}, indent=1))
    _sync(aside / COMMIT)
    _sync(aside)
    shutil.rmtree(final, ignore_errors=True)  # only ever a damaged one, which is made again
    aside.rename(final)
    _sync(final.parent)


def _prune(folder: Path, retention: Retention) -> None:
    for old in checkpoints(folder)[: -retention.newest]:
        stays = retention.every and old.step % retention.every == 0
        if not (stays or old.facts.trunk):
            shutil.rmtree(old.folder, ignore_errors=True)
    for left in folder.glob("step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _read(place: Path) -> Checkpoint | None:
    try:
        commit = json.loads((place / COMMIT).read_text())
        shards = commit.pop("shards")
        if any((place / n).stat().st_size != entry["bytes"] for n, entry in shards.items()):
            return None
        digests = {name: entry["sha256"] for name, entry in shards.items()}
        return Checkpoint(folder=place, facts=Facts(**commit), digests=digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cause(error: OSError | CheckpointException) -> str:
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {first}" for rank, (first, _) in error.failures.items())
    return str(error)
