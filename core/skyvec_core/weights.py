"""Transformer weights in the published AION-1 layout, and a model's identity.

``model.safetensors`` holds one table per domain under the published names; in memory they are one
joint table (`skyvec_core.model.vocabulary`). Three kinds of tensor in a published file carry no
weight: zero norm biases, which are checked; position encodings, which are checked and taken over;
and decoder token tables, which the model never reads. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from skyvec_core.codecs.folder import refuse_differences
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

Part = Literal["all", "encoder"]
_ENCODER = ("token_table", "domain_table", "encoder", "encoder_norm", "decoder_proj_context")
"""What `EncoderDecoder.encode` needs."""


def save_transformer(
    model: EncoderDecoder,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    constants: bool = True,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` under the published names.

    Parameters
    ----------
    dtype
        Of the weights in the file; they are float32 in memory.
    constants
        Also write what the official package asks for and no forward pass reads: zero biases,
        position encodings, and decoder token tables as zeros. Without them a folder is smaller
        and still loads here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(model.config.to_json(), indent=2, sort_keys=True))
    tensors = {k: v.to(dtype).contiguous() for k, v in published_tensors(model).items()}
    if constants:
        tensors |= {name: value.to(dtype) for name, value in _constants(model)}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors writes 0600


def load_transformer(folder: Path, *, part: Part = "all") -> EncoderDecoder:
    """Load a folder strictly, in eval mode and float32.

    Parameters
    ----------
    part
        ``encoder`` reads what `EncoderDecoder.encode` needs (124 of 314 million parameters of the
        base size) and leaves the rest on the meta device; names and shapes are checked for all.

    Raises
    ------
    FileNotFoundError
        If ``config.json`` or ``model.safetensors`` is not there.
    ValueError
        If tensors are missing, unknown or misshapen; all are named.
    """
    model = _empty(folder)
    _materialize(model, part)
    expected = published_tensors(model)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as stored:
        names = _checked_names(stored, model, folder / WEIGHTS_FILE)
        with torch.no_grad():
            # The published views alias the parameters, so copying into them fills the tables.
            for name in names:
                if not expected[name].is_meta:
                    expected[name].copy_(stored.get_tensor(name))
            _take_position_encodings(model, stored)
    return model.eval()


def folder_digest(folder: Path) -> str:
    """`transformer_digest` of a folder, one tensor in memory at a time."""
    model = _empty(folder)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as stored:
        names = _checked_names(stored, model, folder / WEIGHTS_FILE)
        return _digest((name, stored.get_tensor(name).float()) for name in sorted(names))


def transformer_digest(model: EncoderDecoder) -> str:
    """SHA-256 over the published tensors in float32, however they are stored."""
    return digest_of(published_tensors(model))


def published_tensors(model: EncoderDecoder) -> dict[str, Tensor]:
    """Published name -> tensor that shares memory with the model's parameters."""
    state = dict(model.named_parameters())
    words, width = model.vocabulary, model.config.dim
    tensors = {
        name: tensor.detach()
        for name, tensor in state.items()
        if not name.startswith(("token_table", "domain_table", "head_table", "mask_token"))
    }
    tensors["mask_token"] = model.mask_token.detach().view(1, 1, width)
    for index, modality in enumerate(words.modalities):
        key = modality.token_key
        rows = words.codes[key].rows
        domain = model.domain_table.weight.detach()[index].view(1, 1, width)
        # Encoder and decoder share one modality embedding; the file keeps the decoder's.
        side = "decoder" if key in model.config.domains_out else "encoder"
        tensors[f"{side}_embeddings.{key}.mod_emb"] = domain
        if key in model.config.domains_in:
            table = model.token_table.weight.detach()[rows]
            tensors[f"encoder_embeddings.{key}.token_emb.weight"] = table
        if key in model.config.domains_out:
            head = model.head_table.detach()[rows]
            tensors[f"decoder_embeddings.{key}.to_logits.weight"] = head
    return tensors


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, whatever the order of the mapping."""
    return _digest((name, tensors[name]) for name in sorted(tensors))


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, given in named:
        tensor = given.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _empty(folder: Path) -> EncoderDecoder:
    """A model whose parameters are on the meta device, but for the exact position encodings."""
    config = TransformerConfig.from_json(json.loads((folder / CONFIG_FILE).read_text()))
    with torch.device("meta"), _Undrawn():
        return EncoderDecoder(config)


class _Undrawn(TorchFunctionMode):
    """Draws no first weights: on the meta device there are none, yet torch would load its compiler
    to draw them, which takes more than a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        named = dict(kwargs or {})
        if getattr(func, "__module__", None) == init.__name__:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def _materialize(model: EncoderDecoder, part: Part) -> None:
    """Give the parameters memory, not yet numbers."""
    # `Module.to_empty` would load a part of torch's compiler as well.
    memory = {
        name: torch.empty(parameter.shape, dtype=parameter.dtype)
        for name, parameter in model.named_parameters()
        if part == "all" or name.partition(".")[0] in _ENCODER
    }
    model.load_state_dict(memory, strict=False, assign=True)


def _checked_names(stored: safe_open, model: EncoderDecoder, path: Path) -> list[str]:
    """Names of the tensors that carry weights; all differences in one error."""
    expected = published_tensors(model)
    constants = {name: (value, kind) for name, value, kind in _known_constants(model)}
    found = {}
    for name in stored.keys():  # noqa: SIM118
        tensor = torch.empty(stored.get_slice(name).get_shape(), device="meta")
        if name in expected or name not in constants:
            found[name] = tensor
            continue
        value, checked = constants[name]
        if checked and not _is(stored.get_tensor(name), value):
            raise ValueError(f"{path}: {name} is not the fixed encoding or zero that it should be")
    refuse_differences(path, expected=expected, found=found)
    return list(expected)


def _known_constants(model: EncoderDecoder) -> Iterator[tuple[str, Tensor, bool]]:
    """Name, value, and whether the value is checked, of what a published file may hold besides."""
    for name, value in _constants(model):
        yield name, value, not name.endswith(".token_emb.weight")
    for key in model.config.domains_in:
        # Older exports write the shared modality embedding for the encoder, too.
        yield f"encoder_embeddings.{key}.mod_emb", torch.zeros(()), False


def _constants(model: EncoderDecoder) -> Iterator[tuple[str, Tensor]]:
    width = model.config.dim
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or ".norm" in name:
            yield name.removesuffix("weight") + "bias", torch.zeros(parameter.shape)
    for side, keys in (("encoder", model.config.domains_in), ("decoder", model.config.domains_out)):
        for key in keys:
            rows = model.vocabulary.positions[key].rows
            # A copy, since safetensors refuses two names for one memory.
            encoding = model.position_encoding[rows][None].clone()
            yield f"{side}_embeddings.{key}.pos_emb", encoding
            if side == "decoder":
                table = torch.zeros(MODALITIES[key].vocabulary, width)
                yield f"{side}_embeddings.{key}.token_emb.weight", table


def _is(stored: Tensor, value: Tensor) -> bool:
    # Published encodings were computed in float32, 4e-5 off; casts to half precision round more.
    tolerance = 1e-3 if stored.dtype == torch.float32 else 1e-2
    return stored.shape == value.shape and bool((stored.float() - value).abs().max() <= tolerance)


def _take_position_encodings(model: EncoderDecoder, stored: safe_open) -> None:
    """The weights were learnt on the stored encodings, except where a cast has rounded these."""
    names = set(stored.keys())
    for key, span in model.vocabulary.positions.items():
        name = f"encoder_embeddings.{key}.pos_emb"
        if name in names and (encoding := stored.get_tensor(name)).dtype == torch.float32:
            model.position_encoding[span.rows] = encoding[0]
