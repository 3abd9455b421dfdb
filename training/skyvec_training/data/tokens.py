"""Tokens of a small extension in memory: a corpus without compiled shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.token_columns import INVALID
from skyvec_training.data.leaves import leaves_of
from skyvec_training.data.order import Kept, Mixture, mixture_of
from skyvec_training.data.shard_rows import LEAST_TOKENS
from skyvec_training.data.split import Split, held_out_rows, keys_of_ids, split
from skyvec_training.data.token_leaves import TokenLeaf, open_leaf, read_leaf, require_one_codec
from skyvec_training.recipe.data import DataRun

# Shape letters: B object, A all positions of a vocabulary.

MOST_ROWS = 1 << 20
"""Objects of an extension that is read into memory; more are compiled first."""


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """Tokens of all objects, in memory (1.2 kB each)."""

    codes_BA: NDArray[np.int16]
    """Code of each position, within its domain; -1 where nothing was observed."""
    ids: NDArray[Any]
    healpix: NDArray[np.int64] | None = None
    """Pixels at order 29, where they are known."""
    name: str = "tokens"
    """Of the data set, in the mixture."""
    run: DataRun = DataRun()  # noqa: RUF009 (frozen)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def train(self) -> Mixture:
        """Rows to train on, and their order."""
        kept = Kept(0, len(self), self._split.without)
        return mixture_of({self.name: kept}, self.run.weights, where=self.name)

    @cached_property
    def held_out_rows(self) -> NDArray[np.int64]:
        """Rows that are never trained on, in random order."""
        return held_out_rows([self._split], self.run, where=self.name)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and codes."""
        content = b"".join((str(self.ids.dtype).encode(), self.ids.tobytes()))
        return hashlib.sha256(content + self.codes_BA.tobytes()).hexdigest()

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Code (B, A) of each position, within its domain; -1 where nothing was observed."""
        return self.codes_BA[rows]

    @cached_property
    def _split(self) -> Split:
        unknown = np.full(len(self), -1)
        return split(
            start=0,
            keys=keys_of_ids(self.ids.tolist()),
            healpix=unknown if self.healpix is None else self.healpix,
            usable=(self.codes_BA != INVALID).sum(1) >= LEAST_TOKENS,
            run=self.run,
            where=self.name,
        )


def read_tokens(
    path: Path, vocabulary: Vocabulary, run: DataRun | None = None, *, name: str | None = None
) -> TokenStore:
    """Read the columns of a vocabulary from a token extension, in the order of its leaves.

    Raises
    ------
    MissingColumnError
        If a leaf lacks a domain; names the leaf and the columns.
    ContractError
        If a code is outside its domain, or no object has two tokens.
    ConfigurationError
        If leaves were made by different codecs, or there are too many objects for memory.
    """
    keys = tuple(m.token_key for m in vocabulary.modalities)
    leaves = [open_leaf(leaf) for leaf in leaves_of(path)]
    require_one_codec(leaves)
    _require_few(leaves, path)
    codes, ids, healpix = [], [], []
    for leaf in leaves:
        _require_columns(leaf, keys)
        for read in read_leaf(leaf, keys):
            codes.append(np.concatenate(read.codes, axis=1))
            ids.append(read.ids.to_numpy(zero_copy_only=False))
            healpix.append(read.healpix_B)
    codes_BA, all_ids = np.concatenate(codes), np.concatenate(ids)
    usable = (codes_BA != INVALID).sum(1) >= LEAST_TOKENS
    if not usable.any():
        raise ContractError(
            f"no object has {LEAST_TOKENS} tokens", where=str(path), remedy="Tokenize again"
        )
    return TokenStore(
        codes_BA=codes_BA[usable],
        ids=all_ids[usable],
        healpix=np.concatenate(healpix)[usable],
        name=name or path.resolve().name,
        run=run or DataRun(),
    )


def _require_columns(leaf: TokenLeaf, keys: tuple[str, ...]) -> None:
    missing = sorted(set(keys) - set(leaf.keys))
    if missing:
        raise MissingColumnError(
            f"column {', '.join(missing)} is missing",
            where=str(leaf.path),
            remedy="Tokenize again with this modality, or take it out of the "
            "recipe's transformer.model.domains",
        )


def _require_few(leaves: list[TokenLeaf], path: Path) -> None:
    rows = sum(leaf.rows for leaf in leaves)
    if rows > MOST_ROWS:
        raise ConfigurationError(
            f"{rows} objects are too many to be read into the memory of each process",
            where=str(path),
            remedy="Run `python -m skyvec_training compile-tokens` and train on its --out",
        )
