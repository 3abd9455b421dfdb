"""Fixed-shape batches: one object's vector never depends on its neighbours.

Objects are grouped by their own number of tokens into a few lengths, and every batch of a length
has the same number of rows, filled up with empty ones. Equal shapes make equal kernels, so the
same object gives the same bits in any batch, order or partition (for one device and thread count).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.observations import TokenSet

# Shape letters: B object, A all positions of a vocabulary, T tokens of a bucket.

BUCKETS = (16, 64, 128, 256, 384, 640, 896, 1152, 1536, 2560)
"""Token counts that batches are padded to; a missing modality costs nothing."""
TOKENS_PER_BATCH = 10_240
"""Rows of a batch are this over its length, so that every bucket fills the processor alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Objects of one bucket, as rows of the joint tables of a `Vocabulary`."""

    rows: Tensor
    """(n,) places of the real objects in the caller's order; the batch may have more rows."""
    codes_BT: Tensor
    positions_BT: Tensor
    valid_BT: Tensor


def batches(
    tokens: TokenSet, vocabulary: Vocabulary, *, domains: Sequence[str] | None = None
) -> Iterator[TokenBatch]:
    """Pack the valid tokens of every object; objects without any are left out.

    Parameters
    ----------
    tokens
        All entries hold the same objects.
    vocabulary
        Of the model; a domain that it lacks is an error.
    domains
        Token keys to use; all that ``tokens`` holds by default.
    """
    codes_BA, positions_A, valid_BA = _joint(tokens, vocabulary, domains)
    counts_B = valid_BA.sum(1)
    if len(counts_B) and int(counts_B.amax()) > BUCKETS[-1]:
        raise ValueError(f"an object has {int(counts_B.amax())} tokens; the most is {BUCKETS[-1]}")
    for low, length in zip((0, *BUCKETS), BUCKETS, strict=False):
        members = ((counts_B > low) & (counts_B <= length)).nonzero()[:, 0]
        rows_per_batch = max(1, TOKENS_PER_BATCH // length)
        for rows in torch.split(members, rows_per_batch):
            if len(rows):
                yield _pack(rows, rows_per_batch, length, codes_BA, positions_A, valid_BA)


def _joint(
    tokens: TokenSet, vocabulary: Vocabulary, domains: Sequence[str] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of all domains side by side, in registry order whatever the order of the dict."""
    wanted = tokens.keys() if domains is None else tokens.keys() & set(domains)
    unknown = sorted(wanted - vocabulary.codes.keys())
    if unknown:
        raise ValueError(f"the model has no domain {', '.join(unknown)}")
    keys = [m.token_key for m in vocabulary.modalities if m.token_key in wanted]
    if not keys:
        raise ValueError("there are no tokens of the wanted domains")
    codes, positions, valid = [], [], []
    for key in keys:
        span, place = vocabulary.codes[key], vocabulary.positions[key]
        ids_BN, valid_BN = tokens[key].ids_BN.long(), tokens[key].valid_BN
        if bool(((ids_BN < 0) | (ids_BN >= span.stop - span.start))[valid_BN].any()):
            raise ValueError(f"{key}: a code lies outside 0..{span.stop - span.start - 1}")
        codes.append(torch.where(valid_BN, ids_BN, 0) + span.start)
        positions.append(torch.arange(place.start, place.start + ids_BN.shape[1]))
        valid.append(valid_BN)
    return torch.cat(codes, 1), torch.cat(positions), torch.cat(valid, 1)


def _pack(
    rows: Tensor,
    rows_per_batch: int,
    length: int,
    codes_BA: Tensor,
    positions_A: Tensor,
    valid_BA: Tensor,
) -> TokenBatch:
    width = min(length, valid_BA.shape[1])
    # A stable sort brings the valid tokens of each object to the front, in registry order.
    order_BT = (~valid_BA[rows]).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    codes = torch.zeros((rows_per_batch, length), dtype=torch.int64)
    positions = torch.zeros((rows_per_batch, length), dtype=torch.int64)
    valid = torch.zeros((rows_per_batch, length), dtype=torch.bool)
    valid[: len(rows), :width] = valid_BA[rows].gather(1, order_BT)
    codes[: len(rows), :width] = codes_BA[rows].gather(1, order_BT)
    positions[: len(rows), :width] = positions_A[order_BT]
    codes[~valid], positions[~valid] = 0, 0
    return TokenBatch(rows=rows, codes_BT=codes, positions_BT=positions, valid_BT=valid)
