"""How a run is spread over processes: none of it changes what is learnt, so no digest holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skyvec_training.recipe.optimizer import Precision

Strategy = Literal["zero2", "zero3", "hybrid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelRun:
    """Sharding, microbatches and patience; see `skyvec_training.parallel`."""

    strategy: Strategy = "zero2"
    """``zero2`` gathers a block's weights once in a step (AION-1), ``zero3`` again for the backward
    pass, ``hybrid`` is ``zero2`` inside groups of ranks that hold copies of each other."""
    shard: int = 0
    """Ranks that share one copy of the state under ``hybrid``; 0: those of one node."""
    microbatch: int = 0
    """Objects of a rank in one forward pass; 0: its whole share of the batch."""
    reduce: Precision = "float32"
    """Of the gradients that ranks add up; bfloat16 halves the traffic on a slow network."""
    activation_checkpointing: bool = False
    """Compute the activations of each block again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile each block; worth it on GPUs only."""
    background_saves: bool = True
    """Write checkpoints of more than one process while training goes on."""
    timeout_minutes: float = 10.0
    """After so long without an answer from another process a run ends."""

    def __post_init__(self) -> None:
        if min(self.shard, self.microbatch) < 0 or self.timeout_minutes <= 0:
            raise ValueError("shard, microbatch and timeout_minutes must not be negative")
