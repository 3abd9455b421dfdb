"""How much of a codebook is in use."""

from __future__ import annotations

import torch
from torch import Tensor

from skyvec_core.observations import Tokens


class Usage:
    """Counts the codes of valid tokens."""

    def __init__(self, num_codes: int) -> None:
        self.counts_V = torch.zeros(num_codes, dtype=torch.int64)

    def add(self, tokens: Tokens) -> None:
        """Count some tokens."""
        self.counts_V += torch.bincount(
            tokens.ids_BN[tokens.valid_BN], minlength=len(self.counts_V)
        )

    def scores(self) -> dict[str, float | int]:
        """``codes_used`` of ``codes``, and ``perplexity``: that of codes used equally often."""
        return {
            "codes_used": int((self.counts_V > 0).sum()),
            "codes": len(self.counts_V),
            "perplexity": float(entropy(self.counts_V / self.counts_V.sum().clamp(min=1)).exp()),
        }


def entropy(shares_V: Tensor) -> Tensor:
    """Entropy (...) in nats of shares (..., V)."""
    return torch.special.entr(shares_V.double()).sum(-1)
