"""One table for the tokens of all domains: where each domain's codes and positions begin.

A token is two numbers: its row in the joint code table, and its row in the joint position table.
The position alone tells the domain, so rows of a batch may hold different domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from skyvec_core.modalities import MODALITIES, Modality


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``start`` to ``stop`` of a joint table."""

    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """As a slice."""
        return slice(self.start, self.stop)


class Vocabulary:
    """Spans of codes and positions of each domain, in registry order."""

    def __init__(self, domains: Sequence[str]) -> None:
        self.modalities: tuple[Modality, ...] = tuple(MODALITIES[key] for key in domains)
        self.codes = self._spans([m.vocabulary for m in self.modalities])
        self.positions = self._spans([m.num_tokens for m in self.modalities])

    def _spans(self, lengths: Sequence[int]) -> dict[str, Span]:
        stops = list(accumulate(lengths))
        return {
            modality.token_key: Span(stop - length, stop)
            for modality, length, stop in zip(self.modalities, lengths, stops, strict=True)
        }

    def is_sequence(self, token_key: str) -> bool:
        """Whether positions of the domain count tokens instead of places on a grid."""
        return MODALITIES[token_key].kind == "catalog"

    @property
    def num_codes(self) -> int:
        """Rows of the joint code table."""
        return sum(m.vocabulary for m in self.modalities)

    @property
    def num_positions(self) -> int:
        """Rows of the joint position table."""
        return sum(m.num_tokens for m in self.modalities)

    def domain_of_position(self) -> Tensor:
        """(positions,) int64: index of the domain of each position."""
        return torch.cat(
            [
                torch.full((modality.num_tokens,), index)
                for index, modality in enumerate(self.modalities)
            ]
        )

    def position_encodings(self, dim: int) -> Tensor:
        """Fixed sine-cosine encodings (positions, dim) of all domains, float32."""
        known: dict[tuple[bool, tuple[int, int]], Tensor] = {}
        for modality in self.modalities:  # many are one token by one
            shape = (modality.kind == "catalog", modality.grid)
            if shape not in known:
                known[shape] = position_encoding(modality, dim)
        return torch.cat([known[m.kind == "catalog", m.grid] for m in self.modalities])


def position_encoding(modality: Modality, dim: int) -> Tensor:
    """(tokens, dim): 2-D sine-cosine over the token grid, or 1-D for a sequence.

    Quarters of a 2-D encoding are sin(column), cos(column), sin(row), cos(row) as the published
    weights have them for square grids (which count the first grid axis as slow).
    """
    if modality.kind == "catalog":
        return _sine_cosine(torch.arange(modality.num_tokens), dim // 2)
    rows, columns = modality.grid
    # The published grid is built with the width as the slow index and then flattened.
    slow, fast = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="ij")
    encoded = [_sine_cosine(axis.flatten(), dim // 4) for axis in (slow, fast)]
    return torch.cat(encoded, dim=1)


def _sine_cosine(position: Tensor, count: int) -> Tensor:
    frequency = 1.0 / 10000.0 ** (torch.arange(count, dtype=torch.float64) / count)
    angle = position.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
