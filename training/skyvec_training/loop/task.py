"""What a task tells the loop; the loop knows no modality."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

# Shape letters: K part of the loss, C counted quantity.


class Task(Protocol):
    """What is trained by one process: everything about a step follows from its number."""

    @property
    def module(self) -> nn.Module:
        """What has the parameters."""
        ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of this step and what else to log."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Scores on held-out objects, ``loss`` among them."""
        ...


@runtime_checkable
class SplitTask(Protocol):
    """A task whose step is a batch of slots, shared among ranks and microbatches.

    The loss is linear in sums over slots once integers counted over the whole batch are known, so
    it does not depend on how the batch is shared.
    """

    @property
    def module(self) -> nn.Module:
        """What has the parameters; sharded if the world is."""
        ...

    @property
    def root(self) -> nn.Module:
        """What is called, the module itself or one around it."""
        ...

    @property
    def slots(self) -> int:
        """Objects in the batch of a step."""
        ...

    def read(self, step: int, slots: range) -> Any:  # noqa: ANN401
        """Objects of some slots, on the host."""
        ...

    def counts(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Integers (C,) on the host that add up over the batch."""
        ...

    def coefficients(self, counts_C: Tensor) -> Tensor:
        """Weights (K,) of the sums in the loss, from the counts of the whole batch."""
        ...

    def sums(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Differentiable sums (K,) over the objects, on the device."""
        ...

    def describe(self, sums_K: Tensor, counts_C: Tensor) -> dict[str, float]:
        """What to log besides the loss, from sums and counts of the whole batch."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Scores on held-out objects, ``loss`` among them; all ranks call it together."""
        ...


class Whole:
    """A `Task` as a `SplitTask` of a single slot."""

    slots = 1

    def __init__(self, task: Task) -> None:
        self.task = task
        self._extra: dict[str, float] = {}

    @property
    def module(self) -> nn.Module:
        """Of the task."""
        return self.task.module

    @property
    def root(self) -> nn.Module:
        """Of the task."""
        return self.task.module

    def read(self, step: int, slots: range) -> int:  # noqa: ARG002
        """The step itself says what to read."""
        return step

    def counts(self, batch: int) -> Tensor:  # noqa: ARG002
        """Nothing is counted."""
        return torch.zeros(0, dtype=torch.int64)

    def coefficients(self, counts_C: Tensor) -> Tensor:  # noqa: ARG002
        """The only sum is the loss."""
        return torch.ones(1)

    def sums(self, batch: int) -> Tensor:
        """The loss."""
        loss, self._extra = self.task.loss(batch)
        return loss[None]

    def describe(self, sums_K: Tensor, counts_C: Tensor) -> dict[str, float]:  # noqa: ARG002
        """What the task said of its last step."""
        return self._extra

    def evaluate(self) -> dict[str, float]:
        """Of the task."""
        return self.task.evaluate()


def as_split(task: Task | SplitTask) -> SplitTask:
    """The task as the loop takes it."""
    return task if isinstance(task, SplitTask) else Whole(task)
