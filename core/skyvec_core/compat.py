"""Numbers of the official package where it differs from what we hold right; docs/aion.md lists all.

The official ``encode`` takes tokens in the order of the dictionary, drops what comes after
``num_encoder_tokens`` without a word, and returns hidden tokens as well; people then average over
all that came back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyvec_core.batches import joint_domain
from skyvec_core.model.blocks import keep_mask
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import TokenSet

# Shape letters: B object, A all tokens given, T tokens that are kept, D model width.

OFFICIAL_TOKENS = 256
"""Tokens that the official ``encode`` keeps unless told otherwise; an image alone has 576."""


def official_context(
    model: EncoderDecoder, tokens: TokenSet, *, num_encoder_tokens: int = OFFICIAL_TOKENS
) -> tuple[Tensor, Tensor]:
    """What the official ``encode`` returns (B, T, D), and which tokens are not hidden (B, T).

    Parameters
    ----------
    tokens
        In the order in which the official package would get them; a token that is not valid is
        one that its ``input_mask`` hides. Rows may hide different tokens.
    num_encoder_tokens
        Tokens to keep, those that are not hidden first.
    """
    device = model.token_table.weight.device
    parts = [joint_domain(key, coded, model.vocabulary) for key, coded in tokens.items()]
    codes_BA, positions_BA, valid_BA = (
        torch.cat(part, dim=1).to(device) for part in zip(*parts, strict=True)
    )
    order_BT = (~valid_BA).to(torch.int8).argsort(dim=1, stable=True)[:, :num_encoder_tokens]
    valid_BT = valid_BA.gather(1, order_BT)
    shown_BT1 = valid_BT[..., None]
    embedding_BTD = model.embedding(positions_BA.gather(1, order_BT)) * shown_BT1
    x_BTD = model.token_table(codes_BA.gather(1, order_BT)) * shown_BT1 + embedding_BTD
    keep = keep_mask(valid_BT, valid_BT)
    for block in model.encoder:
        x_BTD = block(x_BTD, keep)
    projected_BTD = model.decoder_proj_context(model.encoder_norm(x_BTD))
    # Without any key the official attention is uniform, which leaves just the bias behind.
    empty_B11 = ~valid_BT.any(1)[:, None, None]
    projected_BTD = torch.where(empty_B11, model.decoder_proj_context.bias, projected_BTD)
    return projected_BTD + embedding_BTD, valid_BT


def official_mean(model: EncoderDecoder, tokens: TokenSet, *, num_encoder_tokens: int) -> Tensor:
    """``encode(...).mean(1)`` (B, D), hidden tokens counted."""
    context_BTD, _ = official_context(model, tokens, num_encoder_tokens=num_encoder_tokens)
    return context_BTD.mean(1)
