"""AdamW in two groups, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from skyvec_training.recipe.optimizer import OptimizerRun

_TABLES = ("token_table", "domain_table", "head_table", "mask_token", "subsample_")


def learning_rate(step: int, run: OptimizerRun) -> float:
    """Linear warm-up, then half a cosine, or a plateau and a fall, to ``final_share`` of the peak.

    The fall is 1 - sqrt (arXiv 2405.18392).
    """
    if step < run.warmup_steps:
        return run.learning_rate * (step + 1) / run.warmup_steps
    start = run.warmup_steps if run.trunk_step is None else run.trunk_step
    progress = min(1.0, max(0, step - start) / max(1, run.steps - start))
    left = 1 - progress**0.5 if run.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return run.learning_rate * (run.final_share + (1 - run.final_share) * left)


def build_optimizer(parameters: Mapping[str, Tensor], run: OptimizerRun) -> torch.optim.AdamW:
    """Fused AdamW over named parameters; tables, norms and biases do not decay.

    Its state is there from the start, so that a checkpoint can be loaded into it.
    """
    learnt = {name: p for name, p in parameters.items() if p.requires_grad}
    stays = {name for name, p in learnt.items() if p.ndim <= 1 or name.startswith(_TABLES)}
    groups = [
        {"params": [p for n, p in learnt.items() if n not in stays],
         "weight_decay": run.weight_decay},
        {"params": [p for n, p in learnt.items() if n in stays], "weight_decay": 0.0},
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=run.learning_rate, betas=run.betas, fused=True
    )
    for parameter in learnt.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def named_state(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Weights and optimizer state under the names that checkpoints have for them; live tensors."""
    named = {f"module.{name}": p.detach() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            named[f"optimizer.{name}.{key}"] = value
    return named


class FiniteGuard:
    """Freezes a run at its first gradient that is not finite, without waiting for the device.

    From that step on no update changes a weight, so the step can be looked into when `first_bad`
    is read: on logged steps and before every evaluation and checkpoint.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._bad = torch.zeros((), device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        # The fused kernel leaves everything as it is where found_inf is 1, as for a GradScaler.
        optimizer.found_inf = self._bad  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]

    def see(self, norm: Tensor, step: int) -> None:
        """Take note of the norm of a step's gradient; call it before the update."""
        newly = ~norm.isfinite() & (self._bad == 0)
        self._step.copy_(torch.where(newly, step, self._step))
        self._bad.copy_(torch.maximum(self._bad, newly.float()))

    def first_bad(self) -> int | None:
        """Step of the first gradient that was not finite; waits for the device."""
        step = int(self._step.item())
        return None if step < 0 else step
