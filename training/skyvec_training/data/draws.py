"""Random numbers as a pure function of (seed, stream, step, slot): nothing to save, exact resume."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """Independent uses of one seed."""

    ORDER = 1
    AUGMENTATION = 2
    MASKING = 3


def uniforms(
    *, seed: int, stream: Stream, step: int, slots: range, width: int
) -> NDArray[np.float64]:
    """Uniform numbers (slots, width) in [0, 1); a slot's row does not depend on the other slots."""
    blocks = -(-width // 4)  # Philox makes four numbers per count
    generator = np.random.Philox(key=[seed, int(stream) << 48 | step])
    generator.advance(slots.start * blocks)
    drawn = np.random.Generator(generator).random((len(slots), 4 * blocks))
    return drawn[:, :width]


def rows_of_step(*, seed: int, step: int, batch: int, rows: int) -> NDArray[np.int64]:
    """Rows (batch,) of this step: every epoch is a new permutation of ``range(rows)``."""
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = places // rows
    orders = {int(e): _permutation(seed, int(e), rows) for e in np.unique(epochs)}
    return np.array([orders[int(e)][p % rows] for e, p in zip(epochs, places, strict=True)])


def _permutation(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    key: Sequence[int] = [seed, int(Stream.ORDER) << 48 | epoch]
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows)
