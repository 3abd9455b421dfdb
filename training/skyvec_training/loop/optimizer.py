"""AdamW in two groups, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from skyvec_training.recipe.optimizer import OptimizerRun

_TABLES = ("token_table", "domain_table", "head_table", "mask_token", "subsample_")


def learning_rate(step: int, run: OptimizerRun) -> float:
    """Linear warm-up, then half a cosine down to ``final_share`` of the peak."""
    if step < run.warmup_steps:
        return run.learning_rate * (step + 1) / run.warmup_steps
    progress = (step - run.warmup_steps) / max(1, run.steps - run.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return run.learning_rate * (run.final_share + (1 - run.final_share) * cosine)


def build_optimizer(module: nn.Module, run: OptimizerRun) -> torch.optim.AdamW:
    """Fused AdamW; tables, norms and biases do not decay."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decays = [p for name, p in named if p.ndim > 1 and not name.startswith(_TABLES)]
    stays = [p for name, p in named if p.ndim <= 1 or name.startswith(_TABLES)]
    groups = [
        {"params": decays, "weight_decay": run.weight_decay},
        {"params": stays, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=run.learning_rate, betas=run.betas, fused=True
    )
