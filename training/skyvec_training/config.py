"""What one training run is, read from a recipe (TOML); unknown keys are refused."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRun:
    """AdamW with warm-up and cosine decay, and how often to look and to save."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
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
    """Checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must lie in 0..{self.steps}")
        if min(self.log_every, self.evaluate_every, self.checkpoint_every, self.keep) < 1:
            raise ValueError(
                "log_every, evaluate_every, checkpoint_every and keep must be positive"
            )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingRun:
    """How inputs and targets are drawn; see `skyvec_training.masking`."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that makes one model."""

    name: str
    image_codec: CodecRun
    scalars: ScalarRun
    transformer: TransformerRun


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; every unknown, missing or mistyped key is named in one error."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            str(error), where=str(path), remedy="Give a recipe such as recipes/skyvec_tiny.toml"
        ) from error
    problems: list[str] = []
    recipe = _build(Recipe, raw, "", problems)
    if problems:
        raise ConfigurationError(
            "; ".join(problems), where=str(path), remedy="Correct these keys of the recipe"
        )
    return cast("Recipe", recipe)


def rows_to_train(rows: int, held_out: int, *, where: str) -> int:
    """Rows that are not held out; none at all is an error."""
    if rows <= held_out:
        raise ConfigurationError(
            f"held_out ({held_out}) leaves none of {rows} objects",
            where=where,
            remedy="Lower held_out in the recipe, or train on more objects",
        )
    return rows - held_out


def digest_of_run(run: CodecRun | TransformerRun) -> str:
    """SHA-256 of a run's settings; equal digests make checkpoints interchangeable."""
    return hashlib.sha256(json.dumps(asdict(run), sort_keys=True).encode()).hexdigest()


def _build(kind: type[Any], raw: Mapping[str, Any], at: str, problems: list[str]) -> object:
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    problems += [f"unknown key {at}{key}" for key in sorted(raw.keys() - known)]
    before = len(problems)
    chosen = {
        key: _convert(hints[key], raw[key], f"{at}{key}", problems) for key in known & raw.keys()
    }
    if len(problems) > before:
        return None
    try:
        return kind(**chosen)
    except (TypeError, ValueError) as error:
        problems.append(f"{at.rstrip('.') or 'recipe'}: {error}")
        return None


def _convert(  # a type hint has no type of its own
    hint: Any,  # noqa: ANN401
    value: object,
    at: str,
    problems: list[str],
) -> object:
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, f"{at}.", problems)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(parts[0], item, at, problems) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {k: _convert(parts[1], v, f"{at}.{k}", problems) for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if (origin is Literal and value in parts) or type(value) is hint:
        return value
    problems.append(f"{at}: {value!r} is not {getattr(hint, '__name__', hint)}")
    return None
