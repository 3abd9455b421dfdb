"""Codec folders ``codecs/<name>/{config.json,model.safetensors}`` of a model: load and save.

The layout is that of AION-1 in both directions: published folders load, and what is saved here
holds the keys and tensors that the official classes ask for. Never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from skyvec_core.codecs.catalog import FILLING, CatalogCodec
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.coefficients import CoefficientsCodec, CoefficientsCodecConfig
from skyvec_core.codecs.image import ImageCodec, ImageCodecConfig
from skyvec_core.codecs.map import MapCodec, MapCodecConfig
from skyvec_core.codecs.scalar import GridScalarCodec, LogScalarCodec, ScalarCodec
from skyvec_core.codecs.spectrum import SpectrumCodec, SpectrumCodecConfig
from skyvec_core.modalities import MODALITIES, Modality

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Sizes = TypeVar("Sizes", bound=DataclassInstance)


CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_QUANTILES, _RESERVOIR = "._index_to_val", "._reservoir"
_CATALOG_RESERVOIR = 100_000
"""Length that the official catalog codec insists on; the others take it from ``config.json``."""


def build_codec(modality: Modality, config: Mapping[str, object]) -> Codec:
    """A codec of the modality's kind, without its weights.

    Parameters
    ----------
    config
        As ``config.json`` holds it. What is missing takes the value of AION-1; what only concerns
        training, such as the length of a reservoir, is not read.

    Raises
    ------
    ValueError
        If sizes contradict each other.
    """
    match modality.quantizer:
        case "image":
            return ImageCodec(_sizes(ImageCodecConfig, config))
        case "spectrum":
            return SpectrumCodec(_sizes(SpectrumCodecConfig, config))
        case "field":
            return MapCodec(_sizes(MapCodecConfig, config))
        case "multi_scalar":
            return CoefficientsCodec(_sizes(CoefficientsCodecConfig, config))
        case "catalog":
            return CatalogCodec()
    return _build_scalar(modality, config)


def codec_config(codec: Codec, modality: Modality) -> dict[str, object]:
    """What ``config.json`` holds: the arguments of the official class, as far as known here."""
    if isinstance(codec, CatalogCodec):
        return {"mask_value": FILLING}
    if isinstance(codec, CoefficientsCodec):
        size = codec.config.codebook_size
        return {"modality": modality.codec, "reservoir_size": size, **_listed(codec.config)}
    if isinstance(codec, ScalarCodec):
        size = codec.quantizer.values.numel()
        config: dict[str, object] = {"modality": modality.codec, "codebook_size": size}
        if not isinstance(codec, GridScalarCodec):
            config["reservoir_size"] = size
        if isinstance(codec, LogScalarCodec):
            config["min_log_value"] = codec.min_log_value
        return config
    if isinstance(codec, ImageCodec | SpectrumCodec | MapCodec):
        return _listed(codec.config)
    raise TypeError(f"cannot save a {type(codec).__name__}")


def load_codecs(folder: Path, token_keys: Sequence[str]) -> dict[str, Codec]:
    """Token key -> codec, for those of these modalities whose codec the folder holds.

    Modalities that share a codec folder (images of two surveys, spectra of two surveys) share one
    module.
    """
    loaded: dict[str, Codec] = {}
    codecs: dict[str, Codec] = {}
    for key in token_keys:
        modality = MODALITIES[key]
        if not (folder / "codecs" / modality.codec / CONFIG_FILE).is_file():
            continue
        if modality.codec not in loaded:
            loaded[modality.codec] = load_codec(folder, modality)
        codecs[key] = loaded[modality.codec]
    return codecs


def load_codec(folder: Path, modality: Modality) -> Codec:
    """Load ``codecs/<name>`` of a model folder, in eval mode and float32.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If ``config.json`` contradicts itself, or tensors are missing, unknown or misshapen; all of
        them are named.
    """
    place = folder / "codecs" / modality.codec
    config = json.loads((place / CONFIG_FILE).read_text())
    # Initial weights are drawn and then replaced: the caller's random numbers must not notice.
    with torch.random.fork_rng(devices=[]):
        codec = build_codec(modality, config).eval()
    tensors = {
        name.replace("quantizer.", "_quantizer.", 1) if name.startswith("quantizer.") else name: t
        for name, t in load_file(place / WEIGHTS_FILE).items()
    }
    kept = {k: v for k, v in tensors.items() if not k.endswith(_RESERVOIR)}
    kept = {k: v for k, v in kept.items() if not k.startswith("ema.")}
    refuse_differences(place / WEIGHTS_FILE, expected=codec.state_dict(), found=kept)
    codec.load_state_dict(kept)
    return codec


def save_codec(
    codec: Codec, folder: Path, modality: Modality, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``codecs/<name>``.

    Parameters
    ----------
    dtype
        Of the weights; quantile tables and other buffers keep their own precision.
    """
    place = folder / "codecs" / modality.codec
    place.mkdir(parents=True, exist_ok=True)
    config = codec_config(codec, modality)
    (place / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))
    weights = {name for name, _ in codec.named_parameters()}
    state = codec.state_dict()
    tensors = {k: v.to(dtype) if k in weights else v for k, v in state.items()}
    tensors |= _reservoirs(codec, state)
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        place / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    (place / WEIGHTS_FILE).chmod(0o644)  # safetensors writes 0600


def refuse_differences(
    path: Path, *, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise one error that names every missing, unexpected and misshapen tensor."""
    problems = [f"lacks {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"has unknown {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (
            f"; and {len(problems) - 8} more" if problems[8:] else ""
        )
        raise ValueError(f"{path}: {shown}")


def _build_scalar(modality: Modality, config: Mapping[str, object]) -> ScalarCodec:
    size = int(str(config.get("codebook_size", 1024)))
    if modality.quantizer == "log_scalar":
        low = float(str(config.get("min_log_value", -3.0)))
        return LogScalarCodec(codebook_size=size, min_log_value=low)
    if modality.quantizer == "grid_scalar":
        return GridScalarCodec(codebook_size=size)
    return ScalarCodec(codebook_size=size)


def _reservoirs(codec: Codec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reservoirs that the official classes load: a sample with exactly the table's quantiles.

    They compute tables from reservoirs only while they learn. The quantiles themselves are the
    shortest such sample; the catalog codec, which insists on a length, gets them interpolated.
    """
    tables = {k: v for k, v in state.items() if k.endswith(_QUANTILES)}
    names = {k: k.removesuffix(_QUANTILES) + _RESERVOIR for k in tables}
    if not isinstance(codec, CatalogCodec):
        return {names[k]: v.clone() for k, v in tables.items()}
    return {
        names[k]: functional.interpolate(
            v[None, None], size=_CATALOG_RESERVOIR, mode="linear", align_corners=True
        )[0, 0]
        for k, v in tables.items()
    }


def _sizes(kind: type[Sizes], config: Mapping[str, object]) -> Sizes:
    """The dataclass of a codec's sizes from the keys that it knows; lists become tuples."""
    known = {f.name for f in fields(kind)}
    return kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    )


def _listed(sizes: DataclassInstance) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(sizes).items()}
