"""Alignment of modalities: towers whose unit vectors are close where they show one object.

Image and spectrum as in AstroCLIP (arXiv 2310.03024), or galaxies and words as in AION-Search,
trained with the sigmoid loss of SigLIP (arXiv 2303.15343). A head belongs to the model, and to the
text encoder, whose digests it carries; it is one safetensors file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skyvec_core.heads.minilm import SentenceEncoder
from skyvec_core.heads.tower import Tower, TowerConfig
from skyvec_core.weights import digest_of

if TYPE_CHECKING:
    from skyvec_core.embedder import Model
    from skyvec_core.observations import TokenSet

# Shape letters: B object, T token, W width of what comes in, D width of the common space.

IMAGE, TEXT = "image", "text"
FIRST_SCALE, FIRST_BIAS = 10.0, -10.0
"""SigLIP's start: with them an untrained head takes every pair for no match, as nearly all are."""
LARGEST_SCALE = 100.0
BATCH = 256
_KEY = "alignment_head"


class AlignmentHead(nn.Module):
    """Two or more towers into one space.

    Parameters
    ----------
    towers
        Name -> sizes; all of one ``dim``. The tower of words is called ``text``.
    model_digest
        Identity of the model whose context vectors the towers read.
    text_digest
        Identity of the text encoder; empty without a tower of words.
    """

    def __init__(
        self, towers: Mapping[str, TowerConfig], *, model_digest: str, text_digest: str = ""
    ) -> None:
        super().__init__()
        if len(towers) < 2 or len({tower.dim for tower in towers.values()}) != 1:
            raise ValueError("a head aligns at least two towers of one dim")
        if (TEXT in towers) != bool(text_digest):
            raise ValueError(f"a tower {TEXT!r} and a text_digest come together")
        self.towers = nn.ModuleDict({name: Tower(config) for name, config in towers.items()})
        self.model_digest, self.text_digest = model_digest, text_digest
        # One value, not none: sharded training takes no parameter without a dimension.
        self.log_scale = nn.Parameter(torch.full((1,), math.log(FIRST_SCALE)))
        self.bias = nn.Parameter(torch.full((1,), FIRST_BIAS))
        self._text_encoder: SentenceEncoder | None = None

    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh weights."""
        with torch.no_grad():
            self.log_scale.fill_(math.log(FIRST_SCALE))
            self.bias.fill_(FIRST_BIAS)
        for tower in self.towers.values():
            tower.initialize(generator)  # type: ignore[operator]  # ModuleDict is untyped

    def tower(self, name: str) -> Tower:
        """A tower by name; an unknown one is an error that lists all."""
        if name not in self.towers:
            raise ValueError(f"no tower {name!r}; this head has {', '.join(self.towers)}")
        tower = self.towers[name]
        assert isinstance(tower, Tower)  # noqa: S101 - ModuleDict is untyped
        return tower

    @property
    def dim(self) -> int:
        """Width of the common space."""
        return self.tower(next(iter(self.towers))).config.dim

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with, (1,); at most 100."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    @torch.no_grad()
    def embed(self, name: str, contexts: Sequence[Tensor]) -> Tensor:
        """Unit vectors (B, D) by one tower; NaN for an object without tokens.

        Parameters
        ----------
        contexts
            For each object its vectors (T, W) of any float type, as `Model.contexts_of_objects`
            returns them for the tokens of the tower's domains alone.
        """
        tower = self.tower(name)
        wrong = next((c for c in contexts if c.ndim != 2 or c.shape[1] != tower.config.width), None)
        if wrong is not None:
            raise ValueError(
                f"tower {name} takes (tokens, {tower.config.width}) of each object, found "
                f"{tuple(wrong.shape)}"
            )
        vectors_BD = torch.full((len(contexts), self.dim), torch.nan)
        for rows in _batches([len(context) for context in contexts]):
            counts_B = torch.tensor([len(contexts[row]) for row in rows])
            padded = pad_sequence([contexts[row].float() for row in rows], batch_first=True)
            vectors_BD[rows] = tower(padded, torch.arange(padded.shape[1]) < counts_B[:, None])
        return vectors_BD

    def embed_image(self, contexts: Sequence[Tensor]) -> Tensor:
        """`embed` by the tower ``image``."""
        return self.embed(IMAGE, contexts)

    @torch.no_grad()
    def embed_tokens(self, name: str, model: Model, tokens: TokenSet) -> Tensor:
        """Unit vectors (B, D) of tokens, of which only the tower's domains are read.

        Raises
        ------
        ValueError
            If the model is not the one that the head was trained on, or lacks the domains.
        """
        if model.digest != self.model_digest:
            raise ValueError(
                f"the head was trained on model {self.model_digest[:12]}, this is "
                f"{model.digest[:12]}; train it again"
            )
        tower = self.tower(name)
        own = {key: coded for key, coded in tokens.items() if key in tower.config.domains}
        if not own:
            raise ValueError(f"tower {name} reads {', '.join(tower.config.domains)}; none is given")
        count = len(next(iter(own.values())).ids_BN)
        vectors_BD = torch.full((count, self.dim), torch.nan)
        for batch, context_BTW in model.contexts(own):
            found_BD = tower(context_BTW.cpu(), batch.valid_BT.cpu())
            vectors_BD[batch.rows] = found_BD[: len(batch.rows)]
        return vectors_BD

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str], encoder: SentenceEncoder | None = None) -> Tensor:
        """Unit vectors (B, D) of texts.

        Parameters
        ----------
        encoder
            The text encoder; that of the installed package by default.

        Raises
        ------
        FileNotFoundError
            If the text encoder is not installed.
        ValueError
            If it is another than the head was trained with.
        """
        tower = self.tower(TEXT)
        if encoder is None:
            encoder = self._text_encoder = self._text_encoder or SentenceEncoder.load()
        if encoder.digest != self.text_digest:
            raise ValueError(
                f"the head was trained with text encoder {self.text_digest[:12]}, this is "
                f"{encoder.digest[:12]}"
            )
        sentences_B1W = encoder.embed(texts)[:, None]
        vectors_BD: Tensor = tower(sentences_B1W, torch.ones(len(sentences_B1W), 1).bool())
        return vectors_BD

    @torch.no_grad()
    def probability(self, ours_BD: Tensor, theirs_CD: Tensor) -> Tensor:
        """(B, C) chance that two unit vectors show one object, as the sigmoid loss learnt it."""
        return torch.sigmoid(self.scale * (ours_BD @ theirs_CD.T) + self.bias)

    def save(self, path: str | Path) -> None:
        """Write weights and what they belong to, to one safetensors file."""
        path = Path(path)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        facts = {
            "towers": {name: asdict(self.tower(name).config) for name in self.towers},
            "model_digest": self.model_digest,
            "text_digest": self.text_digest,
            "tensors": digest_of(tensors),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={_KEY: json.dumps(facts)})
        path.chmod(0o644)  # safetensors writes 0600

    @classmethod
    def load(cls, path: str | Path) -> AlignmentHead:
        """Read a file that `save` wrote, in eval mode.

        Raises
        ------
        ValueError
            If the file is no alignment head, its tensors do not fit, or they were changed.
        """
        with safe_open(path, framework="pt") as stored:
            text = (stored.metadata() or {}).get(_KEY)
            if text is None:
                raise ValueError(f"{path} is not an alignment head: its header does not say so")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        facts = json.loads(text)
        if digest_of(tensors) != facts["tensors"]:
            raise ValueError(f"{path} was changed since it was written; get it again")
        towers = {
            name: TowerConfig(**{**sizes, "domains": tuple(sizes["domains"])})
            for name, sizes in facts["towers"].items()
        }
        digests = {key: facts[key] for key in ("model_digest", "text_digest")}
        head = cls(towers, **digests)
        try:
            head.load_state_dict(tensors)
        except RuntimeError as problem:
            raise ValueError(f"{path}: {problem}") from problem
        return head.eval()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows with tokens, sorted by length so that little is padded."""
    order = sorted((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__)
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]
