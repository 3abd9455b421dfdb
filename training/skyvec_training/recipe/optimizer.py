"""AdamW, its schedule, and how often a run looks and saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRun:
    """AdamW with warm-up and cosine decay, and how often to look and to save."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    final_share: float = 0.01
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float = 0.05
    """Of matrices and convolutions; tables, norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of the gradient."""
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    keep: int = 2
    """Checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must lie in 0..{self.steps}")
        if min(self.log_every, self.evaluate_every, self.checkpoint_every, self.keep) < 1:
            raise ValueError(
                "log_every, evaluate_every, checkpoint_every and keep must be positive"
            )
