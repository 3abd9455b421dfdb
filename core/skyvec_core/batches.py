"""Batches whose shapes follow from each object alone: a vector never depends on its neighbours.

Two ways, both of which give an object the same bits in any company, order or partition (for one
device and thread count). On a processor, an object with more than a few tokens is a batch of its
own, without padding. Short objects, and all objects on a GPU, share batches of a few fixed lengths
that always have the same number of rows, filled up with empty ones: equal shapes, equal kernels.
A missing modality costs nothing either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.observations import Tokens, TokenSet, moved

# Shape letters: B object, A all positions of a vocabulary, T tokens of a bucket.


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Shapes of batches on one kind of device."""

    buckets: tuple[int, ...]
    """Lengths that shared batches are padded to, ascending."""
    tokens_per_batch: int
    """Rows of a shared batch are this over its length, so that every length fills a device alike."""
    alone: bool
    """Whether an object longer than all buckets is a batch of its own, or an error."""

    @property
    def longest(self) -> int:
        """Most tokens of an object in a shared batch."""
        return self.buckets[-1]


PROCESSOR = Layout(buckets=(4, 8, 16, 32, 64), tokens_per_batch=256, alone=True)
"""From some 100 rows on a processor's matrix products are as fast as they get."""
GPU = Layout(
    buckets=(16, 64, 128, 256, 384, 640, 896, 1152, 1536, 2560),
    tokens_per_batch=10_240,
    alone=False,
)
"""Few shapes, and much work in each, for compilation and CUDA graphs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Objects of one length, as rows of the joint tables of a `Vocabulary`."""

    rows: Tensor
    """(n,) places of the real objects in the caller's order; the batch may have more rows."""
    codes_BT: Tensor
    positions_BT: Tensor
    valid_BT: Tensor
    full: bool
    """Whether every token is valid."""


def batches(
    tokens: TokenSet,
    vocabulary: Vocabulary,
    *,
    layout: Layout = PROCESSOR,
    domains: Sequence[str] | None = None,
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
    codes_BA, positions_BA, valid_BA = joint(tokens, vocabulary, domains)
    counts_B = valid_BA.sum(1)
    long = (counts_B > layout.longest).nonzero()[:, 0]
    if len(long) and not layout.alone:
        raise ValueError(
            f"an object has {int(counts_B.amax())} tokens; the most is {layout.longest}"
        )
    for row in long:
        kept = valid_BA[row]
        yield TokenBatch(
            rows=row[None],
            codes_BT=codes_BA[row, kept][None],
            positions_BT=positions_BA[row, kept][None],
            valid_BT=kept[kept][None],
            full=True,
        )
    for low, length in pairwise((0, *layout.buckets)):
        members = ((counts_B > low) & (counts_B <= length)).nonzero()[:, 0]
        rows_per_batch = max(1, layout.tokens_per_batch // length)
        for rows in torch.split(members, rows_per_batch):
            if len(rows):
                yield _pack(rows, rows_per_batch, length, codes_BA, positions_BA, valid_BA)


def on_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch with its tensors on a device; to a GPU copied from pinned memory without waiting."""
    return replace(
        batch,
        codes_BT=moved(batch.codes_BT, device),
        positions_BT=moved(batch.positions_BT, device),
        valid_BT=moved(batch.valid_BT, device),
    )


def joint(
    tokens: TokenSet, vocabulary: Vocabulary, domains: Sequence[str] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, positions and validity (B, A) of all domains side by side, in registry order.

    Raises
    ------
    ValueError
        If the model lacks a domain, or a valid code lies outside its vocabulary.
    """
    wanted = tokens.keys() if domains is None else tokens.keys() & set(domains)
    unknown = sorted(wanted - vocabulary.codes.keys())
    if unknown:
        raise ValueError(f"the model has no domain {', '.join(unknown)}")
    keys = [m.token_key for m in vocabulary.modalities if m.token_key in wanted]
    if not keys:
        raise ValueError("there are no tokens of the wanted domains")
    parts = [joint_domain(key, tokens[key], vocabulary) for key in keys]
    codes, positions, valid = zip(*parts, strict=True)
    return torch.cat(codes, 1), torch.cat(positions, 1), torch.cat(valid, 1)


def joint_domain(key: str, coded: Tokens, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """Joint codes, joint positions and validity (B, N) of one domain."""
    span, place = vocabulary.codes[key], vocabulary.positions[key]
    ids_BN, valid_BN = coded.ids_BN.long(), coded.valid_BN
    if ids_BN.shape[1] > place.stop - place.start:
        raise ValueError(
            f"{key}: {ids_BN.shape[1]} tokens an object, the most is {place.stop - place.start}"
        )
    if bool(((ids_BN < 0) | (ids_BN >= span.stop - span.start))[valid_BN].any()):
        raise ValueError(f"{key}: a code lies outside 0..{span.stop - span.start - 1}")
    if vocabulary.is_sequence(key):
        # A sequence counts the tokens that are there, so a gap moves what follows it.
        at_BN = (valid_BN.long().cumsum(1) - 1).clamp(min=0)
    else:
        at_BN = torch.arange(ids_BN.shape[1], device=ids_BN.device).expand(len(ids_BN), -1)
    return torch.where(valid_BN, ids_BN, 0) + span.start, at_BN + place.start, valid_BN


def _pack(
    rows: Tensor,
    rows_per_batch: int,
    length: int,
    codes_BA: Tensor,
    positions_BA: Tensor,
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
    positions[: len(rows), :width] = positions_BA[rows].gather(1, order_BT)
    codes[~valid], positions[~valid] = 0, 0
    return TokenBatch(rows=rows, codes_BT=codes, positions_BT=positions, valid_BT=valid, full=False)
