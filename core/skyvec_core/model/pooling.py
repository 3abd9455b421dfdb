"""Context vectors of one object -> one vector: means over tokens and over modalities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Shape letters: B object, T token, K domain, D model width.


def masked_mean(hidden_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """Mean over valid tokens (B, D); NaN for an object without any.

    Padding never counts: averaging it in, as ``encode(...).mean(1)`` does, moves the vector.
    """
    weight_BT1 = valid_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


def domain_means(hidden_BTD: Tensor, valid_BT: Tensor, domains_BT: Tensor, *, count: int) -> Tensor:
    """Mean over the valid tokens of each of ``count`` domains (B, K, D); NaN where none is."""
    means = [masked_mean(hidden_BTD, valid_BT & (domains_BT == index)) for index in range(count)]
    return torch.stack(means, dim=1)


def mean_of_domains(
    hidden_BTD: Tensor, valid_BT: Tensor, domains_BT: Tensor, *, count: int
) -> Tensor:
    """Mean of the means of the domains that an object has (B, D), each with the same weight.

    576 tokens of an image then weigh no more than one redshift; a mean over tokens loses accuracy
    when modalities are mixed (AION-1, table 6). Differentiable; 0 for an object without any token.
    """
    member_BTK = functional.one_hot(domains_BT, count) * valid_BT[..., None]
    sizes_BK = member_BTK.sum(1)
    domains_B1 = (sizes_BK > 0).sum(1, keepdim=True)
    share_BK = 1 / (sizes_BK.clamp(min=1) * domains_B1.clamp(min=1))
    weight_BT = share_BK.gather(1, domains_BT) * valid_BT
    return (hidden_BTD * weight_BT[..., None].to(hidden_BTD.dtype)).sum(1)
