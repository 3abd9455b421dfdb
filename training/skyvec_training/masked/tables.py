"""Starting values of the code tables: codes that mean nearly the same start nearly alike.

A table of independent random rows has to see every one of a scalar's 1024 codes many times before
it knows their order. Starting smooth costs nothing and changes neither architecture nor format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyvec_core.codecs.image import ImageCodecConfig
from skyvec_core.codecs.quantizers import FiniteScalarQuantizer
from skyvec_core.modalities import Modality
from skyvec_core.model.encoder_decoder import EncoderDecoder

# Shape letters: V codes of one domain, F features of a code, D model width.

WAVES = 12
INPUT_SCALE = 0.5
"""Of the input rows, comparable with the fixed position encoding that is added to them."""
HEAD_SCALE = 0.05


def initialize(model: EncoderDecoder, generator: torch.Generator) -> None:
    """Fresh weights, with smooth tables for scalars and images."""
    model.initialize(generator)
    width = model.config.dim
    with torch.no_grad():
        # Scalars share one position: only this tells the decoder which of them it is asked for.
        model.domain_table.weight.normal_(std=INPUT_SCALE, generator=generator)
        for modality in model.vocabulary.modalities:
            if modality.kind not in {"scalar", "image"}:
                continue
            features_VF = code_features(modality)
            rows = model.vocabulary.codes[modality.token_key].rows
            tables = ((model.token_table.weight, INPUT_SCALE), (model.head_table, HEAD_SCALE))
            for table, scale in tables:
                mix_FD = torch.randn(features_VF.shape[1], width, generator=generator)
                table[rows] = scale * features_VF @ mix_FD


def code_features(modality: Modality) -> Tensor:
    """(V, F) features of unit mean square norm: waves over a scalar, FSQ digits of an image code."""
    if modality.kind == "image":
        quantizer = FiniteScalarQuantizer(ImageCodecConfig().quantizer_levels)
        latent_Vd = quantizer.latents(torch.arange(modality.vocabulary))
        features = torch.cat([torch.ones(len(latent_Vd), 1), latent_Vd, latent_Vd**2 - 0.5], 1)
    else:
        place = (torch.arange(modality.vocabulary) / modality.vocabulary)[:, None]
        wave = torch.arange(WAVES)
        features = torch.cos(torch.pi * wave * place) / (1 + wave) ** 0.5
    return features / features.square().sum(1).mean().sqrt()
