"""Codec folders ``codecs/<name>/{config.json,model.safetensors}`` of a model: load and save."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from skyvec_core.codecs.image import ImageCodec, ImageCodecConfig
from skyvec_core.codecs.scalar import GridScalarCodec, LogScalarCodec, ScalarCodec
from skyvec_core.modalities import Modality

Codec = ImageCodec | ScalarCodec

_UNUSED = ("_quantizer._reservoir",)
"""Tensors of published folders that inference never reads."""


def build_codec(modality: Modality, config: Mapping[str, object]) -> Codec:
    """A codec of the modality's kind with the sizes of its ``config.json``."""
    if modality.quantizer == "image":
        known = {f.name for f in fields(ImageCodecConfig)}
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        return ImageCodec(ImageCodecConfig(**{k: v for k, v in chosen.items() if k in known}))  # type: ignore[arg-type]
    size = int(str(config.get("codebook_size", 1024)))
    if modality.quantizer == "log_scalar":
        low = float(str(config.get("min_log_value", -3.0)))
        return LogScalarCodec(codebook_size=size, min_log_value=low)
    if modality.quantizer == "grid_scalar":
        return GridScalarCodec(codebook_size=size)
    if modality.quantizer == "scalar":
        return ScalarCodec(codebook_size=size)
    raise NotImplementedError(
        f"{modality.token_key}: the {modality.quantizer} codec is not implemented yet; "
        "leave this modality out"
    )


def codec_config(codec: Codec) -> dict[str, object]:
    """What ``config.json`` of a codec holds."""
    if isinstance(codec, ImageCodec):
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(codec.config).items()}
    config: dict[str, object] = {"codebook_size": codec.quantizer.values.numel()}
    if isinstance(codec, LogScalarCodec):
        config["min_log_value"] = codec.min_log_value
    return config


def load_codec(folder: Path, modality: Modality) -> Codec:
    """Load ``codecs/<name>`` of a model folder; missing or unknown tensors are an error."""
    place = folder / "codecs" / modality.codec
    config = json.loads((place / "config.json").read_text())
    codec = build_codec(modality, config).eval()
    tensors = {
        name.replace("quantizer.", "_quantizer.", 1) if name.startswith("quantizer.") else name: t
        for name, t in load_file(place / "model.safetensors").items()
    }
    kept = {k: v for k, v in tensors.items() if k not in _UNUSED and not k.startswith("ema.")}
    expected = codec.state_dict()
    refuse_differences(place / "model.safetensors", expected=expected, found=kept)
    codec.load_state_dict(kept)
    return codec


def save_codec(
    codec: Codec, folder: Path, modality: Modality, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``codecs/<name>``; quantile tables and levels keep their own precision."""
    place = folder / "codecs" / modality.codec
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(codec_config(codec), indent=2, sort_keys=True))
    narrow = dtype if isinstance(codec, ImageCodec) else torch.float32
    tensors = {
        k: (v.to(narrow) if v.is_floating_point() else v).contiguous()
        for k, v in codec.state_dict().items()
    }
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "model.safetensors").chmod(0o644)  # safetensors writes 0600


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
