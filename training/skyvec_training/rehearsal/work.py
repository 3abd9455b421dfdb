"""Floating-point operations of a step: by formula, and as counted while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from skyvec_core.model.config import TransformerConfig

# Shape letters: B object, T input token, Q target token.


def parameters_of(config: TransformerConfig) -> tuple[int, int, int]:
    """Weights of the matrices of one encoder layer, of a decoder layer, and its keys and values."""
    width, hidden = config.dim, config.mlp_hidden
    encoder = 4 * width**2 + 3 * width * hidden
    keys_values = 2 * width**2
    return encoder, encoder + 4 * width**2, keys_values


def step_flops(config: TransformerConfig, inputs_B: Tensor, targets_B: Tensor) -> float:
    """Forward and backward pass of objects with so many input and target tokens, in operations.

    A token passes the encoder or the decoder, so 6 x parameters x tokens would say twice as much.
    The heads, lookups and elementwise work are left out, and recomputed activations never count.
    """
    inputs_B, targets_B = inputs_B.double(), targets_B.double()
    encoder, decoder, keys_values = parameters_of(config)
    on_inputs = config.encoder_depth * encoder + config.dim**2 + config.decoder_depth * keys_values
    on_targets = config.decoder_depth * (decoder - keys_values)
    linear = 6 * (on_inputs * inputs_B + on_targets * targets_B)
    pairs_B = (
        config.encoder_depth * inputs_B**2
        + config.decoder_depth * (targets_B**2 + inputs_B * targets_B)
    )  # fmt: skip
    return float((linear + 12 * config.dim * pairs_B).sum())


def flop_counter() -> FlopCounterMode:
    """Torch's counter, taught the attention kernel of the CPU, which it does not know."""
    aten = torch.ops.aten
    known: Mapping[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,  # noqa: SLF001
    }
    return FlopCounterMode(display=False, custom_mapping=dict(known))


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:  # noqa: ANN401
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:  # noqa: ANN401
    return int(sdpa_backward_flop_count(grad, q, k, v))  # type: ignore[no-untyped-call]
