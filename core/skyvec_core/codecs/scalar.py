"""One number <-> one token: plain, logarithmic, and on a fixed grid (redshift).

Tensor names are those of the AION-1 codec folders: ``_quantizer._index_to_val`` (1024 quantiles)
or ``_quantizer.buckets`` (a grid).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skyvec_core.codecs.quantizers import QuantileTable
from skyvec_core.observations import Tokens


class ScalarCodec(nn.Module):
    """A number as the index of its quantile."""

    def __init__(self, *, codebook_size: int = 1024) -> None:
        super().__init__()
        self._quantizer = QuantileTable(codebook_size)

    @property
    def quantizer(self) -> QuantileTable:
        """The table of values, in the codec's own (perhaps logarithmic) scale."""
        return self._quantizer

    def fit(self, values: Tensor) -> None:
        """Fit the quantiles to a sample of values (n,), in the modality's unit."""
        self.quantizer.fit(self.compress(values[torch.isfinite(values)]))

    def compress(self, values: Tensor) -> Tensor:
        """Scale on which the table is kept."""
        return values

    def expand(self, values: Tensor) -> Tensor:
        """Inverse of `compress`."""
        return values

    def encode(self, values: Tensor) -> Tokens:
        """Tokens (B, 1) of values (B,); NaN and infinities are not valid."""
        measured = torch.isfinite(values)
        filled = torch.where(measured, values, torch.ones_like(values)).float()
        codes = self.quantizer.codes(self.compress(filled))
        return Tokens(ids_BN=codes[:, None], valid_BN=measured[:, None])

    def decode(self, ids_BN: Tensor) -> Tensor:
        """Right edge (B,) of the interval of each code, in the modality's unit."""
        return self.expand(self.quantizer.lookup(ids_BN[:, 0]))


class LogScalarCodec(ScalarCodec):
    """A positive number as the quantile of its natural logarithm; smaller values share a floor."""

    def __init__(self, *, codebook_size: int = 1024, min_log_value: float = -3.0) -> None:
        super().__init__(codebook_size=codebook_size)
        self.min_log_value = min_log_value

    def compress(self, values: Tensor) -> Tensor:
        """Natural logarithm, floored at ``min_log_value``."""
        floor = torch.tensor(self.min_log_value, dtype=values.dtype).exp()
        return values.clamp(min=floor).log()

    def expand(self, values: Tensor) -> Tensor:
        """Exponential."""
        return values.exp()


class GridScalarCodec(ScalarCodec):
    """A number on a fixed grid; the grid is a tensor of the folder and is never rebuilt."""

    def __init__(self, *, codebook_size: int = 1024) -> None:
        super().__init__(codebook_size=codebook_size)
        self._quantizer = QuantileTable(codebook_size, name="buckets")

    def set_grid(self, low: float, high: float) -> None:
        """Equally spaced grid from ``low`` to ``high``, both included."""
        self.quantizer.values.copy_(torch.linspace(low, high, self.quantizer.values.numel()))
