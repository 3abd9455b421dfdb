"""Sizes that fix every parameter of the transformer; saved beside the weights.

Source: AION-1 (arXiv 2510.17960) and the ``config.json`` of its model folders, whose keys
`TransformerConfig.to_json` writes and `TransformerConfig.from_json` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast, get_args

from skyvec_core.modalities import MODALITIES

Pooling = Literal["mean", "mean_of_modalities"]
"""How context vectors become one: every token counts the same, or every modality."""

_FIXED = {
    "act_layer": "SiLU",
    "gated_mlp": True,
    "qk_norm": True,
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Pre-norm encoder-decoder with SwiGLU, normalized queries and keys, and no biases."""

    dim: int
    """Width of a token."""
    num_heads: int
    encoder_depth: int
    decoder_depth: int
    mlp_ratio: float = 4.0
    """Ungated ratio; the gated width is ``int(2 * mlp_ratio * dim / 3)``."""
    domains_in: tuple[str, ...] = tuple(MODALITIES)
    """Domains that can be encoded, by token key."""
    domains_out: tuple[str, ...] = tuple(MODALITIES)
    """Domains that can be predicted."""
    pooling: Pooling = "mean"
    """What the model was trained for, and does unless told otherwise."""

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"unknown pooling {self.pooling!r}; known are {get_args(Pooling)}")
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"dim ({self.dim}) must be a multiple of 4 x num_heads ({self.num_heads})"
            )
        unknown = sorted({*self.domains_in, *self.domains_out} - set(MODALITIES))
        if unknown:
            raise ValueError(f"unknown domains {unknown}; known are {', '.join(MODALITIES)}")

    @property
    def mlp_hidden(self) -> int:
        """Width inside the gated feed-forward."""
        return int(2 * (self.mlp_ratio * self.dim) / 3)

    @property
    def domains(self) -> tuple[str, ...]:
        """Every domain with a table, in registry order."""
        used = {*self.domains_in, *self.domains_out}
        return tuple(key for key in MODALITIES if key in used)

    def to_json(self) -> dict[str, object]:
        """The published keys."""
        return {
            **_FIXED,
            "dim": self.dim,
            "num_heads": self.num_heads,
            "encoder_depth": self.encoder_depth,
            "decoder_depth": self.decoder_depth,
            "mlp_ratio": self.mlp_ratio,
            "domains_in": list(self.domains_in),
            "domains_out": list(self.domains_out),
            # A key of our own, which published folders do not have.
            **({} if self.pooling == "mean" else {"pooling": self.pooling}),
        }

    @classmethod
    def from_json(cls, published: Mapping[str, object]) -> TransformerConfig:
        """Read the published keys; an architecture that we do not implement is an error."""
        different = [
            f"{key} is {published[key]!r}, supported is {value!r}"
            for key, value in _FIXED.items()
            if key in published and published[key] != value
        ]
        if different:
            raise ValueError("unsupported transformer: " + "; ".join(different))
        missing = [k for k in ("dim", "num_heads", "encoder_depth", "decoder_depth")
                   if k not in published]  # fmt: skip
        if missing:
            raise ValueError(f"transformer config lacks {', '.join(missing)}")
        sizes = {k: int(str(published[k])) for k in
                 ("dim", "num_heads", "encoder_depth", "decoder_depth")}  # fmt: skip
        return cls(
            **sizes,
            mlp_ratio=float(str(published.get("mlp_ratio", 4.0))),
            domains_in=_names(published, "domains_in"),
            domains_out=_names(published, "domains_out"),
            pooling=cast("Pooling", published.get("pooling", "mean")),
        )


def _names(published: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = published.get(key, list(MODALITIES))
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list of token keys, found {value!r}")
    return tuple(str(name) for name in value)


SIZES: Mapping[str, TransformerConfig] = MappingProxyType(
    {
        "tiny": TransformerConfig(dim=128, num_heads=2, encoder_depth=4, decoder_depth=3),
        "base": TransformerConfig(dim=768, num_heads=12, encoder_depth=12, decoder_depth=12),
        "large": TransformerConfig(dim=1024, num_heads=16, encoder_depth=24, decoder_depth=24),
        "xlarge": TransformerConfig(dim=2048, num_heads=32, encoder_depth=24, decoder_depth=24),
        "xxlarge": TransformerConfig(dim=4096, num_heads=64, encoder_depth=24, decoder_depth=24),
    }
)
"""The published sizes (B, L, XL, XXL) and our own ``tiny``, over all domains."""
