"""Checkpoints in the background: a copy is taken at once, the disk is waited for later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from skyvec_training.loop import checkpoint
from skyvec_training.loop.checkpoint import Facts, Retention
from skyvec_training.parallel.mesh import World


class Saver:
    """Writes the checkpoints of a run, at most one at a time.

    Parameters
    ----------
    tensors
        Live weights and optimizer state by name.
    in_background
        Only ranks of a process group need it: they have a group of their own for saving.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        *,
        retention: Retention,
        world: World,
        in_background: bool,
    ) -> None:
        self.folder, self.tensors, self.retention = folder, tensors, retention
        self.world, self.in_background = world, in_background
        self.last: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a failure the others may be gone: what is being written then may never end.
        self._thread.shutdown(wait=error is None)

    def save(self, facts: Facts) -> None:
        """Save this moment; waits for the save before it, and raises what that one met."""
        self.wait()
        self.last = facts.step
        if not self.in_background:
            self._write(self.tensors, facts)()
            return
        copies = {name: tensor.detach().clone().cpu() for name, tensor in self.tensors.items()}
        self._running = self._thread.submit(self._write(copies, facts))

    def wait(self) -> None:
        """Wait until the disk has everything; raises what the save met."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def _write(self, tensors: Mapping[str, Tensor], facts: Facts) -> Callable[[], Path]:
        return lambda: checkpoint.save(
            self.folder, tensors, facts, retention=self.retention, world=self.world
        )
