"""Small trainable changes of frozen weights, as parametrizations of torch.

Every change starts at zero, so training starts at the model itself, and weight decay pulls towards
it. `merge` writes the changes into the weights: what is left is a plain model again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skyvec_core.model.encoder_decoder import EncoderDecoder

# Shape letters: O output, I input, R rank, V row of a table, n row that is changed, D width.


class LowRank(nn.Module):
    """``W + (alpha / R) up down`` (LoRA, arXiv 2106.09685)."""

    def __init__(
        self, weight_OI: Tensor, *, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        outputs, inputs = weight_OI.shape
        self.scale = alpha / rank
        self.down_RI = nn.Parameter(torch.empty(rank, inputs))
        self.up_OR = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down_RI, a=5**0.5, generator=generator)

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The changed weight."""
        return torch.addmm(weight_OI, self.up_OR, self.down_RI, alpha=self.scale)


class Shift(nn.Module):
    """``W + share x change``: all of W moves, at ``share`` times the learning rate of the loop.

    Adam's steps do not depend on the scale of a gradient, so the share acts on the rate alone.
    """

    def __init__(self, weight: Tensor, *, share: float) -> None:
        super().__init__()
        self.share = share
        self.change = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return weight + self.share * self.change


class Rows(nn.Module):
    """Some rows of a table move, the others stay bit for bit."""

    rows_n: Tensor

    def __init__(self, weight_VD: Tensor, rows_n: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows_n", rows_n)
        self.change_nD = nn.Parameter(weight_VD.new_zeros(len(rows_n), weight_VD.shape[1]))

    def forward(self, weight_VD: Tensor) -> Tensor:
        """The changed table."""
        return weight_VD.index_add(0, self.rows_n, self.change_nD)


def add_low_rank(
    model: EncoderDecoder,
    *,
    rank: int,
    alpha: float,
    generator: torch.Generator,
    parts: Sequence[str] = ("encoder",),
) -> int:
    """Freeze the model but for low-rank changes of the linear layers; number of these layers."""
    model.requires_grad_(requires_grad=False)
    layers = [layer for part in parts for layer in _linears(getattr(model, part))]
    for layer in layers:
        change = LowRank(layer.weight, rank=rank, alpha=alpha, generator=generator)
        parametrize.register_parametrization(layer, "weight", change)
    return len(layers)


def add_rows(model: EncoderDecoder, codes: Tensor, domains: Tensor) -> None:
    """Let rows of the code and head tables, and of the modality embeddings, move as well."""
    for module, name, rows in (
        (model.token_table, "weight", codes),
        (model, "head_table", codes),
        (model.domain_table, "weight", domains),
    ):
        table = getattr(module, name).requires_grad_(requires_grad=False)
        parametrize.register_parametrization(module, name, Rows(table, rows))


def add_shifts(model: EncoderDecoder, *, share: float) -> None:
    """Let the encoder side move at a share of the learning rate; the decoder stays."""
    model.requires_grad_(requires_grad=False)
    moved = (model.token_table, model.domain_table, model.encoder, model.encoder_norm,
             model.decoder_proj_context)  # fmt: skip
    for part in moved:
        for module in list(part.modules()):
            for name, weight in list(module.named_parameters(recurse=False)):
                shift = Shift(weight, share=share)
                parametrize.register_parametrization(module, name, shift)


def merge(model: nn.Module) -> None:
    """Write all changes into the weights, and leave a plain, frozen module."""
    with torch.no_grad():
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                for name in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(requires_grad=False)


def _linears(part: nn.Module) -> Iterator[nn.Linear]:
    for module in part.modules():
        if isinstance(module, nn.Linear):
            yield module
