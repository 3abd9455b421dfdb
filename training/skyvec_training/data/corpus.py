"""Objects that a run trains on: which of them are held out, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.order import Kept, Mixture, mixture_of
from skyvec_training.data.shard_files import MANIFEST
from skyvec_training.data.shards import Shards
from skyvec_training.data.split import Split, held_out_rows, split
from skyvec_training.data.tokens import read_tokens
from skyvec_training.recipe.data import DataRun

# Shape letters: B object, A all positions of a vocabulary.


class Corpus(Protocol):
    """Tokens of objects with at least two of them each."""

    @property
    def train(self) -> Mixture:
        """Rows to train on, and their order."""
        ...

    @property
    def held_out_rows(self) -> NDArray[np.int64]:
        """Rows that are never trained on, in random order."""
        ...

    @property
    def digest(self) -> str:
        """Identity of the tokens."""
        ...

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Code (B, A) of each position, within its domain; -1 where nothing was observed."""
        ...


class ShardCorpus:
    """The objects of compiled shards that have two tokens or more of a vocabulary."""

    def __init__(self, shards: Shards, vocabulary: Vocabulary, run: DataRun) -> None:
        shards.require(vocabulary)
        self.shards, self.vocabulary = shards, vocabulary
        where = str(shards.folder)
        kept: dict[str, Kept] = {}
        parts: list[Split] = []
        for name, rows in shards.datasets.items():
            own = [
                split(start=facts.start, keys=facts.keys, healpix=facts.healpix,
                      usable=facts.usable(vocabulary), run=run, where=where)
                for facts in shards.facts(rows)
            ]  # fmt: skip
            kept[name] = Kept(rows.start, rows.stop, np.concatenate([s.without for s in own]))
            parts += own if run.weights.get(name, 1) > 0 else []
        self.unusable = sum(part.unusable for part in parts)
        """Objects with fewer than two tokens of this vocabulary."""
        self.train = mixture_of(kept, run.weights, where=where)
        self.held_out_rows = held_out_rows(parts, run, where=where)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def digest(self) -> str:
        """Identity of the tokens: of the leaves and codecs that they came from."""
        return self.shards.manifest.plan

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Code (B, A) of each position, within its domain; -1 where nothing was observed."""
        return self.shards.codes(rows, self.vocabulary)


def open_corpus(source: Path, vocabulary: Vocabulary, run: DataRun) -> Corpus:
    """Compiled shards, or one token extension that fits into memory."""
    if (source / MANIFEST).is_file():
        return ShardCorpus(Shards.open(source), vocabulary, run)
    return read_tokens(source, vocabulary, run)
