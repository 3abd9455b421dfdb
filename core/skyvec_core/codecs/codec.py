"""What all codecs have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from skyvec_core.observations import Observed, Tokens


class Codec(nn.Module):
    """Observations of one modality <-> codes. Tensor names are those of the published folders."""

    rows: ClassVar[int]
    """Objects that the caller fills every call of `encode` up to: equal shapes make equal bits."""

    def prepare(self, precision: Literal["float32", "bfloat16"]) -> None:
        """Get ready for inference alone, where the weights are now; by default there is nothing.

        Later changes of the weights need not reach what was prepared; ``state_dict()`` stays.
        """

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Codes (B, N) and which of them are valid; the caller's tensors stay untouched.

        Parameters
        ----------
        observed
            Of the kind that the codec takes, on its device; any other is a TypeError.
        compat
            Give the official package's codes also where it is wrong.
        """
        raise NotImplementedError
