"""Token extensions: HATS leaves with object_id and one column for each token key.

Training and the survey stage meet only here, in the columns of
`skyvec_schemas.token_columns.token_array`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import ContractError
from skyvec_schemas.token_columns import INVALID, token_values
from skyvec_training.data.leaves import leaves_of, require_columns

# Shape letters: B object, A all positions of a vocabulary.

ID_COLUMN = "object_id"
ROWS_PER_READ = 8192
LEAST_TOKENS = 2
"""An object with fewer has nothing to hide, so it cannot be trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStore:
    """Tokens of all objects, in memory (1.2 kB each)."""

    codes_BA: NDArray[np.int16]
    """Code of each position, within its domain; -1 where nothing was observed."""
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


def read_tokens(path: Path, vocabulary: Vocabulary) -> TokenStore:
    """Read the columns of a vocabulary from a token extension, in the order of its leaves.

    Raises
    ------
    MissingColumnError
        If a leaf lacks a domain; names the leaf and the columns.
    ContractError
        If a code is outside its domain, or no object has two tokens.
    """
    keys = [m.token_key for m in vocabulary.modalities]
    codes, ids = [], []
    for leaf in leaves_of(path):
        require_columns(leaf, [ID_COLUMN, *keys],
                        remedy="Tokenize again with this modality, or take it out of the "
                        "recipe's transformer.model.domains")  # fmt: skip
        for batch in pq.ParquetFile(leaf).iter_batches(ROWS_PER_READ, columns=[ID_COLUMN, *keys]):
            codes.append(_codes(batch, vocabulary, leaf))
            ids.append(batch[ID_COLUMN].to_numpy(zero_copy_only=False))
    codes_BA, all_ids = np.concatenate(codes), np.concatenate(ids)
    usable = (codes_BA != INVALID).sum(1) >= LEAST_TOKENS
    if not usable.any():
        raise ContractError(
            f"no object has {LEAST_TOKENS} tokens", where=str(path), remedy="Tokenize again"
        )
    return TokenStore(codes_BA=codes_BA[usable], ids=all_ids[usable])


def _codes(batch: pa.RecordBatch, vocabulary: Vocabulary, leaf: Path) -> NDArray[np.int16]:
    columns = []
    for modality in vocabulary.modalities:
        codes_BN, valid_BN = token_values(batch[modality.token_key])
        if (
            codes_BN.shape[1] != modality.num_tokens
            or codes_BN.max(initial=0) >= modality.vocabulary
        ):
            raise ContractError(
                f"{modality.token_key} does not hold {modality.num_tokens} codes below "
                f"{modality.vocabulary}",
                where=str(leaf),
                remedy="Tokenize again with the codecs of this model",
            )
        columns.append(np.where(valid_BN, codes_BN, INVALID).astype(np.int16))
    return np.concatenate(columns, axis=1)
