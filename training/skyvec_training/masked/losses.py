"""Cross-entropy per modality, weighted by how many targets each has in the whole batch.

Counts are taken over the batch before any division, so how a batch is split never changes the
loss, and a modality without a target has no say in it. Targets are put in the order of their
domains on the host, where the counts are known: no device has to wait for a shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.vocabulary import Vocabulary

# Shape letters: n target, V codes of one domain, M domain, D model width, K near code.


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Targets of some objects, sorted by domain."""

    places_n: Tensor
    """Where each is among the padded targets (B x Q)."""
    codes_n: Tensor
    """Codes within their domains."""
    counts: tuple[int, ...]
    """Targets of each domain."""


def sort_targets(
    codes_BQ: Tensor, positions_BQ: Tensor, valid_BQ: Tensor, vocabulary: Vocabulary
) -> Targets:
    """Targets of a batch in the order of their domains; everything is on the host."""
    places_n = valid_BQ.flatten().nonzero()[:, 0]
    domains_n = vocabulary.domain_of_position()[positions_BQ.flatten()[places_n]]
    order_n = domains_n.argsort(stable=True)
    counts_M = torch.bincount(domains_n, minlength=len(vocabulary.modalities))
    return Targets(
        places_n=places_n[order_n],
        codes_n=codes_BQ.flatten()[places_n[order_n]],
        counts=tuple(counts_M.tolist()),
    )


def sums_by_domain(
    model: EncoderDecoder,
    hidden_nD: Tensor,
    codes_n: Tensor,
    counts: tuple[int, ...],
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """Summed cross-entropy (M,) in nats of each domain, over targets sorted by domain.

    Parameters
    ----------
    codes_n
        Codes within their domains.
    counts
        Targets of each domain.
    smoothing
        Width in bins of the Gaussian over a scalar's neighbouring codes; 0 is the plain loss.
    """
    sums: list[Tensor] = []
    parts = zip(
        model.vocabulary.modalities,
        model.heads(),
        torch.split(hidden_nD, list(counts)),
        torch.split(codes_n, list(counts)),
        strict=True,
    )
    for modality, head_VD, hidden_mD, codes_m in parts:
        if not len(codes_m):
            sums.append(hidden_nD.new_zeros((), dtype=torch.float32))
            continue
        logits_mV = (hidden_mD @ head_VD.T).float()
        if smoothing > 0 and modality.kind == "scalar":
            sums.append(_smoothed(logits_mV, codes_m, smoothing))
        else:
            sums.append(functional.cross_entropy(logits_mV, codes_m, reduction="sum"))
    return torch.stack(sums)


def domain_coefficients(counts_M: Tensor, multipliers_M: Tensor, *, power: float) -> Tensor:
    """What the loss makes of each domain's sum: w_m / sum of w_m n_m, w_m = multiplier x n_m^-power.

    ``power`` 0 weighs every target alike (AION-1), 1 every modality alike (4M's default).
    """
    present = counts_M > 0
    weight_M = torch.where(present, multipliers_M * counts_M.clamp(min=1).float() ** -power, 0.0)
    return weight_M / (weight_M * counts_M).sum()


def weighted_loss(
    sums_M: Tensor, counts_M: Tensor, multipliers_M: Tensor, *, power: float
) -> Tensor:
    """Sum of w_m CE_m over sum of w_m n_m; see `domain_coefficients`."""
    return (domain_coefficients(counts_M, multipliers_M, power=power) * sums_M).sum()


def normalized(vocabulary: Vocabulary, sums_M: Tensor, counts_M: Tensor) -> Mapping[str, float]:
    """Mean cross-entropy of each domain over log V: 1 is a blind guess; absent domains left out."""
    found = zip(vocabulary.modalities, sums_M.tolist(), counts_M.tolist(), strict=True)
    return {
        modality.token_key: total / count / math.log(modality.vocabulary)
        for modality, total, count in found
        if count > 0
    }


def _smoothed(logits_nV: Tensor, codes_n: Tensor, width: float) -> Tensor:
    reach = math.ceil(3 * width)
    offsets_K = torch.arange(-reach, reach + 1, device=logits_nV.device)
    weights_K = torch.exp(-0.5 * (offsets_K / width) ** 2)
    near_nK = (codes_n[:, None] + offsets_K).clamp(0, logits_nV.shape[1] - 1)
    log_share_nK = logits_nV.log_softmax(-1).gather(1, near_nK)
    return -(log_share_nK * (weights_K / weights_K.sum())).sum()
