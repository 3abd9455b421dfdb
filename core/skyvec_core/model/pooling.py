"""Context vectors of one object -> one vector."""

from __future__ import annotations

from torch import Tensor


def masked_mean(hidden_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """Mean over valid tokens (B, D); NaN for an object without any.

    Padding never counts: averaging it in, as ``encode(...).mean(1)`` does, moves the vector.
    """
    weight_BT1 = valid_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
