"""Contrastive losses over the objects of all ranks.

Each rank returns its share: shares, and the gradients of the parameters, add up to those of one
process that has the whole batch. Pairs whose keys are equal are matches wherever they stand in the
batch, so an object that was observed twice is never pushed away from itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from skyvec_training.heads.ranks import gathered, gathered_keys

# Shape letters: m object of this rank, B object of all ranks, c column of a chunk, D width.

COLUMNS = 2048
"""Pairs of the sigmoid loss are computed for so many columns at once, and again for the gradient:
a batch of 16k then needs 130 MB for a block of them instead of a gigabyte for each step of them."""


def sigmoid_share(
    ours_mD: Tensor,
    theirs_mD: Tensor,
    keys_m: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    everywhere: bool = True,
) -> Tensor:
    """Share of this rank in the SigLIP loss: summed over pairs, divided by the global batch.

    Parameters
    ----------
    ours_mD, theirs_mD
        Unit vectors of the same objects by two towers.
    keys_m
        What object, int64; equal keys match.
    scale, bias
        Of the logits, (1,).
    everywhere
        Contrast with the objects of all ranks; else with those of this rank alone.
    """
    theirs_BD = gathered(theirs_mD) if everywhere else theirs_mD
    keys_B = gathered_keys(keys_m) if everywhere else keys_m
    total = ours_mD.new_zeros(())
    for start in range(0, len(keys_B), COLUMNS):
        columns = slice(start, start + COLUMNS)
        total = total + checkpoint(
            _pairs, ours_mD, theirs_BD[columns], keys_m, keys_B[columns], scale, bias,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return total / len(keys_B)


def softmax_share(
    ours_mD: Tensor,
    theirs_mD: Tensor,
    keys_m: Tensor,
    *,
    scale: Tensor,
    everywhere: bool = True,
) -> Tensor:
    """Share of this rank in InfoNCE in both directions, averaged over the global batch.

    With several matches in a row the target is spread evenly over them.
    """
    ours_BD, theirs_BD, keys_B = ours_mD, theirs_mD, keys_m
    if everywhere:
        ours_BD, theirs_BD, keys_B = (
            gathered(ours_mD), gathered(theirs_mD), gathered_keys(keys_m),
        )  # fmt: skip
    match_mB = (keys_m[:, None] == keys_B).float()
    target_mB = match_mB / match_mB.sum(1, keepdim=True)
    losses = [
        functional.cross_entropy(scale * mine @ all_BD.T, target_mB, reduction="sum")
        for mine, all_BD in ((ours_mD, theirs_BD), (theirs_mD, ours_BD))
    ]
    return (losses[0] + losses[1]) / (2 * len(keys_B))


def recall(
    ours_BD: Tensor, theirs_BD: Tensor, keys_B: Tensor, *, k: int, distinct: bool = False
) -> tuple[float, float]:
    """Share of objects with a match among the k nearest of the other tower, and that of chance.

    Parameters
    ----------
    distinct
        Search each key once: many objects share one text, and ten copies of it are no ten answers.
    """
    theirs_keys = keys_B
    if distinct:
        theirs_keys, place_B = torch.unique(keys_B, return_inverse=True)
        # Where several rows write to one place, any of these equal vectors will do.
        theirs_BD = theirs_BD.new_zeros(len(theirs_keys), theirs_BD.shape[1]).index_copy(
            0, place_B, theirs_BD
        )
    n = len(theirs_keys)
    k = min(k, n)
    matches = keys_B[:, None] == theirs_keys
    nearest = (ours_BD @ theirs_BD.T).topk(k, dim=1).indices
    found = matches.gather(1, nearest).any(1).float().mean()
    # Of n objects with p matches, k drawn without replacement miss all of them with this chance.
    drawn_k = torch.arange(k, dtype=torch.float64)
    missed_Bk = ((n - matches.sum(1, keepdim=True) - drawn_k) / (n - drawn_k)).clamp(min=0)
    return float(found), float(1 - missed_Bk.prod(1).mean())


def _pairs(
    ours_mD: Tensor, theirs_cD: Tensor, keys_m: Tensor, keys_c: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    logits_mc = scale * (ours_mD @ theirs_cD.T) + bias
    sign_mc = torch.where(keys_m[:, None] == keys_c, 1.0, -1.0)
    return -functional.logsigmoid(sign_mc * logits_mc).sum()
