"""Transformer weights in the published AION-1 layout, and a model's identity.

``model.safetensors`` holds one table per domain under the published names; in memory they are one
joint table (`skyvec_core.model.vocabulary`). Zero norm biases and decoder token tables of a
published file carry no information: the former are checked, the latter are never read by the model.
Position encodings are checked and taken over; we do not write them. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from skyvec_core.codecs.folder import refuse_differences
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.vocabulary import position_encoding

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_transformer(
    model: EncoderDecoder, folder: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``config.json`` and ``model.safetensors`` under the published names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(model.config.to_json(), indent=2, sort_keys=True))
    tensors = {k: v.to(dtype).contiguous() for k, v in published_tensors(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors writes 0600


def load_transformer(folder: Path) -> EncoderDecoder:
    """Load a folder strictly, in eval mode and float32."""
    config = TransformerConfig.from_json(json.loads((folder / CONFIG_FILE).read_text()))
    with torch.device("meta"):
        model = EncoderDecoder(config)
    model = model.to_empty(device="cpu").eval()
    _restore_buffers(model)
    found = load_file(folder / WEIGHTS_FILE)
    _refuse_other_constants(found, config, folder / WEIGHTS_FILE)
    expected = published_tensors(model)
    # A domain that is only encoded has its modality embedding under the encoder's name.
    informative = {k: v.float() for k, v in found.items() if k in expected or not _is_redundant(k)}
    refuse_differences(folder / WEIGHTS_FILE, expected=expected, found=informative)
    with torch.no_grad():
        # The published views alias the parameters, so copying into them fills the joint tables.
        for name, view in expected.items():
            view.copy_(informative[name])
        # Published encodings were computed in float32, 4e-5 from ours; weights learnt on them.
        for key, span in model.vocabulary.positions.items():
            stored = found.get(f"encoder_embeddings.{key}.pos_emb")
            if stored is not None:
                model.position_encoding[span.rows] = stored[0].float()
    return model


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
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_redundant(name: str) -> bool:
    return (
        name.endswith(".pos_emb")
        or (name.startswith("decoder_embeddings.") and name.endswith(".token_emb.weight"))
        or (name.endswith("norm.bias") or (".norm" in name and name.endswith(".bias")))
        or (name.startswith("encoder_embeddings.") and name.endswith(".mod_emb"))
    )


def _refuse_other_constants(
    found: Mapping[str, Tensor], config: TransformerConfig, path: Path
) -> None:
    for name, tensor, expected in _constants(found, config):
        if tensor.shape != expected.shape or (tensor.float() - expected).abs().max() > 1e-3:
            raise ValueError(f"{path}: {name} is not the fixed encoding or zero that it should be")


def _constants(
    found: Mapping[str, Tensor], config: TransformerConfig
) -> Iterator[tuple[str, Tensor, Tensor]]:
    from skyvec_core.modalities import MODALITIES

    for name, tensor in found.items():
        if name.endswith(".pos_emb"):
            yield name, tensor, position_encoding(MODALITIES[name.split(".")[1]], config.dim)[None]
        elif name.endswith(".bias") and _is_redundant(name):
            yield name, tensor, torch.zeros_like(tensor, dtype=torch.float32)


def _restore_buffers(model: EncoderDecoder) -> None:
    words = model.vocabulary
    model.position_encoding.copy_(words.position_encodings(model.config.dim))
    model.domain_of_position.copy_(words.domain_of_position())
