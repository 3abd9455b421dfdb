"""Sizes of the transformer, what is hidden from it, and its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skyvec_core.modalities import MODALITIES
from skyvec_training.recipe.optimizer import OptimizerRun, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingRun:
    """How inputs and targets are drawn; see `skyvec_training.masked.masking`."""

    input_budget: int = 192
    output_budget: int = 80
    least_input_share: float = 0.3
    """Inputs are at most a uniform share, between this and 1, of the tokens that may be inputs."""
    scalars_first: float = 0.0
    """Share of objects whose scalars fill the inputs before image and spectrum tokens do."""
    target_skew: float = 0.5
    """a of the Beta(a, 1) share of a modality's tokens that are targets (AION-1: 0.1)."""
    scalar_target_probability: float = 1.0
    """Chance that a one-token modality that is no input is a target."""
    stamp_probability: float = 0.25
    """Chance that only a central square of the image tokens is there."""
    drop: Mapping[str, float] = field(default_factory=dict)
    """Chance that a group of domains is no input; group name -> chance (see ``groups``)."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group name -> token keys that are dropped together."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.drop) - set(self.groups))
        unknown += sorted({key for keys in self.groups.values() for key in keys} - set(MODALITIES))
        if unknown:
            raise ValueError(f"unknown groups or token keys {', '.join(unknown)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSizes:
    """Sizes and domains of the transformer."""

    dim: int
    num_heads: int
    encoder_depth: int
    decoder_depth: int
    domains: tuple[str, ...]
    """Token keys, all of them inputs and targets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerRun:
    """Training of the transformer by masked modelling."""

    optimizer: OptimizerRun
    model: TransformerSizes
    masking: MaskingRun = field(default_factory=MaskingRun)
    batch: int = 64
    held_out: int = 2000
    precision: Precision = "float32"
    count_power: float = 0.5
    """g of the loss weight n^-g of a modality with n targets: 0 per token, 1 per modality."""
    domain_weights: Mapping[str, float] = field(default_factory=dict)
    """Further weight of a domain; 1 where not named."""
    ordinal_smoothing: float = 0.0
    """Width in bins of the Gaussian that spreads a scalar target over its neighbours."""
    pooled_share: float = 0.0
    """Share of objects whose decoder sees nothing but the mean of the context (the vector)."""
    evaluated: int = 1024
    """Held-out objects in each evaluation."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.domain_weights) - set(self.model.domains))
        if unknown:
            raise ValueError(f"domain_weights of {', '.join(unknown)}, which the model lacks")
