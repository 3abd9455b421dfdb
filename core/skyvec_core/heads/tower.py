"""One side of an alignment: pooled context vectors, projected to the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.model.blocks import CrossAttention, Norm, keep_mask
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.pooling import masked_mean

# Shape letters: B object, T token, W width of what comes in, D width of the common space.


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """Sizes of a tower, and what it reads."""

    width: int
    """Of a context vector of the model, or of a sentence."""
    dim: int
    """Of the common space."""
    hidden: int
    """Inside the projector."""
    num_heads: int = 0
    """Of the attention that pools; 0 pools by the mean over valid tokens."""
    domains: tuple[str, ...] = ()
    """Token keys that the encoder is given for it, and nothing else; none for words."""

    def __post_init__(self) -> None:
        if min(self.width, self.dim, self.hidden) < 1:
            raise ValueError("width, dim and hidden of a tower must be positive")


class Tower(nn.Module):
    """Attentive pool (one learned query) or mean, two-layer projector, unit length.

    The pool is that of AstroCLIP (arXiv 2310.03024): cross-attention of a query to all tokens.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = Norm(config.width)
        if config.num_heads:
            sizes = TransformerConfig(
                dim=config.width, num_heads=config.num_heads, encoder_depth=0, decoder_depth=0
            )
            self.query = nn.Parameter(torch.zeros(1, config.width))
            self.attention = CrossAttention(sizes)
        self.project = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.dim),
        )

    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh weights: truncated normal query (0.02), Xavier linear layers."""
        if self.config.num_heads:
            nn.init.trunc_normal_(self.query, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, context_BTW: Tensor, valid_BT: Tensor) -> Tensor:
        """Unit vectors (B, D); those of an object without valid tokens mean nothing."""
        x_BTW = self.norm(context_BTW)
        if self.config.num_heads:
            query_B1W = self.query.expand(len(x_BTW), -1, -1)
            keep = keep_mask(query_B1W[..., 0], valid_BT)
            pooled_BW = self.attention(query_B1W, self.attention.keys_values(x_BTW), keep)[:, 0]
        else:
            pooled_BW = masked_mean(x_BTW, valid_BT)
        return functional.normalize(self.project(pooled_BW), dim=-1)
