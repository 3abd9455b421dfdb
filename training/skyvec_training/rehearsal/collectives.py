"""Messages that a step sends, counted as they are given to the process group."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import (  # type: ignore[attr-defined]
    GroupName,
    _resolve_process_group,
)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_KINDS = {
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Message:
    """A collective among some ranks."""

    kind: str
    """``all-gather``, ``reduce-scatter`` or ``all-reduce``."""
    dtype: str
    ranks: int
    """Members of the group."""
    size: int
    """Bytes of the whole tensor, that is of the gathered one, or of the one to be reduced."""


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the messages of what runs under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages: Counter[Message] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Note a collective; sharded tensors are taken apart first, as their messages are inside."""
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func.namespace in {"c10d", "_c10d_functional"}:
            self._note(func._opname, args, kwargs or {}, out)  # noqa: SLF001
        return out

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:  # noqa: ANN401
        if name == "wait_tensor":
            return
        if name not in _KINDS:
            raise NotImplementedError(f"a step sends {name}, of which nothing is known")
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        largest = max(tensors, key=lambda t: t.numel())
        message = Message(
            kind=_KINDS[name],
            dtype=str(largest.dtype).removeprefix("torch."),
            ranks=_members(args, kwargs),
            size=largest.numel() * largest.element_size(),
        )
        self.messages[message] += 1


def _members(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, str) and value not in {"sum", "avg", "max", "min"}:
            return dist.get_world_size(_resolve_process_group(GroupName(value)))
        if isinstance(value, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(value).size()
            except (RuntimeError, TypeError):  # the operation is a script object as well
                continue
    raise NotImplementedError("a message without a process group")
