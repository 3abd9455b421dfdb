"""Attention, gated feed-forward and the two kinds of transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.model.config import TransformerConfig

# Shape letters: B object, T token, S context token, D model width, N head, H head width.

EPSILON = 1e-6

KeysValues = tuple[Tensor, Tensor]
"""Normalized keys and values (B, N, S, H) of a context in one layer."""


class Norm(nn.LayerNorm):
    """Layer norm with a weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPSILON, bias=False)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, queries and keys normalized per head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width = config.dim // config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def forward(self, x_BTD: Tensor, keep_B1TT: Tensor) -> Tensor:
        """Attend where ``keep`` is True; every query needs at least one key."""
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return _attend(self, q, self.k_norm(k), v, keep_B1TT)

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

    def keys_values(self, context_BSD: Tensor) -> KeysValues:
        """What `forward` reads of a context; each token's share depends on that token alone."""
        k, v = self.kv(context_BSD).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.k_norm(k), v

    def forward(self, x_BTD: Tensor, memory: KeysValues, keep_B1TS: Tensor) -> Tensor:
        """Attend to the context where ``keep`` is True."""
        q = self.q(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return _attend(self, q, *memory, keep_B1TS)


def joined(past: KeysValues | None, new: KeysValues) -> KeysValues:
    """Keys and values of earlier tokens, then of new ones."""
    if past is None:
        return new
    return torch.cat([past[0], new[0]], dim=2), torch.cat([past[1], new[1]], dim=2)


def _attend(
    layer: SelfAttention | CrossAttention, q: Tensor, k: Tensor, v: Tensor, keep: Tensor
) -> Tensor:
    """Attention with keys that are normalized already."""
    y_BNTH = functional.scaled_dot_product_attention(layer.q_norm(q), k, v, attn_mask=keep)
    out_BTD: Tensor = layer.proj(y_BNTH.transpose(1, 2).flatten(2))
    return out_BTD


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

    def forward(self, x_BTD: Tensor, keep_B1TT: Tensor) -> Tensor:
        """One layer of the encoder."""
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), keep_B1TT)
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
        self, x_BTD: Tensor, context_BSD: Tensor, keep_B1TT: Tensor | None, keep_B1TS: Tensor
    ) -> Tensor:
        """One layer of the decoder; see `attend`."""
        return self.attend(x_BTD, self.memory(context_BSD), keep_B1TT, keep_B1TS)

    def memory(self, context_BSD: Tensor) -> KeysValues:
        """What the layer reads of a context, to be kept when the context is asked again."""
        return self.cross_attn.keys_values(self.context_norm(context_BSD))

    def attend(
        self, x_BTD: Tensor, memory: KeysValues, keep_B1TT: Tensor | None, keep_B1TS: Tensor
    ) -> Tensor:
        """One layer of the decoder on a remembered context.

        Without ``keep_B1TT`` the self-attention weighs all tokens of the row alike.
        """
        y_BTD = self.norm1(x_BTD)
        x_BTD = x_BTD + (
            _mean_of_values(self.self_attn, y_BTD)
            if keep_B1TT is None
            else self.self_attn(y_BTD, keep_B1TT)
        )
        x_BTD = x_BTD + self.cross_attn(self.query_norm(x_BTD), memory, keep_B1TS)
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
