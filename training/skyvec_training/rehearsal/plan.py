"""What is rehearsed: a size of model on a number of ranks, and the run it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from skyvec_core.model.config import SIZES, TransformerConfig
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.recipe.masking import MaskingRun
from skyvec_training.recipe.optimizer import OptimizerRun, Precision
from skyvec_training.recipe.parallel import ParallelRun
from skyvec_training.recipe.transformer import TransformerRun, TransformerSizes

NAMES: Mapping[str, str] = MappingProxyType(
    {"tiny": "tiny", "b": "base", "l": "large", "xl": "xlarge", "xxl": "xxlarge"}
)
"""Size on the command line -> name in `skyvec_core.model.config.SIZES`."""
AION_MASKING = MaskingRun(
    input_budget=256, output_budget=128, target_skew=0.1, stamp_probability=0.0
)
"""Budgets and skew of AION-1 (arXiv 2510.17960), with our guard for small objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One rank of a run on paper."""

    size: str
    """One of `NAMES`."""
    ranks: int
    rank: int = 0
    """Whose memory and shards are looked at."""
    parallel: ParallelRun = field(default_factory=ParallelRun)
    batch: int = 8192
    """Objects in a step, over all ranks and microbatches (AION-1)."""
    steps: int = 205_000
    """Of AION-1, too."""
    masking: MaskingRun = AION_MASKING
    precision: Precision = "bfloat16"
    layers: int | None = None
    """Fewer layers in each stack than the size has; a test need not wait for all."""

    def __post_init__(self) -> None:
        if self.size not in NAMES:
            raise _refused(f"unknown size {self.size!r}", f"Choose from {', '.join(NAMES)}")
        if self.ranks < 1 or not 0 <= self.rank < self.ranks:
            raise _refused(
                f"rank {self.rank} does not exist among {self.ranks}",
                f"Give a rank in 0..{max(1, self.ranks) - 1}",
            )
        if self.batch < self.ranks:
            raise _refused(
                f"{self.batch} objects cannot be shared by {self.ranks} ranks",
                "Use a larger batch or fewer ranks",
            )
        if self.parallel.strategy == "hybrid" and self.ranks % self.shard:
            raise _refused(
                f"groups of {self.shard} ranks do not divide {self.ranks}",
                "Choose a --shard-degree that divides --ranks",
            )

    @property
    def config(self) -> TransformerConfig:
        """Sizes of the model."""
        full = SIZES[NAMES[self.size]]
        if self.layers is None:
            return full
        return replace(full, encoder_depth=self.layers, decoder_depth=self.layers)

    @property
    def shard(self) -> int:
        """Ranks that share one copy of the state."""
        return (self.parallel.shard or 8) if self.parallel.strategy == "hybrid" else self.ranks

    @property
    def run(self) -> TransformerRun:
        """The same as a recipe would have it."""
        config = self.config
        return TransformerRun(
            optimizer=OptimizerRun(steps=self.steps, learning_rate=2e-4),
            model=TransformerSizes(
                dim=config.dim,
                num_heads=config.num_heads,
                encoder_depth=config.encoder_depth,
                decoder_depth=config.decoder_depth,
                domains=config.domains,
            ),
            masking=self.masking,
            parallel=self.parallel,
            batch=self.batch,
            precision=self.precision,
        )


def _refused(what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(what, where="rehearse", remedy=remedy)
