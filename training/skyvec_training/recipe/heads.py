"""Heads on a trained model: alignment, captions, attentive pools, low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skyvec_core.modalities import MODALITIES
from skyvec_training.recipe.data import DataRun
from skyvec_training.recipe.masking import MaskingRun
from skyvec_training.recipe.optimizer import OptimizerRun, Precision

Loss = Literal["sigmoid", "softmax"]
Measure = Literal["value", "colour", "length"]
Part = Literal["encoder", "decoder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhraseRun:
    """Words for one property of an object, chosen by where its value lies."""

    columns: tuple[str, ...]
    measure: Measure = "value"
    """``value`` of one column; ``colour`` of two fluxes, in magnitudes, first minus second;
    ``length`` of the vector whose components the columns are."""
    edges: tuple[float, ...] = ()
    """Ascending; a value on an edge belongs above it."""
    words: tuple[str, ...] = ()
    """One more than edges; empty words say nothing."""

    def __post_init__(self) -> None:
        if len(self.words) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(
                f"{len(self.words)} words between {len(self.edges)} edges: give one word more than "
                "edges, and these ascending"
            )
        if len(self.columns) != {"value": 1, "colour": 2}.get(self.measure, len(self.columns)):
            raise ValueError(f"{len(self.columns)} columns for {self.measure}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRun:
    """Where the words come from: a column of the catalog, or phrases put into templates."""

    column: str = ""
    templates: tuple[str, ...] = ()
    """Such as ``a {colour} {size} galaxy``; each object takes one, by its id."""
    phrases: Mapping[str, PhraseRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.column and self.templates:
            raise ValueError("captions have a column or templates, not both")
        for template in self.templates:
            try:
                template.format_map(dict.fromkeys(self.phrases, ""))
            except (KeyError, ValueError, IndexError) as problem:
                raise ValueError(f"template {template!r} has no phrase {problem}") from problem

    def __bool__(self) -> bool:
        return bool(self.column or self.templates)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentRun:
    """Contrastive alignment of the towers of one model, or of a tower with words."""

    optimizer: OptimizerRun
    towers: Mapping[str, tuple[str, ...]]
    """Name -> token keys that the encoder is given for it. Two, or one beside captions."""
    captions: CaptionRun = field(default_factory=CaptionRun)
    dim: int = 512
    hidden: int = 1024
    loss: Loss = "sigmoid"
    batch: int = 1024
    """Objects of all ranks together."""
    chunk: int = 256
    """Objects that pass a tower (and a tuned encoder) at once; how large does not move the loss."""
    pooled: bool = False
    """Align the mean over tokens instead of an attentive pool over all of them."""
    encoder_share: float = 0.0
    """Learning rate of the encoder over that of the head; 0 keeps the encoder frozen."""
    key_column: str = ""
    """Rows with equal values are one object, seen twice: a match and never a contrast. Ids by
    default."""
    held_out: int = 1000
    evaluated: int = 1000

    def __post_init__(self) -> None:
        unknown = sorted({key for keys in self.towers.values() for key in keys} - set(MODALITIES))
        if unknown:
            raise ValueError(f"unknown token keys {', '.join(unknown)}")
        if "text" in self.towers or len(self.towers) + bool(self.captions) != 2:
            raise ValueError("give two towers, or one tower and captions")
        if not 0 <= self.encoder_share <= 1:
            raise ValueError(f"encoder_share ({self.encoder_share}) must lie in 0..1")
        if self.pooled and self.encoder_share:
            raise ValueError("a tuned encoder is pooled by attention: pooled and encoder_share")
        if min(self.batch, self.chunk, self.dim, self.hidden) < 1:
            raise ValueError("batch, chunk, dim and hidden must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRun:
    """An attentive pool fitted to columns of a catalog."""

    targets: tuple[str, ...]
    domains: tuple[str, ...]
    num_queries: int = 1
    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    held_out: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankRun:
    """Masked modelling of a new survey through low-rank changes of a trained model."""

    optimizer: OptimizerRun
    domains: tuple[str, ...]
    """Token keys of the survey; those that the model lacks get rows of their own."""
    rank: int = 8
    alpha: float = 16.0
    """Changes are scaled by alpha / rank, so that the rank can be changed alone."""
    parts: tuple[Part, ...] = ("encoder",)
    row_steps: int = 200
    """Steps that train nothing but the rows of new domains, before all else."""
    row_noise: float = 0.1
    """Noise of new rows about the mean of their kind, over the spread of their kind."""
    masking: MaskingRun = field(default_factory=MaskingRun)
    data: DataRun = field(default_factory=DataRun)
    batch: int = 64
    evaluated: int = 1000
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.domains) - set(MODALITIES))
        if unknown or not self.domains:
            raise ValueError(f"unknown token keys {', '.join(unknown) or '(none given)'}")
        if self.rank < 1 or self.row_steps < 0:
            raise ValueError("rank must be positive and row_steps not negative")
