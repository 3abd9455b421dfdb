"""Prediction in one pass: tokens of some domains in, logits of every token of others out.

Two rules say which targets see each other in the decoder. ``full`` is that of training: all targets
of one domain, and no other domain, so logits do not depend on what else is asked for. ``compat``
gives the numbers of the official ``AION.forward``, whose mask hides every target from every other
and so makes each of them take the mean over all targets of all domains that are asked for. The two
agree for a single target of one token (of an object with any input).

Every valid token is read, however many an object has. The catalog domain cannot be predicted: it
is a sequence whose decoder reads the codes before, from a table that `load_transformer` leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from skyvec_core.batches import joint
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens, TokenSet

# Shape letters: B object, b object of a pass, A all tokens given, T input token, Q target token of
# all domains, N token of one domain, D model width, V codes of one domain.

Attention = Literal["full", "compat"]

TOKENS_PER_PASS = 16_384
"""Input and target tokens of the objects that go through the transformer together."""


def predict_logits(
    transformer: EncoderDecoder,
    tokens: TokenSet,
    targets: Sequence[str],
    *,
    attention: Attention = "full",
) -> dict[str, Tensor]:
    """Logits (B, N, V) of every token of each target, float32, on the CPU.

    Parameters
    ----------
    tokens
        Inputs; tokens that are not valid are left out, object by object.
    targets
        Token keys. One may be an input as well; all its tokens are predicted all the same.
    attention
        ``full``, as in training, or ``compat``, as the official one-pass ``forward``.

    Raises
    ------
    ValueError
        If a target cannot be predicted, or the tokens do not fit the model.
    """
    hidden = predict_hidden(transformer, tokens, targets, attention=attention)
    with torch.no_grad():
        device = transformer.head_table.device
        return {
            key: transformer.logits(hidden_BND.to(device), key).float().cpu()
            for key, hidden_BND in hidden.items()
        }


@torch.no_grad()
def predict_hidden(
    transformer: EncoderDecoder,
    tokens: TokenSet,
    targets: Sequence[str],
    *,
    attention: Attention = "full",
) -> dict[str, Tensor]:
    """Hidden states (B, N, D) below the logits, which for images are smaller than these."""
    if attention not in {"full", "compat"}:
        raise ValueError(f"unknown attention {attention!r}; known are 'full' and 'compat'")
    require_targets(transformer.config, targets)
    count = require_tokens(transformer.config, tokens)
    spans = {key: transformer.vocabulary.positions[key] for key in targets}
    hidden = {
        key: torch.empty((count, span.stop - span.start, transformer.config.dim))
        for key, span in spans.items()
    }
    queries = sum(span.stop - span.start for span in spans.values())
    for rows in passes(tokens, queries=queries, limit=TOKENS_PER_PASS):
        context_bTD, valid_bT = encode(transformer, rows_of(tokens, rows))
        if attention == "compat":
            # There a fully masked object has a constant context, since its inputs are all 0.
            context_bTD = or_else(context_bTD, valid_bT, transformer.decoder_proj_context.bias)
        for group in _groups(targets, attention):
            where = [torch.arange(spans[key].start, spans[key].stop) for key in group]
            positions_bQ = torch.cat(where).to(context_bTD.device).expand(len(rows), -1)
            hidden_bQD = transformer.decode_where(
                context_bTD, valid_bT, positions_bQ, _keep(group, positions_bQ, attention)
            ).float()
            parts = torch.split(hidden_bQD, [len(places) for places in where], dim=1)
            for key, part_bND in zip(group, parts, strict=True):
                hidden[key][rows] = part_bND.cpu()
    return hidden


def encode(transformer: EncoderDecoder, tokens: TokenSet) -> tuple[Tensor, Tensor]:
    """Context vectors (B, T, D) of the valid tokens, and where they are valid (B, T).

    T is the largest number of tokens that an object has, at least 1. An object without any has the
    context 0, from which the decoder takes nothing, as in the official sampler.
    """
    codes_BT, positions_BT, valid_BT = pack(transformer, tokens)
    context_BTD = transformer.encode(codes_BT, positions_BT, valid_BT)
    return or_else(context_BTD, valid_BT, torch.zeros_like(transformer.mask_token)), valid_BT


def or_else(context_BTD: Tensor, valid_BT: Tensor, empty_D: Tensor) -> Tensor:
    """The context, with that of an object without tokens put in where none is valid."""
    return torch.where(valid_BT.any(1)[:, None, None], context_BTD, empty_D)


def pack(transformer: EncoderDecoder, tokens: TokenSet) -> tuple[Tensor, Tensor, Tensor]:
    """Joint codes, joint positions and validity (B, T), valid tokens first, on the model's device.

    The order is that of the registry, whatever the order of the mapping.
    """
    codes_BA, positions_BA, valid_BA = joint(tokens, transformer.vocabulary)
    width = max(1, int(valid_BA.sum(1).amax()))
    order_BT = (~valid_BA).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    valid_BT = valid_BA.gather(1, order_BT)
    # Padding must be a row of the tables; which one is never seen.
    codes_BT = torch.where(valid_BT, codes_BA.gather(1, order_BT), 0)
    positions_BT = torch.where(valid_BT, positions_BA.gather(1, order_BT), 0)
    device = transformer.head_table.device
    return codes_BT.to(device), positions_BT.to(device), valid_BT.to(device)


def passes(tokens: TokenSet, *, queries: int, limit: int) -> Iterator[Tensor]:
    """Places (b,) of objects to be computed together, those of similar length side by side.

    Input and target tokens of a pass are at most ``limit``, padding included, or one object's.
    """
    counts_B = torch.cat([coded.valid_BN for coded in tokens.values()], dim=1).sum(1)
    order_B = counts_B.argsort(stable=True)
    lengths = (counts_B[order_B] + queries).tolist()
    first = 0
    for last, length in enumerate(lengths):
        if (last - first + 1) * length > limit and last > first:
            yield order_B[first:last]
            first = last
    if lengths:
        yield order_B[first:]


def rows_of(tokens: TokenSet, rows: Tensor) -> dict[str, Tokens]:
    """Tokens of some of the objects."""
    return {
        key: Tokens(ids_BN=coded.ids_BN[rows], valid_BN=coded.valid_BN[rows])
        for key, coded in tokens.items()
    }


def require_targets(config: TransformerConfig, targets: Sequence[str]) -> None:
    """Refuse targets that the model cannot predict.

    Raises
    ------
    ValueError
        Names the target and what could be asked for.
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets must be a list of at least one token key, found {targets!r}")
    if len(set(targets)) < len(targets):
        raise ValueError(f"a target is named twice: {', '.join(targets)}")
    known = [key for key in config.domains_out if MODALITIES[key].kind != "catalog"]
    for key in targets:
        if key in MODALITIES and MODALITIES[key].kind == "catalog":
            raise ValueError(
                f"{key} cannot be predicted: its decoder reads the codes before from a table that "
                f"is not loaded; possible targets are {', '.join(known)}"
            )
        if key not in known:
            raise ValueError(f"the model cannot predict {key}; it predicts {', '.join(known)}")


def require_tokens(config: TransformerConfig, tokens: TokenSet) -> int:
    """Number of objects; tokens that do not fit each other or the model are refused.

    Raises
    ------
    ValueError
        Names the domain and what was expected.
    """
    if not tokens:
        raise ValueError("there are no input tokens; give a domain with no valid token for none")
    shapes = {key: tuple(coded.ids_BN.shape) for key, coded in tokens.items()}
    for key, coded in tokens.items():
        if key not in config.domains_in:
            raise ValueError(
                f"the model cannot encode {key}; it encodes {', '.join(config.domains_in)}"
            )
        if coded.valid_BN.shape != coded.ids_BN.shape:
            raise ValueError(f"{key}: ids {shapes[key]} and valid {tuple(coded.valid_BN.shape)}")
        size = MODALITIES[key].num_tokens
        whole = MODALITIES[key].kind == "catalog" or coded.ids_BN.shape[-1] == size
        if coded.ids_BN.ndim != 2 or not whole:
            raise ValueError(f"{key}: ids must be (objects, {size}), found {shapes[key]}")
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"domains hold different numbers of objects: {shapes}")
    return next(iter(shapes.values()))[0]


def _groups(targets: Sequence[str], attention: Attention) -> list[list[str]]:
    """Targets that share a pass of the decoder: all, or those of one token and each of the rest."""
    if attention == "compat":
        return [list(targets)]
    single = [key for key in targets if MODALITIES[key].num_tokens == 1]
    groups = [[key] for key in targets if MODALITIES[key].num_tokens > 1]
    return [single, *groups] if single else groups


def _keep(group: list[str], positions_bQ: Tensor, attention: Attention) -> Tensor | None:
    if attention == "compat":
        return None
    if len(group) == 1:
        return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=positions_bQ.device)
    queries = positions_bQ.shape[1]
    return torch.eye(queries, dtype=torch.bool, device=positions_bQ.device)[None, None]
