"""Checkpoints that are whole or absent: written aside, synced, renamed; never pickle.

A run folder holds ``step-<n>/{module,optimizer}.safetensors, state.json, COMMIT.json``. COMMIT
lists the sizes of the other files; a folder without it, or with other sizes, is not a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skyvec_schemas.errors import ConfigurationError

MODULE, OPTIMIZER, STATE, COMMIT = (
    "module.safetensors",
    "optimizer.safetensors",
    "state.json",
    "COMMIT.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    folder: Path
    step: int
    """Steps that were done when it was written."""
    seconds: float
    """Time trained so far."""
    run_digest: str
    """Digest of the settings; see `skyvec_training.recipe.reading.digest_of_run`."""


def save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    seconds: float,
    run_digest: str,
    keep: int,
) -> Path:
    """Write ``folder/step-<n>`` so that it appears at once and whole; drop the oldest beyond keep."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    aside = final.with_suffix(".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, aside / MODULE)
    save_file(_optimizer_tensors(optimizer), aside / OPTIMIZER)
    state = {"step": step, "seconds": seconds, "run_digest": run_digest}
    (aside / STATE).write_text(json.dumps(state))
    sizes = {name: (aside / name).stat().st_size for name in (MODULE, OPTIMIZER, STATE)}
    (aside / COMMIT).write_text(json.dumps(sizes))
    for path in (*aside.iterdir(), aside):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old.folder)
    return final


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first."""
    found = []
    for place in sorted(folder.glob("step-*")):
        if place.suffix == ".tmp" or not _is_complete(place):
            continue
        state = json.loads((place / STATE).read_text())
        found.append(Checkpoint(folder=place, **state))
    return found


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, None if there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def restore(
    checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer, *, run_digest: str
) -> None:
    """Load weights and optimizer; a checkpoint of other settings is refused."""
    if checkpoint.run_digest != run_digest:
        raise ConfigurationError(
            "the checkpoint was made with another recipe or seed",
            where=str(checkpoint.folder),
            remedy="Use the same recipe and seed, or another --out",
        )
    module.load_state_dict(load_file(checkpoint.folder / MODULE))
    tensors = load_file(checkpoint.folder / OPTIMIZER)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value.contiguous()
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _is_complete(place: Path) -> bool:
    if not (place / COMMIT).is_file():
        return False
    sizes: dict[str, int] = json.loads((place / COMMIT).read_text())
    return all((place / n).is_file() and (place / n).stat().st_size == s for n, s in sizes.items())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
