"""What is hidden from the transformer, and what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skyvec_core.modalities import MODALITIES

Policy = Literal["aion", "capped", "dirichlet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingRun:
    """How inputs and targets are drawn; see `skyvec_training.masked.masks`."""

    policy: Policy = "aion"
    """``aion``: one modality first, the others at random. ``capped``: the same, with a random part
    of the input budget. ``dirichlet``: 4M's shares of the budgets."""
    input_budget: int = 192
    output_budget: int = 80
    least_input_share: float = 0.3
    """Inputs are at most a uniform share, between this and 1, of the tokens that may be inputs; in
    ``capped``, of those that fit into the budget. Small objects keep targets by it (AION-1: 1)."""
    scalars_first: float = 0.0
    """Share of objects whose scalars fill the inputs before image and spectrum tokens do."""
    target_skew: float = 0.5
    """a of the Beta(a, 1) share of a modality's tokens that are targets (AION-1: 0.1)."""
    scalar_target_probability: float = 1.0
    """Chance that a one-token modality that is no input is a target."""
    alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Concentrations of ``dirichlet``, one drawn for the inputs of an object and one for its
    targets: small ones give a budget to one modality, large ones share it evenly."""
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
        if min(self.input_budget, self.output_budget) < 1:
            raise ValueError("input_budget and output_budget must be positive")
        if not 0 < self.least_input_share <= 1:
            raise ValueError(f"least_input_share ({self.least_input_share}) must lie in (0, 1]")
        if self.target_skew <= 0 or not self.alphas or min(self.alphas) <= 0:
            raise ValueError("target_skew and alphas must be positive")
