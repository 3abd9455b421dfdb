"""One number <-> one token: plain, logarithmic, and on a fixed grid (redshift).

Tensor names are those of the AION-1 codec folders: ``_quantizer._index_to_val`` (1024 quantiles)
or ``_quantizer.buckets`` (a grid). Codes are the official ones; what differs on purpose is that a
number which was not measured has no valid token, and that a code decodes to the middle of its
interval, not to its upper edge.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from skyvec_core.codecs import distributions
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.quantizers import QuantileTable
from skyvec_core.observations import Observed, Tokens

# Shape letters: B object, N tokens of one modality (here 1), V code.


class ScalarCodec(Codec):
    """A number as the index of its quantile."""

    rows: ClassVar[int] = 1024
    """Rows of an `encode` call that the caller pads to."""
    unused_codes: ClassVar[int] = 0
    """Codes at the end of the transformer's vocabulary that `encode` never gives."""

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

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Tokens (B, 1) of values (B,) or (B, 1); NaN and infinities are not valid.

        Parameters
        ----------
        compat
            As the official package: every token is valid, NaN and inf get the last code and -inf
            the first.

        Raises
        ------
        TypeError, ValueError
            If the values are no float tensor of that shape.
        """
        values = require_floats(observed, what="a scalar codec", shape="(B,) or (B, 1)")
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise ValueError(f"a scalar codec takes (B,) or (B, 1), found {tuple(values.shape)}")
        valid_B = torch.isfinite(values) | compat
        codes_B = self.quantizer.codes(self.compress(values.float()))
        return Tokens(ids_BN=codes_B[:, None], valid_BN=valid_B[:, None])

    def decode(self, ids_BN: Tensor, *, compat: bool = False) -> Tensor:
        """Middle (B,) of the interval of each code (B, 1), in the modality's unit.

        Parameters
        ----------
        compat
            Upper edge of the interval, as the official package.

        Raises
        ------
        TypeError, ValueError
            If an id is no code of this codec, -1 included, or the shape is not (B, 1).
        """
        if ids_BN.ndim != 2 or ids_BN.shape[1] != 1:
            raise ValueError(f"a scalar codec decodes ids (B, 1), found {tuple(ids_BN.shape)}")
        distributions.require_codes(ids_BN, self.quantizer.values.numel(), what="scalar codec")
        codes_B = ids_BN[:, 0].long()
        if compat:
            return self.expand(self.quantizer.lookup(codes_B))
        return self.centers()[codes_B]

    def centers(self) -> Tensor:
        """Value (V,) that stands for each code, in the modality's unit.

        It is the middle of the code's interval on the codec's own scale; code 0, which has no lower
        edge, gets the lowest value of the table. NaN where a published table is NaN.
        """
        return self.expand(distributions.middles(self.quantizer.values))

    def expectation(self, probabilities_BV: Tensor) -> Tensor:
        """Mean (B,) of a predicted distribution over the codes, in the modality's unit.

        Parameters
        ----------
        probabilities_BV
            Not negative; renormalized over the codes that stand for a value. An entry for each code
            of the transformer's vocabulary is welcome. A row without mass, or with NaN, gives NaN.

        Raises
        ------
        TypeError, ValueError
            If they are no floats, negative, or neither as many as the codes nor the vocabulary.
        """
        return distributions.expectation(self._of_codes(probabilities_BV), self.centers())

    def quantile(self, probabilities_BV: Tensor, q: float) -> Tensor:
        """Quantile (B,) of a predicted distribution, in the modality's unit.

        Inside an interval the mass is spread evenly on the codec's own scale; all mass of code 0
        lies at the lowest value of the table.

        Parameters
        ----------
        probabilities_BV
            As for `expectation`.
        q
            Share of the mass, 0..1; 0.5 gives the median.
        """
        kept_BV = self._of_codes(probabilities_BV)
        return self.expand(distributions.quantile(kept_BV, self.quantizer.values, q))

    def _of_codes(self, probabilities_BV: Tensor) -> Tensor:
        size = self.quantizer.values.numel()
        if probabilities_BV.shape[-1] == size + self.unused_codes:
            return probabilities_BV[..., :size]
        return probabilities_BV


class LogScalarCodec(ScalarCodec):
    """A positive number as the quantile of its natural logarithm; smaller values share a floor."""

    def __init__(self, *, codebook_size: int = 1024, min_log_value: float = -3.0) -> None:
        super().__init__(codebook_size=codebook_size)
        self.min_log_value = min_log_value

    def compress(self, values: Tensor) -> Tensor:
        """Natural logarithm, floored at ``min_log_value``."""
        return values.clamp(min=math.exp(self.min_log_value)).log()

    def expand(self, values: Tensor) -> Tensor:
        """Exponential."""
        return values.exp()


class GridScalarCodec(ScalarCodec):
    """A number on a fixed grid; the grid is a tensor of the folder and is never rebuilt."""

    unused_codes: ClassVar[int] = 1

    def __init__(self, *, codebook_size: int = 1024) -> None:
        super().__init__(codebook_size=codebook_size)
        self._quantizer = QuantileTable(codebook_size, name="buckets")

    def set_grid(self, low: float, high: float) -> None:
        """Equally spaced grid from ``low`` to ``high``, both included."""
        self.quantizer.values.copy_(torch.linspace(low, high, self.quantizer.values.numel()))


def require_floats(observed: Observed, *, what: str, shape: str) -> Tensor:
    """The observed values, if they are a float tensor.

    Raises
    ------
    TypeError
        Naming what takes them, and how a value that was not measured is written.
    """
    if not isinstance(observed, Tensor):
        raise TypeError(f"{what} takes a tensor {shape}, found {type(observed).__name__}")
    if not observed.is_floating_point():
        raise TypeError(
            f"{what} takes floats {shape} with NaN where nothing was measured, "
            f"found {observed.dtype}"
        )
    return observed
