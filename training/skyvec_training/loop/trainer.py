"""The loop: loss, gradient, clip, step, log, checkpoint, resume. It knows no modality."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.loop import checkpoint, restoring
from skyvec_training.loop.checkpoint import Facts, Retention
from skyvec_training.loop.culprit import culprits
from skyvec_training.loop.curves import LossLog, Record
from skyvec_training.loop.optimizer import (
    FiniteGuard,
    build_optimizer,
    learning_rate,
    named_state,
)
from skyvec_training.loop.saver import Saver
from skyvec_training.loop.shares import pieces_of
from skyvec_training.loop.task import SplitTask, Task, as_split
from skyvec_training.parallel.mesh import ALONE, World
from skyvec_training.parallel.sharding import keep_gathered, named_parameters
from skyvec_training.parallel.signals import StopRequests
from skyvec_training.recipe.optimizer import OptimizerRun
from skyvec_training.recipe.parallel import ParallelRun

__all__ = ["Loop", "Origin", "Outcome", "SplitTask", "Task", "train"]

Reason = Literal["finished", "clock", "asked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How far a run came."""

    step: int
    """Steps done in all."""
    seconds: float
    """Time trained in all, resumed parts included."""
    reason: Reason
    """``clock`` and ``asked``: the same command goes on."""

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.reason == "finished"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Another run, whose last plateau (or else newest) weights a new run starts from."""

    folder: Path
    with_optimizer: bool = False
    """Also take over the averages of its gradients."""


def train(
    task: Task | SplitTask,
    run: OptimizerRun,
    folder: Path,
    *,
    run_digest: str,
    data_digest: str = "",
    minutes: float | None = None,
    observe: Callable[[Record], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    world: World = ALONE,
    parallel: ParallelRun | None = None,
    requests: StopRequests | None = None,
    origin: Origin | None = None,
) -> Outcome:
    """Train to ``run.steps`` or until it is stopped; resumes from the newest sound checkpoint.

    Parameters
    ----------
    run_digest, data_digest
        A checkpoint of others is refused.
    minutes
        Stop by the clock.
    observe, tell
        Hear every record of the log, and what a person should know; on the first rank only.
    world, parallel
        The processes that share each step, and how. A `Task` that is not split has one.
    requests
        Somebody who may ask the run to stop.
    origin
        Where the weights of a new run come from, if they are not fresh.

    Raises
    ------
    ConfigurationError
        If the loss or gradient is not finite; the last good checkpoint stays.
    InfrastructureError
        If a checkpoint cannot be written; older ones stay.
    WeightsError
        If no checkpoint is sound, or the origin is of another shape.
    """
    split = as_split(task)
    parallel = parallel or ParallelRun()
    if world.size > 1 and not isinstance(task, SplitTask):
        raise ConfigurationError(
            "this part of a model is trained by one process",
            where=str(folder), remedy="Run it without torchrun",
        )  # fmt: skip
    loop = Loop(split, run, folder, world, parallel)
    facts = loop.restore(
        Facts(step=0, seconds=0.0, run_digest=run_digest, data_digest=data_digest),
        origin, tell if world.is_first else lambda _: None,
    )  # fmt: skip
    with loop.saver:
        return loop.go_on(facts, minutes, requests, observe if world.is_first else None)


class Loop:
    """State of one call of `train`; a rehearsal takes single steps of it."""

    def __init__(
        self, task: SplitTask, run: OptimizerRun, folder: Path, world: World, parallel: ParallelRun
    ) -> None:
        self.task, self.run, self.folder = task, run, folder
        self.world, self.parallel = world, parallel
        self.pieces = pieces_of(task.slots, world, microbatch=parallel.microbatch)
        self.parameters = named_parameters(task.module)
        self.optimizer = build_optimizer(self.parameters, run)
        self.guard = FiniteGuard(self.optimizer, world.device)
        self.saver = Saver(
            folder, named_state(self.parameters, self.optimizer),
            retention=Retention(newest=run.keep, every=run.keep_every), world=world,
            in_background=world.size > 1 and parallel.background_saves,
        )  # fmt: skip

    def restore(self, fresh: Facts, origin: Origin | None, tell: Callable[[str], None]) -> Facts:
        """Weights of the newest checkpoint, of the origin, or as they are."""
        latest = restoring.newest_sound(self.folder, world=self.world, tell=tell)
        if latest is not None:
            restoring.require_same_run(
                latest, run_digest=fresh.run_digest, data_digest=fresh.data_digest
            )
            restoring.load(latest, self.saver.tensors, world=self.world)
            return latest.facts
        if origin is None:
            return fresh
        start = restoring.start_of(origin.folder, world=self.world)
        wanted = {
            name: tensor
            for name, tensor in self.saver.tensors.items()
            if origin.with_optimizer or name.startswith("module.")
        }
        restoring.load(start, wanted, world=self.world)
        tell(f"starts from {start.folder}")
        return replace(fresh, origin=f"{start.facts.run_digest} step {start.step}")

    def go_on(
        self,
        facts: Facts,
        minutes: float | None,
        requests: StopRequests | None,
        observe: Callable[[Record], None] | None,
    ) -> Outcome:
        """Step after step, from those that are done."""
        run, done, started = self.run, facts.step, time.monotonic()
        log = LossLog(self.folder, from_step=done) if observe else None
        self.saver.last = done

        def now() -> Facts:
            spent = facts.seconds + time.monotonic() - started
            return replace(facts, step=done, seconds=spent, trunk=done == run.trunk_step)

        def tell(kind: str, record: Record) -> None:
            if log is not None and observe is not None:
                full = {**record, "kind": kind, "step": float(done)}
                log.append(full)
                observe(full)

        reason: Reason = "finished"
        while done < run.steps:
            batches = [self.task.read(done, piece.slots) for piece in self.pieces]
            is_over = minutes is not None and time.monotonic() - started >= 60 * minutes
            look = self.world.is_first and done % run.log_every == 0
            asked = requests is not None and requests.asked(look_for_file=look)
            counts_C, stop = self._agree(batches, is_over=is_over, asked=asked)
            if stop is not None:
                reason = stop
                break
            sums_K, norm = self.step(batches, counts_C, done)
            done += 1
            last = done == run.steps
            log_now, look_now = (last or done % n == 0 for n in (run.log_every, run.evaluate_every))
            save_now = last or done % run.checkpoint_every == 0 or done == run.trunk_step
            if log_now or look_now or save_now:
                self._refuse_infinite()
            if log_now:
                tell("train", self._record(sums_K, counts_C, norm, done - 1))
            if look_now:
                tell("held_out", self._evaluate())
            if save_now:
                self.saver.save(now())
        if self.saver.last != done:
            self._refuse_infinite()
            self.saver.save(now())
        self.saver.wait()
        if reason == "asked" and requests is not None and self.world.is_first:
            requests.obey()
        return Outcome(step=done, seconds=now().seconds, reason=reason)

    def _agree(
        self, batches: Sequence[Any], *, is_over: bool, asked: bool
    ) -> tuple[Tensor, Reason | None]:
        """Counts of the whole batch, and whether any rank wants to stop: one message."""
        counted = [
            self.task.counts(batch) * piece.counts
            for piece, batch in zip(self.pieces, batches, strict=True)
        ]
        flags = torch.tensor([int(is_over), int(asked)])
        said = self.world.total(torch.cat([flags, torch.stack(counted).sum(0)]))
        over, stop = said[:2].tolist()
        return said[2:], "asked" if stop else "clock" if over else None

    def step(self, batches: Sequence[Any], counts_C: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One update; this rank's sums, and the norm of the whole gradient, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.run)
        self.task.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        coefficients_K = self.task.coefficients(counts_C)
        weights_K = coefficients_K.to(self.world.device, non_blocking=True)
        totals_K = torch.zeros_like(weights_K)
        for index, (piece, batch) in enumerate(zip(self.pieces, batches, strict=True)):
            keep_gathered(self.task.root, self.parallel, is_last=index == len(batches) - 1)
            sums_K = self.task.sums(batch)
            part = (weights_K * sums_K).sum() * float(piece.counts)
            part.backward()  # type: ignore[no-untyped-call]
            totals_K += sums_K.detach() * piece.counts
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.run.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.guard.see(norm, step)
        self.optimizer.step()
        return totals_K, norm

    def _record(
        self, sums_K: Tensor, counts_C: Tensor, norm: Tensor, step: int
    ) -> dict[str, float]:
        sums_K = self.world.total(sums_K.double().cpu())
        return {
            "loss": float((self.task.coefficients(counts_C) * sums_K).sum()),
            "gradient": float(norm),
            "learning_rate": learning_rate(step, self.run),
            **self.task.describe(sums_K, counts_C),
        }

    def _evaluate(self) -> dict[str, float]:
        self.task.module.eval()
        with torch.no_grad():
            return self.task.evaluate()

    def _refuse_infinite(self) -> None:
        bad = self.guard.first_bad()
        if bad is None:
            return
        slots = culprits(self.task, bad, self.pieces, self.world) if self.task.slots > 1 else []
        named = f"slots {', '.join(map(str, slots))} of " if slots else ""
        self.saver.wait()
        latest = checkpoint.newest(self.folder)
        kept = latest.folder.name if latest else "no checkpoint yet"
        raise ConfigurationError(
            f"the loss or its gradient is not finite in {named}step {bad}; kept {kept}",
            where=str(self.folder),
            remedy="Lower the learning rate and run again with another --out",
        )
