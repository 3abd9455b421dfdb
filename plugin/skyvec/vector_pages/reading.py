"""Pieces of an open file: a few bytes here and there, or all of it in memory that is used again.

A scan that looks at every byte once is faster so than over a mapped file: copying a page into the
processor's cache takes less than mapping it and letting go of it. A file that is cut short meanwhile
is an error, and not the end of the process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from skyvec.releases.hats.remote import unreadable
from skyvec_schemas.errors import ContractError

_WINDOW = 1 << 13
"""Bytes read at a time where a few are wanted."""


class Window:
    """Bytes by their place in a file; those that follow closely are read with them.

    Parameters
    ----------
    file
        Open and not buffered.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._start, self._held = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        if start < self._start or stop > self._start + len(self._held):
            self._file.seek(start)
            self._start, self._held = start, self._file.read(max(_WINDOW, stop - start))
            while len(self._held) < stop - start and (more := self._file.read(stop - start)):
                self._held += more
        return self._held[start - self._start : stop - self._start]


AVAILABLE = hasattr(os, "preadv")
"""Whether this system reads at a place without moving the file's own."""


class Reader:
    """For one thread; several may read the same file.

    Parameters
    ----------
    file
        Open and not buffered.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._memory = np.empty(0, np.uint8)

    def read(self, pieces: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """Bytes of pieces (place, size) one after the other; the next call writes over them.

        Raises
        ------
        ContractError
            If the file ends before, or cannot be read.
        """
        total = sum(size for _, size in pieces)
        if total > len(self._memory):
            self._memory = np.empty(total, np.uint8)
        done = 0
        for place, size in pieces:
            self._fill(self._memory[done : done + size], place)
            done += size
        return self._memory[:total]

    def _fill(self, memory: NDArray[np.uint8], place: int) -> None:
        done = 0
        while done < len(memory):
            try:
                count = os.preadv(self._file.fileno(), [memory.data[done:]], place + done)
            except OSError as problem:
                raise unreadable(problem, self._file.name) from problem
            if not count:
                raise ContractError(
                    "was cut short while it was read",
                    where=str(self._file.name),
                    remedy="Copy or write this file again",
                )
            done += count
