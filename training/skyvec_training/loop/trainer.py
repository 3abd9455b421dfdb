"""The loop: loss, gradient, clip, step, log, checkpoint, resume. It knows no modality."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.loop import checkpoint
from skyvec_training.loop.curves import LossLog, Record
from skyvec_training.loop.optimizer import build_optimizer, learning_rate
from skyvec_training.recipe.optimizer import OptimizerRun


class Task(Protocol):
    """What is trained: everything about a step follows from its number."""

    @property
    def module(self) -> nn.Module:
        """What has the parameters."""
        ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of this step and what else to log."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Scores on held-out objects, ``loss`` among them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How far a run came."""

    step: int
    """Steps done in all."""
    seconds: float
    """Time trained in all, resumed parts included."""
    finished: bool
    """False if the clock stopped it; the same command goes on."""


def train(
    task: Task,
    run: OptimizerRun,
    folder: Path,
    *,
    run_digest: str,
    minutes: float | None = None,
    observe: Callable[[Record], None] = lambda _: None,
) -> Outcome:
    """Train to ``run.steps`` or until the clock stops it; resumes from the newest checkpoint.

    Raises
    ------
    ConfigurationError
        If the loss or gradient is not finite; the last good checkpoint stays.
    """
    optimizer = build_optimizer(task.module, run)
    first, before = _resume(task.module, optimizer, folder, run_digest)
    log = LossLog(folder, from_step=first)
    started = time.monotonic()
    done, saved = first, first
    while done < run.steps and not _is_over(started, minutes):
        record = _step(task, optimizer, run, step=done, folder=folder)
        done += 1
        if done % run.log_every == 0 or done == run.steps:
            _tell(log, observe, {**record, "kind": "train", "step": float(done)})
        if done % run.evaluate_every == 0 or done == run.steps:
            _tell(log, observe, {**_evaluate(task), "kind": "held_out", "step": float(done)})
        if done % run.checkpoint_every == 0:
            _save(
                task, optimizer, run, folder, done, before + time.monotonic() - started, run_digest
            )
            saved = done
    seconds = before + time.monotonic() - started
    if saved != done:
        _save(task, optimizer, run, folder, done, seconds, run_digest)
    return Outcome(step=done, seconds=seconds, finished=done == run.steps)


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, run_digest: str
) -> tuple[int, float]:
    latest = checkpoint.newest(folder)
    if latest is None:
        return 0, 0.0
    checkpoint.restore(latest, module, optimizer, run_digest=run_digest)
    return latest.step, latest.seconds


def _step(
    task: Task, optimizer: torch.optim.Optimizer, run: OptimizerRun, *, step: int, folder: Path
) -> dict[str, float]:
    rate = learning_rate(step, run)
    for group in optimizer.param_groups:
        group["lr"] = rate
    task.module.train()
    optimizer.zero_grad(set_to_none=True)
    loss, extra = task.loss(step)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(nn.utils.clip_grad_norm_(task.module.parameters(), run.clip))
    value = loss.item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        latest = checkpoint.newest(folder)
        kept = latest.folder.name if latest else "no checkpoint yet"
        raise ConfigurationError(
            f"the loss is {value} and its gradient {norm} at step {step}; kept {kept}",
            where=str(folder),
            remedy="Lower the learning rate and run again with another --out",
        )
    optimizer.step()
    return {"loss": value, "gradient": norm, "learning_rate": rate, **extra}


def _evaluate(task: Task) -> dict[str, float]:
    task.module.eval()
    with torch.inference_mode():
        return task.evaluate()


def _is_over(started: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - started >= 60 * minutes


def _tell(log: LossLog, observe: Callable[[Record], None], record: Record) -> None:
    log.append(record)
    observe(record)


def _save(
    task: Task,
    optimizer: torch.optim.Optimizer,
    run: OptimizerRun,
    folder: Path,
    step: int,
    seconds: float,
    run_digest: str,
) -> None:
    checkpoint.save(
        folder, task.module, optimizer,
        step=step, seconds=seconds, run_digest=run_digest, keep=run.keep,
    )  # fmt: skip
