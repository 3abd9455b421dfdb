"""Which slots of a step make its loss not finite: the step is done again, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skyvec_training.loop.shares import Piece
from skyvec_training.loop.task import SplitTask
from skyvec_training.parallel.mesh import World


def culprits(task: SplitTask, step: int, pieces: Sequence[Piece], world: World) -> list[int]:
    """Slots whose sums alone are not finite, in the first piece that has any; all ranks together.

    Empty if every sum is finite and only the gradient is not.
    """
    with torch.no_grad():
        bad = [not _is_finite(task, step, piece.slots) for piece in pieces]
        everywhere = world.total(torch.tensor(bad, dtype=torch.int64))
        if not bool(everywhere.any()):
            return []
        own = pieces[int((everywhere > 0).nonzero()[0])].slots
        most = max(world.gathered(len(own)))
        # Every rank makes as many passes as the one with most slots.
        slots = [own[min(index, len(own) - 1)] for index in range(most)]
        found = {slot for slot in slots if not _is_finite(task, step, range(slot, slot + 1))}
    return sorted(slot for part in world.gathered(found) for slot in part)


def _is_finite(task: SplitTask, step: int, slots: range) -> bool:
    return bool(task.sums(task.read(step, slots)).isfinite().all())
