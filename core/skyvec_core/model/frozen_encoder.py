"""The encoder for inference alone: the same numbers as `EncoderDecoder.encode`, sooner.

What differs from the trainable form: packed weights (`PackedLinear`), no mask where there is no
padding, the feed-forward in pieces that stay in the processor's cache, and for bfloat16 on a CPU an
attention made of matrix products, since the library's own is slower there than in float32.
docs/speed.md has what each of them gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.model.blocks import EPSILON, EncoderBlock
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.packed import PackedLinear

# Shape letters: B object, T token, P all tokens of a batch, D model width, N head, H head width.

Precision = Literal["float32", "bfloat16"]
FEED_FORWARD_ROWS = {torch.float32: 320, torch.bfloat16: 1280}
"""Most tokens that pass the feed-forward together on a CPU; docs/speed.md has the measurements."""
_LARGEST_EXPONENT = 100.0
"""Attention logits (base 2) under which exp2 needs no maximum subtracted; float32 ends at 127."""


class FrozenEncoder:
    """Context vectors from the weights of a transformer.

    Parameters
    ----------
    model
        Its encoder side is copied, or shared where the layout and type stay.
    device
        Where to compute; where the weights are by default.
    precision
        ``bfloat16`` keeps embeddings, residuals and the output in float32 and does the linear
        layers and attention in bfloat16.
    compiled
        Run the layers through ``torch.compile`` with static shapes; on a GPU as CUDA graphs.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        *,
        device: torch.device | None = None,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        source = model.encoder_norm.weight.device
        self.device = device or source
        self.num_heads = model.config.num_heads
        positions = torch.arange(len(model.domain_of_position), device=source)
        self.token_table = model.token_table.weight.detach().to(self.device)
        self.embedding_table = model.embedding(positions).detach().to(self.device)
        self.norm = model.encoder_norm.weight.detach().to(self.device)
        ready = partial(_ready, dtype=self.dtype, device=self.device, pack=not compiled)
        self.project = ready(model.decoder_proj_context)
        self.layers = [
            _Layer.of(block, ready)  # type: ignore[arg-type]  # ModuleList is untyped
            for block in model.encoder
        ]
        # A compiler would unroll the pieces.
        self._in_pieces = self.device.type == "cpu" and not compiled
        self._run: Callable[[Tensor, Tensor | None], Tensor] = self._layers
        if compiled:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._run = torch.compile(self._layers, dynamic=False, mode=mode)

    def __call__(self, codes_BT: Tensor, positions_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
        """Context vectors (B, T, D), float32.

        Parameters
        ----------
        codes_BT, positions_BT
            Rows of the joint tables, on the device of the encoder.
        valid_BT
            False for padding; None if there is none.
        """
        embedding_BTD = self.embedding_table[positions_BT]
        x_BTD = self.token_table[codes_BT] + embedding_BTD
        mask = None if valid_BT is None else _additive_mask(valid_BT, self.dtype)
        return self._run(x_BTD, mask) + embedding_BTD

    def _layers(self, x_BTD: Tensor, mask_B11T: Tensor | None) -> Tensor:
        objects, tokens, width = x_BTD.shape
        x_PD = x_BTD.reshape(-1, width)
        for layer in self.layers:
            # In place throughout: fresh pages from the system would cost up to a fifth of the time.
            x_PD += self._attend(layer, x_PD, mask_B11T, (objects, tokens))
            self._feed_forward(layer, x_PD)
        projected = self.project(_norm(x_PD, self.norm).to(self.dtype)).float()
        return projected.view(objects, tokens, width)

    def _attend(
        self, layer: _Layer, x_PD: Tensor, mask_B11T: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        h_PD = _norm(x_PD, layer.norm1).to(self.dtype)
        qkv_BTNH = layer.qkv(h_PD).view(*shape, 3, self.num_heads, -1).unbind(2)
        q, k, v = (each.transpose(1, 2) for each in qkv_BTNH)
        q, k = _norm(q, layer.q_norm), _norm(k, layer.k_norm)
        if mask_B11T is None and q.dtype == torch.bfloat16 and q.device.type == "cpu":
            y_BNTH = _attention_by_products(q, k, v, bounded=layer.bounded)
        else:
            expanded = None if mask_B11T is None else mask_B11T.expand(-1, -1, shape[1], -1)
            y_BNTH = functional.scaled_dot_product_attention(q, k, v, attn_mask=expanded)
        return layer.proj(y_BNTH.transpose(1, 2).reshape(len(x_PD), -1))

    def _feed_forward(self, layer: _Layer, x_PD: Tensor) -> None:
        pieces = -(-len(x_PD) // FEED_FORWARD_ROWS[self.dtype]) if self._in_pieces else 1
        for x in x_PD.tensor_split(pieces):
            h = _norm(x, layer.norm2).to(self.dtype)
            x.add_(layer.fc2(functional.silu(layer.fc1(h), inplace=True).mul_(layer.fc3(h))))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    norm1: Tensor
    qkv: PackedLinear
    q_norm: Tensor
    k_norm: Tensor
    proj: PackedLinear
    norm2: Tensor
    fc1: PackedLinear
    fc2: PackedLinear
    fc3: PackedLinear
    bounded: bool
    """Whether no attention logit can overflow exp2."""

    @classmethod
    def of(cls, block: EncoderBlock, ready: Callable[[nn.Linear], PackedLinear]) -> _Layer:
        attention, mlp = block.attn, block.mlp
        qkv = ready(attention.qkv)
        q_norm, k_norm = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        # A normalized head of width H has length sqrt(H), so |q.k| <= H max|wq wk|, over sqrt(H).
        largest = float((q_norm * k_norm).abs().amax()) * math.sqrt(len(q_norm)) * math.log2(math.e)
        return cls(
            norm1=block.norm1.weight.detach().to(qkv.weight.device),
            qkv=qkv,
            q_norm=q_norm.to(qkv.weight.device, qkv.weight.dtype),
            k_norm=k_norm.to(qkv.weight.device, qkv.weight.dtype),
            proj=ready(attention.proj),
            norm2=block.norm2.weight.detach().to(qkv.weight.device),
            fc1=ready(mlp.fc1),
            fc2=ready(mlp.fc2),
            fc3=ready(mlp.fc3),
            bounded=largest < _LARGEST_EXPONENT,
        )


def _ready(
    linear: nn.Linear, *, dtype: torch.dtype, device: torch.device, pack: bool
) -> PackedLinear:
    own = {name: tensor.detach().to(device, dtype) for name, tensor in linear.named_parameters()}
    return PackedLinear(own["weight"], own.get("bias"), pack=pack)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.layer_norm(x, weight.shape, weight, None, EPSILON)


def _additive_mask(valid_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, T): 0 for a valid key, -inf else; a row without any sees key 0 and is not read."""
    first_T = torch.arange(valid_BT.shape[1], device=valid_BT.device) == 0
    keys_BT = valid_BT | (~valid_BT.any(1, keepdim=True) & first_T)
    mask = torch.zeros(valid_BT.shape, dtype=dtype, device=valid_BT.device)
    return mask.masked_fill(~keys_BT, -torch.inf)[:, None, None, :]


def _attention_by_products(q: Tensor, k: Tensor, v: Tensor, *, bounded: bool) -> Tensor:
    """Attention (B, N, T, H), one head at a time, so that its (T, T) scores stay in the cache."""
    q = q * (math.log2(math.e) / math.sqrt(q.shape[-1])) if bounded else q / math.sqrt(q.shape[-1])
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    for index in range(q.shape[0] * q.shape[1]):
        place = divmod(index, q.shape[1])
        scores_TT = q[place] @ k[place].T
        if bounded:
            weight_TT = scores_TT.exp2_()
            out[place] = (weight_TT @ v[place]) / weight_TT.sum(-1, keepdim=True)
        else:
            out[place] = scores_TT.softmax(-1) @ v[place]
    return out
