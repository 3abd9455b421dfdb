"""The space that an alignment head spans, and the way of stored vectors into it.

A head (`skyvec_core.heads.alignment`) reads the tokens of an object. Stored vectors are the mean of
these tokens, so a tower that was trained on the mean (``pooled = true`` in its recipe) can be given
a stored vector, and no pixel is looked at again: as long as the vector was made by the same model
from the same modalities, which is checked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec.models import packaged_models
from skyvec_core.heads.alignment import TEXT, AlignmentHead
from skyvec_core.heads.minilm import SentenceEncoder
from skyvec_schemas.errors import ConfigurationError, WeightsError
from skyvec_schemas.provenance import Provenance

Floats: TypeAlias = NDArray[np.floating[Any]]

HEAD_FILE = "head.safetensors"
_TRAIN = (
    "Train one: python -m skyvec_training text TOKENS --model MODEL --recipe text.toml "
    "--captions CATALOG --out FOLDER, with pooled = true in the recipe"
)


@dataclass(frozen=True, kw_only=True)
class StoredTower:
    """Stored vectors (rows, dim) -> unit vectors (rows, width) of the common space.

    Pickles as the path of its head, which every process reads once.
    """

    head: str
    """File of the head."""
    tower: str

    def __call__(self, vectors: Floats) -> NDArray[np.float32]:
        """Map a block of vectors."""
        tower = _read(self.head).tower(self.tower)
        values = torch.from_numpy(np.array(vectors, np.float32))
        with torch.inference_mode():
            mapped = tower(values[:, None], torch.ones((len(values), 1), dtype=torch.bool))
        return np.asarray(mapped.numpy(), np.float32)


@dataclass(frozen=True, kw_only=True)
class AlignedSpace:
    """A head on disk, and what its towers can read."""

    path: Path
    """File of the head."""
    head: AlignmentHead

    @classmethod
    def open(cls, path: str | Path) -> AlignedSpace:
        """Read a head, or the folder of the run that made it.

        Raises
        ------
        ConfigurationError
            If there is none; says how to train one.
        WeightsError
            If the file is not a head, or was changed.
        """
        place = Path(path)
        place = place / HEAD_FILE if place.is_dir() else place
        if not place.is_file():
            raise ConfigurationError("there is no aligned head", where=str(path), remedy=_TRAIN)
        return cls(path=place, head=_read(str(place.resolve())))

    @property
    def towers(self) -> dict[str, tuple[str, ...]]:
        """Token keys that each tower reads; none for words."""
        return {name: self.head.tower(name).config.domains for name in self.head.towers}

    @property
    def digest(self) -> str:
        """Identity of the model that the towers belong to."""
        return self.head.model_digest

    def stored(self, made: Provenance) -> StoredTower:
        """The tower that reads vectors of this origin.

        Raises
        ------
        ConfigurationError
            If they are of another model, of other modalities than any tower's, or the tower needs
            tokens in place of their mean.
        """
        if made.model_digest != self.digest:
            raise ConfigurationError(
                f"is aligned with model {self.digest[:12]}, the vectors are by {made.model} "
                f"({made.model_digest[:12]})",
                where=str(self.path),
                remedy=f"Give a head of the vectors' model. {_TRAIN}",
            )
        keys = modalities_of(made)
        name = next((n for n, own in self.towers.items() if set(own) == keys and own), None)
        if name is None:
            known = "; ".join(f"{n}: {', '.join(own)}" for n, own in self.towers.items() if own)
            raise ConfigurationError(
                f"no tower reads vectors made of {', '.join(sorted(keys))} (it has {known})",
                where=str(self.path),
                remedy="Embed with these inputs alone (--without names the others), or train a "
                "head whose tower names those of the vectors",
            )
        if self.head.tower(name).config.num_heads:
            raise ConfigurationError(
                f"tower {name} pools over tokens, and stored vectors are their mean",
                where=str(self.path),
                remedy="Train the head with pooled = true in its recipe",
            )
        if len(keys) > 1 and _pooling(made.model) != "mean":
            raise ConfigurationError(
                f"{made.model} pools by modality, tower {name} learnt on the mean over all tokens",
                where=str(self.path),
                remedy="Align vectors of one modality",
            )
        return StoredTower(head=str(self.path.resolve()), tower=name)

    def words(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors (texts, width) of words.

        Raises
        ------
        ConfigurationError
            If the head has no tower of words, a text is empty, or the text encoder is not
            installed or another than the head was trained with.
        """
        if TEXT not in self.head.towers:
            raise ConfigurationError(
                f"aligns {' and '.join(self.head.towers)}, no words",
                where=str(self.path),
                remedy=_TRAIN,
            )
        if not texts or not all(text.strip() for text in texts):
            raise ConfigurationError(
                "there are no words in it", where="text query", remedy="Say what to look for"
            )
        try:
            found = self.head.embed_text(list(texts), _encoder())
        except FileNotFoundError as problem:
            what, _, remedy = str(problem).partition(": ")
            raise ConfigurationError(what, where="text query", remedy=f"Use {remedy}") from problem
        except ValueError as problem:
            raise ConfigurationError(
                str(problem), where=str(self.path), remedy="Install the encoder it was trained with"
            ) from problem
        return found.double().numpy()


def modalities_of(made: Provenance) -> set[str]:
    """Token keys of everything that vectors are made of, joined sources included."""
    inputs = {line.rpartition("=")[2] for line in made.inputs}
    codecs = {line.partition("=")[0] for line in made.codecs}
    return (inputs | codecs) - set(made.labels)


def _pooling(model: str) -> str:
    """How a model of the package pools; others are taken by the default of published folders."""
    folder = packaged_models().get(model)
    if folder is None:
        return "mean"
    return str(json.loads((folder / "config.json").read_text()).get("pooling", "mean"))


@lru_cache(maxsize=4)
def _read(path: str) -> AlignmentHead:
    from safetensors import SafetensorError

    try:
        return AlignmentHead.load(path)
    except (OSError, ValueError, KeyError, SafetensorError) as problem:
        raise WeightsError(
            str(problem).splitlines()[0],
            where=path,
            remedy="Give the head.safetensors that `python -m skyvec_training text` or `align` wrote",
        ) from problem


@lru_cache(maxsize=1)
def _encoder() -> SentenceEncoder:
    return SentenceEncoder.load()
