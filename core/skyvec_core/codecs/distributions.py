"""Distributions over the codes of a table: middle of a code, expectation, quantiles.

A table holds right edges in ascending order: code c stands for ``(edge[c-1], edge[c]]``, code 0 for
everything up to ``edge[0]``. An edge that is not finite (a published table may end in NaN) makes
its codes unusable: they have no middle, and a distribution is renormalized over the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Shape letters: V code. Leading axes (objects, tokens) are free: edges broadcast to them.


def middles(edges_V: Tensor) -> Tensor:
    """Middle (..., V) of each code's interval; code 0 has no lower edge and gets its own edge."""
    lower_V = _lower_edges(edges_V)
    return lower_V + (edges_V - lower_V) / 2


def expectation(probabilities_V: Tensor, values_V: Tensor) -> Tensor:
    """Mean (...) of the codes' values under probabilities (..., V); NaN where there is no mass.

    Raises
    ------
    TypeError, ValueError
        If the probabilities are no floats, negative, or not as many as the codes.
    """
    shares_V = _shares(probabilities_V, values_V)
    used_V = torch.where(torch.isfinite(values_V), values_V, 0.0).double()
    return (shares_V * used_V).sum(-1).to(values_V.dtype)


def quantile(probabilities_V: Tensor, edges_V: Tensor, q: float) -> Tensor:
    """Value (...) below which a share ``q`` of the mass lies, linear inside a code's interval.

    Raises
    ------
    TypeError, ValueError
        If ``q`` is not in 0..1, or as `expectation`.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile needs q in 0..1, found {q}")
    shares_V = _shares(probabilities_V, middles(edges_V))
    reached_V = shares_V.cumsum(-1)
    reached_V = reached_V / reached_V[..., -1:]
    # The first code with mass that reaches q; the comparisons are False in a row of NaN.
    skipped = (reached_V < q) | (reached_V == 0)
    code_1 = skipped.sum(-1, keepdim=True).clamp(max=edges_V.shape[-1] - 1)
    after = reached_V.gather(-1, code_1)
    before = torch.where(code_1 > 0, reached_V.gather(-1, (code_1 - 1).clamp(min=0)), 0.0)
    upper = edges_V.double().expand_as(shares_V).gather(-1, code_1)
    lower = _lower_edges(edges_V).double().expand_as(shares_V).gather(-1, code_1)
    inside = ((q - before) / (after - before)).clamp(0, 1)
    return torch.lerp(lower, upper, inside)[..., 0].to(edges_V.dtype)


def require_codes(ids: Tensor, num_codes: int, *, what: str) -> None:
    """Refuse ids that are no integers in 0..num_codes-1; a negative one would count from the end.

    Raises
    ------
    TypeError, ValueError
        Naming ``what`` was to be decoded.
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{what}: ids must be integers, found {ids.dtype}")
    if bool(((ids < 0) | (ids >= num_codes)).any()):
        raise ValueError(
            f"{what}: ids must lie in 0..{num_codes - 1}, found {int(ids.min())}..{int(ids.max())}; "
            "leave out tokens that are not valid"
        )


def _lower_edges(edges_V: Tensor) -> Tensor:
    return torch.cat([edges_V[..., :1], edges_V[..., :-1]], dim=-1)


def _shares(probabilities_V: Tensor, values_V: Tensor) -> Tensor:
    """Float64 probabilities that add up to 1 over the codes with a finite value."""
    if not probabilities_V.is_floating_point():
        raise TypeError(f"probabilities must be float, found {probabilities_V.dtype}")
    if probabilities_V.shape[-1] != values_V.shape[-1]:
        raise ValueError(
            f"probabilities for {probabilities_V.shape[-1]} codes, but the codec has "
            f"{values_V.shape[-1]}"
        )
    if bool((probabilities_V < 0).any()):
        raise ValueError("probabilities must not be negative; take the softmax of logits first")
    usable_V = torch.isfinite(values_V)
    kept_V = torch.where(usable_V, probabilities_V.double(), 0.0)
    return kept_V / kept_V.sum(-1, keepdim=True)
