"""Cross-entropy per modality, weighted by how many targets each has in the whole batch.

Counts are taken over the batch before any division, so how a batch is split never changes the
loss, and a modality without a target has no say in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from skyvec_core.model.encoder_decoder import EncoderDecoder

# Shape letters: n target, V codes of one domain, M domain, D model width.


def sums_by_domain(
    model: EncoderDecoder,
    hidden_nD: Tensor,
    codes_n: Tensor,
    domains_n: Tensor,
    *,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (M,) in nats and number of targets (M,) of each domain.

    Parameters
    ----------
    codes_n
        Codes within their domains.
    domains_n
        Index of the domain in the model's vocabulary.
    smoothing
        Width in bins of the Gaussian over a scalar's neighbouring codes; 0 is the plain loss.
    """
    modalities = model.vocabulary.modalities
    sums: list[Tensor] = []
    for index, modality in enumerate(modalities):
        chosen = (domains_n == index).nonzero()[:, 0]
        logits_nV = model.logits(hidden_nD[chosen], modality.token_key).float()
        if smoothing > 0 and modality.kind == "scalar":
            sums.append(_smoothed(logits_nV, codes_n[chosen], smoothing))
        else:
            sums.append(functional.cross_entropy(logits_nV, codes_n[chosen], reduction="sum"))
    return torch.stack(sums), torch.bincount(domains_n, minlength=len(modalities))


def weighted_loss(
    sums_M: Tensor, counts_M: Tensor, multipliers_M: Tensor, *, power: float
) -> Tensor:
    """Sum of w_m CE_m over sum of w_m n_m, with w_m = multiplier x n_m^-power.

    ``power`` 0 weighs every target alike (AION-1), 1 every modality alike (4M's default).
    """
    present = counts_M > 0
    weight_M = torch.where(present, multipliers_M * counts_M.clamp(min=1).float() ** -power, 0.0)
    return (weight_M * sums_M).sum() / (weight_M * counts_M).sum()


def normalized(model: EncoderDecoder, sums_M: Tensor, counts_M: Tensor) -> Mapping[str, float]:
    """Mean cross-entropy of each domain over log V: 1 is a blind guess; absent domains left out."""
    return {
        modality.token_key: float(sums_M.detach()[index])
        / int(counts_M[index])
        / math.log(modality.vocabulary)
        for index, modality in enumerate(model.vocabulary.modalities)
        if counts_M[index] > 0
    }


def _smoothed(logits_nV: Tensor, codes_n: Tensor, width: float) -> Tensor:
    reach = math.ceil(3 * width)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / width) ** 2)
    near_nK = (codes_n[:, None] + offsets).clamp(0, logits_nV.shape[1] - 1)
    log_share_nK = logits_nV.log_softmax(-1).gather(1, near_nK)
    return -(log_share_nK * (weights / weights.sum())).sum()
