"""Sizes and training of the codecs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from skyvec_training.recipe.optimizer import OptimizerRun, Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecSource:
    """One catalog that a codec learns from, and its share of the steps."""

    name: str
    """Names its data on the command line and its scores; one survey may come under two names."""
    survey: str = ""
    """Survey that says which columns it has; its name if absent."""
    weight: float = 1.0
    """Share of the steps, relative to the other sources (AION-1: Legacy Survey 20, HSC 1)."""
    bands: tuple[str, ...] = ()
    """Codec bands of its cutouts, such as DES-G; all of the survey's if absent."""
    held_out: int = 2000
    """Objects at its end that are never trained on."""

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.held_out < 0:
            raise ValueError(
                f"weight and held_out of {self.name} must not be negative, nor weight 0"
            )

    @property
    def survey_name(self) -> str:
        """Name of the survey that describes the columns."""
        return self.survey or self.name


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
    """The one source, where none are listed."""
    sources: tuple[CodecSource, ...] = ()
    batch: int = 32
    held_out: int = 2000
    """Objects at the end of the one source that are never trained on."""
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
    """Held-out objects of each source in each evaluation."""

    def __post_init__(self) -> None:
        refuse_repeated_names(self.sources)

    @property
    def all_sources(self) -> tuple[CodecSource, ...]:
        """The listed sources, or the one of ``survey``."""
        return self.sources or (CodecSource(name=self.survey, held_out=self.held_out),)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumSizes:
    """Sizes of the spectrum codec that differ from AION-1's."""

    encoder_depths: tuple[int, ...] = (1, 1, 2, 1)
    encoder_dims: tuple[int, ...] = (16, 32, 64, 128)
    decoder_depths: tuple[int, ...] = (1, 2, 1, 1)
    decoder_dims: tuple[int, ...] = (64, 32, 16, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumCodecRun:
    """Training of the spectrum codec."""

    optimizer: OptimizerRun
    sources: tuple[CodecSource, ...]
    model: SpectrumSizes = field(default_factory=SpectrumSizes)
    batch: int = 32
    precision: Precision = "float32"
    levels: Literal["quantiles", "grid"] = "quantiles"
    """Table of the level token: fitted to the spectra, or AION-1's fixed grid."""
    error_floor: float = 0.02
    """Added to the noise in quadrature, in units of the spectrum's level; AION-1: 0."""
    huber_delta: float = 4.0
    """Error, in sigma, beyond which the loss grows linearly."""
    mask_weight: float = 1.0
    """Of the cross-entropy of bad samples."""
    commitment_weight: float = 0.25
    """Of the squared distance between latents and their codes."""
    entropy_weight: float = 0.1
    """Of the entropy terms that make codes certain and all of them used."""
    crop_tokens: int = 68
    """Tokens of the stretches that the first part of the run trains on."""
    crop_share: float = 0.6
    """Share of the steps that train on stretches; the rest sees whole spectra."""
    evaluated: int = 256
    """Held-out spectra of each source in each evaluation."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: name at least one survey with spectra")
        refuse_repeated_names(self.sources)


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSizes:
    """Sizes of the map codec; the paper's are 512 and 64."""

    encoder_output_dim: int = 64
    res_hidden_dims: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class MapCodecRun:
    """Training of the codec of segmentation maps."""

    optimizer: OptimizerRun
    source: CodecSource
    model: MapSizes = field(default_factory=MapSizes)
    column: str = "object_mask"
    """Maps in [0, 1]; of whole numbers every one but 0 counts as 1."""
    batch: int = 32
    precision: Precision = "float32"
    loss: Literal["mse", "bce"] = "mse"
    average_decay: float = 0.9999
    """Of the moving average of the weights that is published; starts faster."""
    evaluated: int = 256
    """Held-out maps in each evaluation."""

    def __post_init__(self) -> None:
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay ({self.average_decay}) must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalarRun:
    """Fitting of the scalar codecs, of coefficients and of catalogs of cutouts."""

    survey: str = "legacysurvey"
    """The one source, where none are listed."""
    sources: tuple[CodecSource, ...] = ()
    held_out: int = 2000
    """Objects at the end of the one source that are not fitted."""
    without: tuple[str, ...] = ()
    """Columns that get no codec."""
    positions: str = ""
    """Source whose right ascension and declination are fitted too; none by default."""
    catalogs: bool = False
    """Whether the objects of the cutouts do, which only Legacy Survey files of the Multimodal
    Universe list."""
    redshift_grid: tuple[float, float] = (0.0, 6.0)
    """First and last edge of the 1024 redshift bins (AION-1's)."""

    def __post_init__(self) -> None:
        refuse_repeated_names(self.sources)
        if self.positions and self.positions not in [source.name for source in self.all_sources]:
            raise ValueError(f"positions: there is no source {self.positions}")

    @property
    def all_sources(self) -> tuple[CodecSource, ...]:
        """The listed sources, or the one of ``survey``."""
        return self.sources or (CodecSource(name=self.survey, held_out=self.held_out),)


def refuse_repeated_names(sources: tuple[CodecSource, ...]) -> None:
    """Raise ValueError if two sources have one name."""
    names = [source.name for source in sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"sources {', '.join(repeated)} are named twice")
