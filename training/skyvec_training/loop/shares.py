"""Who does which slots of a step, in how many pieces; every rank has the same number of pieces."""

from __future__ import annotations

from dataclasses import dataclass

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.parallel.mesh import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Slots of one forward pass."""

    slots: range
    counts: bool = True
    """False for a pass that only keeps this rank in step with the others."""


def pieces_of(total: int, world: World, *, microbatch: int) -> list[Piece]:
    """Slots of ``range(total)`` that are this rank's, at most ``microbatch`` at once (0: all).

    Shares of ranks differ by at most one slot, so that any world can do any batch.
    """
    if total < world.size:
        raise ConfigurationError(
            f"{total} objects cannot be shared by {world.size} processes",
            where="transformer",
            remedy="Use a larger batch (and more held-out objects), or fewer processes",
        )
    largest = -(-total // world.size)
    number = -(-largest // microbatch) if microbatch else 1
    own = _part(range(total), world.rank, world.size)
    parts = [_part(own, index, number) for index in range(number)]
    return [Piece(slots=p) if p else Piece(slots=own[:1], counts=False) for p in parts]


def _part(slots: range, index: int, number: int) -> range:
    return slots[len(slots) * index // number : len(slots) * (index + 1) // number]
