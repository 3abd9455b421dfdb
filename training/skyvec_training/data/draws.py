"""Random numbers as a pure function of (seed, stream, step, slot): nothing to save, exact resume."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from skyvec_training.data.permutations import key_of, permuted


class Stream(IntEnum):
    """Independent uses of one seed."""

    ORDER = 1
    AUGMENTATION = 2
    MASKING = 3


def words(*, seed: int, stream: Stream, step: int, slots: range, width: int) -> NDArray[np.uint64]:
    """Random words (slots, width); a slot's row does not depend on the other slots."""
    blocks = -(-width // 4)  # Philox makes four numbers per count
    generator = np.random.Philox(key=[seed, int(stream) << 48 | step])
    generator.advance(slots.start * blocks)
    drawn: NDArray[np.uint64] = generator.random_raw(len(slots) * 4 * blocks)
    return drawn.reshape(len(slots), 4 * blocks)[:, :width]


def as_uniforms(drawn: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 bits from random words."""
    uniform: NDArray[np.float64] = (drawn >> np.uint64(11)) * np.float64(2.0**-53)
    return uniform


def uniforms(
    *, seed: int, stream: Stream, step: int, slots: range, width: int
) -> NDArray[np.float64]:
    """Uniform numbers (slots, width) in [0, 1); a slot's row does not depend on the other slots."""
    return as_uniforms(words(seed=seed, stream=stream, step=step, slots=slots, width=width))


def shuffled(
    places: NDArray[np.int64], *, seed: int, rows: int, name: str = ""
) -> NDArray[np.int64]:
    """Rows at these places of an endless order in which each epoch is a new permutation.

    Parameters
    ----------
    places
        Places in the order, from 0; place ``rows`` is the first of the second epoch.
    name
        Of what is ordered: under one seed, two names have independent orders.
    """
    epochs, within = np.divmod(places, rows)
    keys = np.uint64(key_of(seed, int(Stream.ORDER), name)) + epochs.astype(np.uint64)
    return permuted(within, keys, size=rows)


def rows_of_step(*, seed: int, step: int, batch: int, rows: int) -> NDArray[np.int64]:
    """Rows (batch,) of this step: every epoch is a new permutation of ``range(rows)``."""
    return shuffled(np.arange(step * batch, (step + 1) * batch), seed=seed, rows=rows)
