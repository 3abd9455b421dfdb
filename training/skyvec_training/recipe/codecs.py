"""Sizes and training of the codecs."""

from __future__ import annotations

from dataclasses import dataclass, field

from skyvec_training.recipe.optimizer import OptimizerRun, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecSizes:
    """Sizes of the image codec that differ from AION-1's."""

    hidden_dims: int = 64
    multisurvey_projection_dims: int = 16
    num_consecutive: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecRun:
    """Training of the image codec."""

    optimizer: OptimizerRun
    model: CodecSizes = field(default_factory=CodecSizes)
    survey: str = "legacysurvey"
    batch: int = 32
    held_out: int = 2000
    """Objects at the end of the survey that are never trained on."""
    precision: Precision = "bfloat16"
    error_floor: float = 0.01
    """Added to the noise in quadrature, in arcsinh-compressed units (0.01 = a tenth in flux)."""
    huber_delta: float = 4.0
    """Error, in sigma, beyond which the loss grows linearly."""
    spread_weight: float = 0.1
    """Of the penalty that keeps the quantizer's levels in use."""
    crop: int = 48
    """Pixels on a side of the training cutouts in the first part of the run."""
    crop_share: float = 0.6
    """Share of the steps that train on crops; the rest sees whole cutouts."""
    stamp_probability: float = 0.15
    """Chance that only a central square of the cutout counts as observed."""
    evaluated: int = 256
    """Held-out objects in each evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalarRun:
    """Fitting of the scalar codecs."""

    survey: str = "legacysurvey"
    held_out: int = 2000
    redshift_grid: tuple[float, float] = (0.0, 6.0)
    """First and last edge of the 1024 redshift bins (AION-1's)."""
