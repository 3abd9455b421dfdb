"""A vector of coefficients <-> one token each: the Gaia XP spectra.

Every coefficient has a quantile table of its own, on a scale compressed twice by arcsinh in AION-1.
Tensor names are those of the published folders: ``_quantizer.quantizers.<i>._index_to_val``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from skyvec_core.codecs import distributions
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.quantizers import QuantileTable
from skyvec_core.codecs.scalar import require_floats
from skyvec_core.observations import Observed, Tokens

# Shape letters: B object, N coefficient (a token each), V code.

_INVERSE = {"arcsinh": "sinh", "asinh": "sinh"}
"""Known compressions and what undoes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoefficientsCodecConfig:
    """Sizes and scale of a coefficients codec; the defaults are those of AION-1."""

    codebook_size: int = 1024
    num_quantizers: int = 55
    compression_fns: tuple[str, ...] = ("arcsinh", "arcsinh")
    decompression_fns: tuple[str, ...] = ("sinh", "sinh")

    def __post_init__(self) -> None:
        if tuple(_INVERSE.get(name) for name in self.compression_fns) != self.decompression_fns:
            raise ValueError(
                f"compression_fns {self.compression_fns} with decompression_fns "
                f"{self.decompression_fns}: known is arcsinh, any number of times, undone by sinh"
            )


class CoefficientsCodec(Codec):
    """Coefficients as the indices of their quantiles, all tables searched at once."""

    rows: ClassVar[int] = 1024
    """Rows of an `encode` call that the caller pads to."""

    def __init__(self, config: CoefficientsCodecConfig) -> None:
        super().__init__()
        self.config = config
        tables = [QuantileTable(config.codebook_size) for _ in range(config.num_quantizers)]
        self._quantizer = nn.ModuleDict({"quantizers": nn.ModuleList(tables)})

    @property
    def tables(self) -> list[QuantileTable]:
        """The N tables, on the compressed scale."""
        return [
            cast("QuantileTable", t) for t in cast("nn.ModuleList", self._quantizer["quantizers"])
        ]

    def fit(self, values_nN: Tensor) -> None:
        """Fit every table to its column of a sample (n, N)."""
        self._require_columns(values_nN)
        for table, column in zip(self.tables, self.compress(values_nN).unbind(1), strict=True):
            table.fit(column)

    def compress(self, values: Tensor) -> Tensor:
        """Scale on which the tables are kept."""
        for _ in self.config.compression_fns:
            values = values.asinh()
        return values

    def expand(self, values: Tensor) -> Tensor:
        """Inverse of `compress`."""
        for _ in self.config.decompression_fns:
            values = values.sinh()
        return values

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Tokens (B, N) of coefficients (B, N); NaN and infinities are not valid.

        Parameters
        ----------
        compat
            As the official package: every token is valid, NaN and inf get the last code and -inf
            the first.

        Raises
        ------
        TypeError, ValueError
            If it is no float tensor with a column for each table.
        """
        count = self.config.num_quantizers
        values_BN = require_floats(observed, what="a coefficients codec", shape=f"(B, {count})")
        self._require_columns(values_BN)
        valid_BN = torch.isfinite(values_BN) | compat
        edges_NV = self._edges()[:, :-1].contiguous()
        codes_NB = torch.searchsorted(edges_NV, self.compress(values_BN.float()).T.contiguous())
        return Tokens(ids_BN=codes_NB.T.contiguous(), valid_BN=valid_BN)

    def decode(self, ids_BN: Tensor, *, compat: bool = False) -> Tensor:
        """Middle (B, N) of the interval of each code, in the survey's unit.

        Parameters
        ----------
        compat
            Upper edge of the interval, as the official package.

        Raises
        ------
        TypeError, ValueError
            If an id is no code, -1 included, or there is not one for each coefficient.
        """
        self._require_columns(ids_BN)
        distributions.require_codes(ids_BN, self.config.codebook_size, what="coefficients codec")
        values_NV = self.expand(self._edges()) if compat else self.centers()
        return values_NV.gather(1, ids_BN.long().T).T.contiguous()

    def centers(self) -> Tensor:
        """Value (N, V) that stands for each code, as `ScalarCodec.centers`."""
        return self.expand(distributions.middles(self._edges()))

    def expectation(self, probabilities_BNV: Tensor) -> Tensor:
        """Mean (B, N) of predicted distributions, as `ScalarCodec.expectation`."""
        return distributions.expectation(probabilities_BNV, self.centers())

    def quantile(self, probabilities_BNV: Tensor, q: float) -> Tensor:
        """Quantile (B, N) of predicted distributions, as `ScalarCodec.quantile`."""
        return self.expand(distributions.quantile(probabilities_BNV, self._edges(), q))

    def _edges(self) -> Tensor:
        return torch.stack([table.values for table in self.tables])

    def _require_columns(self, values_BN: Tensor) -> None:
        count = self.config.num_quantizers
        if values_BN.ndim != 2 or values_BN.shape[1] != count:
            raise ValueError(
                f"a coefficients codec takes (B, {count}), found {tuple(values_BN.shape)}; "
                "give fewer coefficients by padding with NaN"
            )
