"""Permutations without a table: any element of a shuffled range, at once and alone.

A generalized Feistel network over side x side >= n numbers; results beyond the range go round
again until they fall into it. Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains
(CT-RSA 2002).
"""

from __future__ import annotations

from hashlib import blake2b
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Places = NDArray[np.int64]

ROUNDS = 8
_STEP, _FIRST, _SECOND = (
    np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def mixed(words: Words) -> Words:
    """Scramble 64-bit words, one to one (the output function of SplitMix64)."""
    words = words + _STEP
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


def key_of(*parts: object) -> int:
    """A 64-bit key from anything that prints the same everywhere."""
    text = "\n".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def permuted(places: Places, keys: Words, *, size: int) -> Places:
    """Images of ``places`` under permutations of ``range(size)``, one permutation for each key.

    Parameters
    ----------
    places
        Numbers in ``range(size)``, any shape.
    keys
        Key of the permutation of each place, same shape.
    """
    side = np.uint64(isqrt(size - 1) + 1)
    found = _network(places.astype(np.uint64), keys, side)
    while (outside := found >= size).any():
        found[outside] = _network(found[outside], keys[outside], side)
    return found.astype(np.int64)


def _network(numbers: Words, keys: Words, side: np.uint64) -> Words:
    left, right = numbers // side, numbers % side
    for turn in range(ROUNDS):
        left, right = right, (left + mixed(mixed(right + np.uint64(turn << 56)) ^ keys)) % side
    return left * side + right
