"""AdamW, its schedule, and how often a run looks and saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "wsd"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRun:
    """AdamW with warm-up and decay, and how often to look and to save."""

    steps: int
    learning_rate: float
    schedule: Schedule = "cosine"
    """``wsd`` warms up, stays, and decays at the end; what precedes the decay can be gone on from
    with more data (`trunk_step`)."""
    warmup_steps: int = 100
    decay_share: float = 0.2
    """Share of the steps in which ``wsd`` decays."""
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
    """Newest checkpoints that stay on disk."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps stay, too; 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must lie in 0..{self.steps}")
        if min(self.log_every, self.evaluate_every, self.checkpoint_every, self.keep) < 1:
            raise ValueError(
                "log_every, evaluate_every, checkpoint_every and keep must be positive"
            )
        if not 0 <= self.decay_share <= 1 or self.keep_every < 0:
            raise ValueError("decay_share must lie in 0..1, and keep_every must not be negative")
        if self.trunk_step is not None and self.trunk_step < self.warmup_steps:
            raise ValueError(
                f"the decay begins at step {self.trunk_step}, inside the warm-up of "
                f"{self.warmup_steps}"
            )

    @property
    def trunk_step(self) -> int | None:
        """Step before which nothing has decayed; its checkpoint is kept. None for a cosine."""
        if self.schedule == "cosine":
            return None
        return self.steps - round(self.decay_share * self.steps)
