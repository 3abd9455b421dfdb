"""Which objects train, which are held out, and how often each data set comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRun:
    """Held-out objects and the mixture of data sets."""

    held_out: float = 0.02
    """Share of the objects that are never trained on; the same ones under every seed, and in
    every release that has them."""
    held_out_by: Literal["id", "sky"] = "id"
    """Single objects by a hash of their id, or whole HEALPix pixels: one source in two surveys is
    then never on both sides."""
    sky_order: int = 6
    """HEALPix order of those pixels (6: 0.9 degrees on a side)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of the objects of a step that each data set gives, up to a common factor; all of them
    are named, or none: then each gives as its size. 0 leaves a data set out of training."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out ({self.held_out}) is a share from 0 to below 1")
        if not 0 <= self.sky_order <= 29:
            raise ValueError(f"sky_order ({self.sky_order}) must lie in 0..29")
        if self.weights and (min(self.weights.values()) < 0 or max(self.weights.values()) <= 0):
            raise ValueError("weights must not be negative, and one of them must be positive")
