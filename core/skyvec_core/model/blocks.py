"""Attention, gated feed-forward and the two kinds of transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.model.config import TransformerConfig

# Shape letters: B object, T token, S context token, D model width, N head, H head width; n a token
# of any object, F features.

EPSILON = 1e-6

KeysValues = tuple[Tensor, Tensor]
"""Normalized keys and values (B, N, S, H) of a context in one layer."""


class Norm(nn.LayerNorm):
    """Layer norm with a weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPSILON, bias=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the tokens of padded rows (B, T) lie once their padding is left out.

    Layers that treat every token alone then cost nothing for padding; attention gets its rows back.
    """

    places_n: Tensor
    """Row x T + column of each token, ascending."""
    shape: tuple[int, int]

    @classmethod
    def of(cls, valid_BT: Tensor) -> Self:
        """The tokens that are valid; on the host, since their number becomes a shape."""
        objects, tokens = valid_BT.shape
        return cls(valid_BT.flatten().nonzero()[:, 0], (objects, tokens))

    def packed(self, x_BTF: Tensor) -> Tensor:
        """Without padding (n, F)."""
        return x_BTF.flatten(0, 1).index_select(0, self.places_n)

    def padded(self, x_nF: Tensor) -> Tensor:
        """With zeros for padding (B, T, F)."""
        x_pF = x_nF.new_zeros(self.shape[0] * self.shape[1], x_nF.shape[1])
        return x_pF.index_copy(0, self.places_n, x_nF).view(*self.shape, -1)

    def to(self, device: torch.device) -> Self:
        """On another device."""
        return type(self)(self.places_n.to(device, non_blocking=True), self.shape)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, queries and keys normalized per head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width = config.dim // config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def forward(self, x_BTD: Tensor, keep_B1TT: Tensor, rows: Rows | None = None) -> Tensor:
        """Attend where ``keep`` is True; every query needs at least one key.

        With ``rows``, the tokens come and go without padding (n, D).
        """
        qkv = torch.unflatten(_padded(self.qkv(x_BTD), rows), -1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return _attend(self, q, self.k_norm(k), v, keep_B1TT, rows)

    def extend(
        self, x_BTD: Tensor, past: KeysValues | None, keep_B1TS: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Attend to earlier tokens, of which only keys and values are left, and to each other.

        ``keep_B1TS`` counts the earlier tokens first; the second result holds all S of them.
        """
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = joined(past, (self.k_norm(k), v))
        return _attend(self, q, *seen, keep_B1TS), seen


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to a context."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width = config.dim // config.num_heads
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.kv = nn.Linear(config.dim, 2 * config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def keys_values(self, context_BSD: Tensor, rows: Rows | None = None) -> KeysValues:
        """What `forward` reads of a context; each token's share depends on that token alone."""
        kv = torch.unflatten(_padded(self.kv(context_BSD), rows), -1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        return self.k_norm(k), v

    def forward(
        self, x_BTD: Tensor, memory: KeysValues, keep_B1TS: Tensor, rows: Rows | None = None
    ) -> Tensor:
        """Attend to the context where ``keep`` is True."""
        q = torch.unflatten(_padded(self.q(x_BTD), rows), -1, (self.num_heads, -1))
        return _attend(self, q.transpose(1, 2), *memory, keep_B1TS, rows)


def joined(past: KeysValues | None, new: KeysValues) -> KeysValues:
    """Keys and values of earlier tokens, then of new ones."""
    if past is None:
        return new
    return torch.cat([past[0], new[0]], dim=2), torch.cat([past[1], new[1]], dim=2)


def _padded(x: Tensor, rows: Rows | None) -> Tensor:
    return x if rows is None else rows.padded(x)


def _attend(
    layer: SelfAttention | CrossAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    rows: Rows | None = None,
) -> Tensor:
    """Attention with keys that are normalized already."""
    y_BNTH = _weighted_values(layer.q_norm(q), k, v, keep)
    y_BTD = y_BNTH.transpose(1, 2).flatten(2)
    out_BTD: Tensor = layer.proj(y_BTD if rows is None else rows.packed(y_BTD))
    return out_BTD


def _weighted_values(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attention by torch's fused kernel, but for the one case where plain products are faster.

    On a processor in bfloat16, the fused backward pass takes four times theirs (torch 2.13).
    ``torch.nn.attention.sdpa_kernel`` can ask for the fused one still.
    """
    is_trained = q.requires_grad and torch.is_autocast_enabled("cpu")
    may_be_plain: bool = torch.backends.cuda.math_sdp_enabled()  # type: ignore[no-untyped-call]
    if not (is_trained and q.device.type == "cpu" and may_be_plain):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    scores_BNTS = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    y_BNTH: Tensor = scores_BNTS.masked_fill(~keep, -torch.inf).softmax(-1) @ v
    return y_BNTH


def _mean_of_values(layer: SelfAttention, x_BTD: Tensor) -> Tensor:
    """(B, 1, D): attention with equal weights; the mean is linear, so it comes first."""
    value_weight = layer.qkv.weight.chunk(3)[2]
    out_B1D: Tensor = layer.proj(functional.linear(x_BTD.mean(1, keepdim=True), value_weight))
    return out_B1D


class GatedMlp(nn.Module):
    """SwiGLU: ``fc2(silu(fc1 x) * fc3 x)``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_hidden, bias=False)
        self.fc3 = nn.Linear(config.dim, config.mlp_hidden, bias=False)
        self.fc2 = nn.Linear(config.mlp_hidden, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply to every token alone."""
        out_BTD: Tensor = self.fc2(functional.silu(self.fc1(x_BTD)) * self.fc3(x_BTD))
        return out_BTD


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(config.dim), SelfAttention(config)
        self.norm2, self.mlp = Norm(config.dim), GatedMlp(config)

    def forward(self, x_BTD: Tensor, keep_B1TT: Tensor, rows: Rows | None = None) -> Tensor:
        """One layer of the encoder; with ``rows``, of tokens without padding (n, D)."""
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), keep_B1TT, rows)
        out_BTD: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out_BTD

    def extend(
        self, x_BTD: Tensor, past: KeysValues | None, keep_B1TS: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """One layer over new tokens alone; see `SelfAttention.extend`."""
        attended_BTD, seen = self.attn.extend(self.norm1(x_BTD), past, keep_B1TS)
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self.mlp(self.norm2(x_BTD)), seen


class DecoderBlock(nn.Module):
    """Self-attention, attention to the encoder's context, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.self_attn = Norm(config.dim), SelfAttention(config)
        self.query_norm, self.context_norm = Norm(config.dim), Norm(config.dim)
        self.cross_attn = CrossAttention(config)
        self.norm2, self.mlp = Norm(config.dim), GatedMlp(config)

    def forward(
        self,
        x_BTD: Tensor,
        context_BSD: Tensor,
        keep_B1TT: Tensor | None,
        keep_B1TS: Tensor,
        rows: Rows | None = None,
        context_rows: Rows | None = None,
    ) -> Tensor:
        """One layer of the decoder; see `attend`."""
        memory = self.memory(context_BSD, context_rows)
        return self.attend(x_BTD, memory, keep_B1TT, keep_B1TS, rows)

    def memory(self, context_BSD: Tensor, rows: Rows | None = None) -> KeysValues:
        """What the layer reads of a context, to be kept when the context is asked again."""
        return self.cross_attn.keys_values(self.context_norm(context_BSD), rows)

    def attend(
        self,
        x_BTD: Tensor,
        memory: KeysValues,
        keep_B1TT: Tensor | None,
        keep_B1TS: Tensor,
        rows: Rows | None = None,
    ) -> Tensor:
        """One layer of the decoder on a remembered context.

        Without ``keep_B1TT`` the self-attention weighs all tokens of the row alike.
        """
        y_BTD = self.norm1(x_BTD)
        x_BTD = x_BTD + (
            _mean_of_values(self.self_attn, y_BTD)
            if keep_B1TT is None
            else self.self_attn(y_BTD, keep_B1TT, rows)
        )
        x_BTD = x_BTD + self.cross_attn(self.query_norm(x_BTD), memory, keep_B1TS, rows)
        out_BTD: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out_BTD


def keep_mask(query_valid_BT: Tensor, key_valid_BS: Tensor) -> Tensor:
    """(B, 1, T, S) True where a valid key may be seen; a row without any sees key 0.

    Rows without a valid key exist only as batch padding; their outputs are never read.
    """
    empty_B1 = ~key_valid_BS.any(1, keepdim=True)
    first_S = torch.arange(key_valid_BS.shape[1], device=key_valid_BS.device) == 0
    keys_BS = key_valid_BS | (empty_B1 & first_S)
    return keys_BS[:, None, None, :].expand(-1, 1, query_valid_BT.shape[1], -1)
