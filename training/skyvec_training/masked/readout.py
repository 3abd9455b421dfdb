"""Scalars read from an object's vector by linear maps while it is trained, as probes will read them.

A decoder of some layers finds in a vector what no linear map would find there. Asking the vector
itself for every scalar, seen or hidden, moves that into its reach. The maps are fixed: orthonormal
directions, to which an encoder can turn whatever it knows, so that there is nothing to store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.model.vocabulary import Vocabulary

# Shape letters: B object, D model width, S scalar domain, K term, V code, R row.

TERMS = 4
"""Cosines of a scalar's rank; with them, smooth functions of it are linear, too."""
SAMPLE = 1 << 14
"""Objects, at most, whose codes tell the rank of a code."""


def scalar_places(vocabulary: Vocabulary) -> list[int]:
    """Places of the scalars among the vocabulary's modalities."""
    return [i for i, one in enumerate(vocabulary.modalities) if one.kind == "scalar"]


def ranks_of(codes_RS: NDArray[np.int16], sizes: list[int]) -> Tensor:
    """Share (S, V) of objects with a smaller code, those with the same one counted half.

    Parameters
    ----------
    codes_RS
        Codes of some objects; -1 where nothing was observed.
    sizes
        Codes of each scalar.
    """
    ranks_SV = np.full((len(sizes), max(sizes, default=1)), 0.5)
    for place, size in enumerate(sizes):
        found = codes_RS[:, place]
        counts = np.bincount(found[found >= 0], minlength=size)[:size].astype(np.float64)
        if total := counts.sum():
            ranks_SV[place, :size] = (np.cumsum(counts) - counts / 2) / total
    return torch.from_numpy(ranks_SV).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Readout:
    """What the vector is asked for.

    The target of term k is sqrt(2) cos(pi k rank), of zero mean and unit variance over objects.
    """

    ranks_SV: Tensor
    directions_SKD: Tensor

    @classmethod
    def of(cls, ranks_SV: Tensor, *, width: int) -> Readout:
        """The same directions for the same number of scalars and width.

        Raises
        ------
        ValueError
            If the vector has not as many dimensions as it is asked for.
        """
        asked = len(ranks_SV) * TERMS
        if asked > width:
            raise ValueError(f"a readout of {asked} numbers from a vector of {width}")
        drawn = torch.randn(width, asked, generator=torch.Generator().manual_seed(0))
        directions_DA, _ = torch.linalg.qr(drawn)
        return cls(ranks_SV=ranks_SV, directions_SKD=directions_DA.T.reshape(-1, TERMS, width))

    def sums(self, vectors_BD: Tensor, codes_BS: Tensor) -> Tensor:
        """Squared error (S,) of each scalar, the mean over its terms, summed over objects.

        Parameters
        ----------
        codes_BS
            Codes within their domains; -1 where nothing was observed.
        """
        device = vectors_BD.device
        rank_BS = self.ranks_SV.to(device).T.gather(0, codes_BS.clamp(min=0))
        term_K = torch.arange(1, TERMS + 1, device=device)
        target_BSK = math.sqrt(2) * torch.cos(math.pi * term_K * rank_BS[..., None])
        read_BSK = torch.einsum("bd,skd->bsk", vectors_BD.float(), self.directions_SKD.to(device))
        error_BS = (read_BSK - target_BSK).square().mean(-1)
        return torch.where(codes_BS >= 0, error_BS, 0.0).sum(0)
