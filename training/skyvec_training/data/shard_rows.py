"""How the tokens of an object lie in a shard: one after the other, by domain; there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skyvec_core.modalities import MODALITIES
from skyvec_schemas.token_columns import INVALID

if TYPE_CHECKING:  # it takes torch, which compiling tokens does without
    from skyvec_core.model.vocabulary import Vocabulary

# Shape letters: B object, N token of one domain, D domain of the registry, A all positions of a
# vocabulary, n token of any object.

LEAST_TOKENS = 2
"""An object with fewer has nothing to hide, so it cannot be trained on."""
BITS = {key: bit for bit, key in enumerate(MODALITIES)}
_SIZES_D = np.array([m.num_tokens for m in MODALITIES.values()])
_SEQUENCE = next(bit for bit, m in enumerate(MODALITIES.values()) if m.kind == "catalog")
"""The one domain whose length differs between objects; theirs follows from the row's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows:
    """Objects with enough tokens, as they are stored."""

    codes_n: NDArray[np.int16]
    lengths_B: NDArray[np.int64]
    """Stored codes of each kept object."""
    presence_B: NDArray[np.uint64]
    """Bit i: the object has the i-th domain."""
    lone_B: NDArray[np.uint64]
    """Bit i: it has one token of it."""
    kept_B: NDArray[np.bool_]
    """Which of the objects that came have enough tokens; the other fields have only those."""


def pack(codes: Sequence[NDArray[np.int16]], keys: Sequence[str]) -> PackedRows:
    """Store objects.

    Parameters
    ----------
    codes
        Codes (B, N) of each key, -1 where nothing was observed.
    keys
        Token keys in registry order.
    """
    counts_BD = np.stack([(c >= 0).sum(1) for c in codes], axis=1)
    stored = [_stored(c, key) for c, key in zip(codes, keys, strict=True)]
    kept_B = counts_BD.sum(1) >= LEAST_TOKENS
    stored_BA = np.concatenate(stored, axis=1)[kept_B]
    bits_D = np.uint64(1) << np.array([BITS[key] for key in keys], np.uint64)
    return PackedRows(
        codes_n=np.concatenate(codes, axis=1)[kept_B][stored_BA],
        lengths_B=stored_BA.sum(1),
        presence_B=((counts_BD > 0) * bits_D).sum(1, dtype=np.uint64)[kept_B],
        lone_B=((counts_BD == 1) * bits_D).sum(1, dtype=np.uint64)[kept_B],
        kept_B=kept_B,
    )


def unpack(
    codes_n: NDArray[np.int16],
    lengths_B: NDArray[np.int64],
    presence_B: NDArray[np.uint64],
    vocabulary: Vocabulary,
) -> NDArray[np.int16]:
    """Codes (B, A) of the domains of a vocabulary from what `pack` stored; -1 where absent."""
    has_BD = (presence_B[:, None] >> np.arange(len(_SIZES_D), dtype=np.uint64)) & np.uint64(1) > 0
    sizes_BD = np.where(has_BD, _SIZES_D, 0)
    sequence_B = has_BD[:, _SEQUENCE]
    others_B = sizes_BD.sum(1) - sizes_BD[:, _SEQUENCE]
    sizes_BD[:, _SEQUENCE] = np.where(sequence_B, lengths_B - others_B, 0)
    begins_BD = (np.cumsum(lengths_B) - lengths_B)[:, None] + np.cumsum(sizes_BD, 1) - sizes_BD
    codes_BA = np.full((len(lengths_B), vocabulary.num_positions), INVALID, np.int16)
    single = [m.token_key for m in vocabulary.modalities if m.num_tokens == 1]
    if single:
        bits = [BITS[key] for key in single]
        columns = [vocabulary.positions[key].start for key in single]
        found = np.where(has_BD[:, bits], begins_BD[:, bits], 0)
        codes_BA[:, columns] = np.where(has_BD[:, bits], codes_n[found], INVALID)
    for modality in vocabulary.modalities:
        bit, span = BITS[modality.token_key], vocabulary.positions[modality.token_key]
        rows = np.flatnonzero(has_BD[:, bit])
        if modality.num_tokens == 1 or not len(rows):
            continue
        place_N = np.arange(modality.num_tokens)
        there_BN = place_N < sizes_BD[rows, bit][:, None]
        places_BN = np.where(there_BN, begins_BD[rows, bit][:, None] + place_N, 0)
        codes_BA[rows, span.rows] = np.where(there_BN, codes_n[places_BN], INVALID)
    return codes_BA


def _stored(codes_BN: NDArray[np.int16], key: str) -> NDArray[np.bool_]:
    """Which codes are stored: a grid whole or not at all, a sequence up to its last token."""
    valid_BN = codes_BN >= 0
    if BITS[key] != _SEQUENCE:
        return np.broadcast_to(valid_BN.any(axis=1, keepdims=True), valid_BN.shape)
    return np.flip(np.logical_or.accumulate(np.flip(valid_BN, 1), axis=1), 1)
