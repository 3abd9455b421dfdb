"""Linear layers for inference: the weight laid out once as the processor's library likes it best.

On x86 processors oneDNN multiplies a weight that it has laid out itself 1.1 to 1.3 times as fast
as ``torch.nn.functional.linear`` does, and each row of the result has the same bits however many
rows come with it. The two operators are those that ``torch.compile`` emits; where torch lacks them,
or on another device, the plain linear layer takes their place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 576
"""Rows that the layout is chosen for; it serves other numbers as well."""


class PackedLinear:
    """``x @ weight.T + bias`` for x (..., K); the weight is (N, K) and may not change afterwards.

    Parameters
    ----------
    weight, bias
        Their type is that of the result; x is brought to it.
    gelu
        Apply GELU (the exact one) to the result, as it is written where that is possible.
    pack
        ``torch.compile`` packs by itself and cannot look into a packed weight: give it False.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        gelu: bool = False,
        pack: bool = True,
    ) -> None:
        self.packed = pack and can_pack(weight)
        self.dtype = weight.dtype
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)  # noqa: SLF001
            if self.packed
            else weight
        )
        self.bias = bias
        self._gelu = gelu

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        x = x.to(self.dtype)
        if self.packed:
            after = "gelu" if self._gelu else "none"
            out: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
                x, self.weight, self.bias, after, [], "none" if self._gelu else ""
            )
            return out
        y = functional.linear(x, self.weight, self.bias)
        return functional.gelu(y) if self._gelu else y


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN takes this weight, which must be on the CPU in float32 or bfloat16."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return weight.dtype == torch.float32
