"""Sizes of the transformer and its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skyvec_core.model.config import Pooling
from skyvec_training.recipe.data import DataRun
from skyvec_training.recipe.masking import MaskingRun
from skyvec_training.recipe.optimizer import OptimizerRun, Precision
from skyvec_training.recipe.parallel import ParallelRun


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSizes:
    """Sizes and domains of the transformer."""

    dim: int
    num_heads: int
    encoder_depth: int
    decoder_depth: int
    domains: tuple[str, ...]
    """Token keys, all of them inputs and targets."""
    pooling: Pooling = "mean"
    """How the vector is made of contexts; ``pooled_share`` trains it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerRun:
    """Training of the transformer by masked modelling."""

    optimizer: OptimizerRun
    model: TransformerSizes
    masking: MaskingRun = field(default_factory=MaskingRun)
    parallel: ParallelRun = field(default_factory=ParallelRun)
    batch: int = 64
    """Objects in a step, over all processes and microbatches."""
    data: DataRun = field(default_factory=DataRun)
    precision: Precision = "float32"
    count_power: float = 0.5
    """g of the loss weight n^-g of a modality with n targets: 0 per token, 1 per modality."""
    domain_weights: Mapping[str, float] = field(default_factory=dict)
    """Further weight of a domain; 1 where not named."""
    ordinal_smoothing: float = 0.0
    """Width in bins of the Gaussian that spreads a scalar target over its neighbours."""
    pooled_share: float = 0.0
    """Share of objects whose decoder sees nothing but the mean of the context (the vector)."""
    readout_weight: float = 0.0
    """Weight, beside the cross-entropy, of scalars that are read from the vector by linear maps."""
    evaluated: int = 1024
    """Held-out objects in each evaluation."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.domain_weights) - set(self.model.domains))
        if unknown:
            raise ValueError(f"domain_weights of {', '.join(unknown)}, which the model lacks")
