"""Token extension in, cached context vectors out: the one pass of the encoder over the objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import TEXT
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.token_columns import token_values
from skyvec_training.data.leaves import leaves_of, require_columns
from skyvec_training.data.token_leaves import UNKNOWN, open_leaf, require_one_codec
from skyvec_training.heads.cache import CacheWriter
from skyvec_training.heads.identities import id_column_of, identities

Words = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], Tensor]]
"""Ids -> key of each row's text (-1: none), and its sentence vectors (rows, W)."""
_NO_DIGEST = (UNKNOWN, "model ")
"""How records begin that do not name a codec of their own."""
ROWS = 256
"""Objects whose contexts are in memory together."""


def fill(
    writer: CacheWriter,
    model: Model,
    tokens: Path,
    towers: Mapping[str, Sequence[str]],
    *,
    key_column: str = "",
    pooled: bool = False,
    words: Words | None = None,
    observe: Callable[[int], None] = lambda _: None,
) -> int:
    """Cache the contexts of every object that has tokens for all towers; returns how many.

    Parameters
    ----------
    towers
        Name -> token keys. Each tower's tokens are encoded alone: what one tower reads never saw
        the other's.
    key_column
        Column in which rows are equal that show the same object; their ids by default.
    pooled
        Keep only the mean over tokens.
    words
        What becomes the tower ``text``; texts that are equal have equal keys.
    observe
        Called with the number of rows read since the last call.

    Raises
    ------
    MissingColumnError
        If a leaf lacks a token key.
    ContractError
        If no object has tokens for all towers.
    """
    require_codecs(model, tokens, [key for keys in towers.values() for key in keys])
    kept = 0
    for ids, keys, coded in token_batches(model.vocabulary, tokens, towers, key_column):
        contexts = {
            name: model.contexts_of_objects({key: coded[key] for key in read})
            for name, read in towers.items()
        }
        there = np.all([[len(c) > 0 for c in parts] for parts in contexts.values()], axis=0)
        own = keys
        if words is not None:
            own, sentences = words(ids)
            contexts[TEXT] = list(sentences[:, None])
            there &= own >= 0
        rows = np.flatnonzero(there)
        if len(rows):
            chosen = {name: [parts[row] for row in rows] for name, parts in contexts.items()}
            if pooled:
                chosen = {n: [c.float().mean(0, keepdim=True) for c in p]
                          for n, p in chosen.items()}  # fmt: skip
            writer.append(own[rows], chosen)
        kept += len(rows)
        observe(len(ids))
    if not kept:
        raise nothing_to_align(tokens, towers)
    return kept


def nothing_to_align(tokens: Path, towers: Mapping[str, Sequence[str]]) -> ContractError:
    """The error of a token extension in which no object has all that is aligned."""
    return ContractError(
        f"no object has tokens for all of {', '.join(towers)}, and a text where words are aligned",
        where=str(tokens),
        remedy="Tokenize a release whose objects have both, e.g. a cross-match",
    )


def require_codecs(model: Model, tokens: Path, keys: Sequence[str]) -> None:
    """Refuse tokens by other codecs than the model's: equal codes would mean different things.

    Raises
    ------
    ConfigurationError
        Names the token key; also if leaves differ among themselves.
    """
    made_by = require_one_codec([open_leaf(leaf) for leaf in leaves_of(tokens)])
    for key in keys:
        theirs, ours = made_by.get(key, UNKNOWN), model.codec_digests.get(key)
        if ours and theirs != ours and not theirs.startswith(_NO_DIGEST):
            raise ConfigurationError(
                f"{key} was made by codec {theirs[:12]}, model {model.name} has {ours[:12]}",
                where=str(tokens),
                remedy="Tokenize again with this model",
            )


def token_batches(
    vocabulary: Vocabulary, path: Path, towers: Mapping[str, Sequence[str]], key_column: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Tokens]]]:
    """Ids, keys and the towers' tokens of some rows at a time; raises as `fill`."""
    wanted = sorted({key for keys in towers.values() for key in keys})
    unknown = [key for key in wanted if key not in vocabulary.codes]
    if unknown:
        raise ConfigurationError(
            f"the model has no domain {', '.join(unknown)}",
            where="towers of the recipe",
            remedy=f"Choose of {', '.join(vocabulary.codes)}",
        )
    for leaf in leaves_of(path):
        own = id_column_of(leaf)
        columns = sorted({own, key_column or own, *wanted})
        require_columns(leaf, columns, remedy="Tokenize again with this modality")
        for batch in pq.ParquetFile(leaf).iter_batches(ROWS, columns=columns):
            try:
                yield (
                    identities(batch[own]), identities(batch[key_column or own]),
                    _tokens(batch, wanted),
                )  # fmt: skip
            except (pa.ArrowInvalid, ValueError) as problem:
                raise ContractError(
                    str(problem), where=str(leaf), remedy="Tokenize again with this model"
                ) from problem


def _tokens(batch: pa.RecordBatch, wanted: Sequence[str]) -> dict[str, Tokens]:
    coded = {}
    for key in wanted:
        ids, valid = token_values(batch[key])
        coded[key] = Tokens(
            ids_BN=torch.from_numpy(ids.astype(np.int64)), valid_BN=torch.from_numpy(valid.copy())
        )
    return coded
