"""Context vectors made at every step by an encoder that is tuned along with the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from skyvec_core.heads.alignment import TEXT
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_training.heads.filling import Words, nothing_to_align, token_batches

# Shape letters: B object, A position of the vocabulary, T token, W width.

NONE = -1
"""Code of a token that is not there."""


class TunedContexts:
    """Tokens in memory (1.2 kB an object), encoded with the gradient when asked.

    Parameters
    ----------
    encoder
        With the changes that are trained; its domains are those of the towers.
    tokens
        Token extension.
    towers, key_column, words
        As `skyvec_training.heads.filling.fill` takes them.
    """

    def __init__(
        self,
        encoder: EncoderDecoder,
        tokens: Path,
        towers: Mapping[str, Sequence[str]],
        *,
        key_column: str,
        words: Words | None = None,
    ) -> None:
        self.encoder = encoder
        vocabulary = encoder.vocabulary
        domains = [m.token_key for m in vocabulary.modalities]
        self.places = {
            name: torch.cat([torch.arange(s.start, s.stop) for key in domains if key in own
                             for s in [vocabulary.positions[key]]])
            for name, own in towers.items()
        }  # fmt: skip
        starts = [vocabulary.codes[key].start for key in domains]
        self.starts_A = torch.tensor(starts)[encoder.domain_of_position]
        codes, keys, sentences = [], [], []
        for ids, keys_B, coded in token_batches(vocabulary, tokens, towers, key_column):
            parts = [np.where(coded[k].valid_BN, coded[k].ids_BN, NONE) for k in domains]
            codes_BA = np.concatenate(parts, axis=1).astype(np.int16)
            there = np.all(
                [(codes_BA[:, places.numpy()] != NONE).any(1) for places in self.places.values()],
                axis=0,
            )
            own_keys = keys_B
            if words is not None:
                own_keys, vectors = words(ids)
                there &= own_keys >= 0
                sentences.append(vectors[torch.from_numpy(there)])
            codes.append(codes_BA[there])
            keys.append(own_keys[there])
        self.codes_BA = np.concatenate(codes)
        self.keys: NDArray[np.int64] = np.concatenate(keys)
        if not len(self.keys):
            raise nothing_to_align(tokens, towers)
        self.sentences_BW = torch.cat(sentences) if sentences else torch.zeros(0)

    def read(self, tower: str, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Vectors (B, T, W) and which are valid (B, T)."""
        if tower == TEXT:
            return self.sentences_BW[rows][:, None], torch.ones(len(rows), 1, dtype=torch.bool)
        codes_BA = torch.from_numpy(self.codes_BA[rows].astype(np.int64))
        places = self.places[tower]
        kept = [places[row[places] != NONE] for row in codes_BA]
        valid_BT = pad_sequence([torch.ones_like(k, dtype=torch.bool) for k in kept], True)  # noqa: FBT003
        positions_BT = pad_sequence(kept, batch_first=True)
        own_BT = codes_BA.gather(1, positions_BT) + self.starts_A[positions_BT]
        return self.encoder.encode(own_BT.where(valid_BT, 0), positions_BT, valid_BT), valid_BT
