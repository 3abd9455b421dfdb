"""Pieces of an open file: a few bytes here and there, or many pages in memory that is used again.

A scan that looks at every byte once takes as long over a mapped file as over copies in the
processor's cache, and longer on several threads. And a file that is cut short meanwhile is an
error, and not the end of the process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from skyvec.releases.hats.remote import unreadable
from skyvec_schemas.errors import ContractError

AVAILABLE = hasattr(os, "preadv")
"""Whether this system reads at a place without moving the file's own."""
_WINDOW = 1 << 14
"""Bytes read at a time where a few are wanted: the head of a usual page."""


class Window:
    """Bytes by their place in a file; those that follow closely are read with them.

    To map the file and look at the head of each of its pages takes longer (docs/log.md).

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
            self._start, self._held = start, self._read(start, max(_WINDOW, stop - start))
            while len(self._held) < stop - start and (
                more := self._read(start + len(self._held), stop - start - len(self._held))
            ):
                self._held += more
        return self._held[start - self._start : stop - self._start]

    def _read(self, start: int, size: int) -> bytes:
        if AVAILABLE:
            return os.pread(self._file.fileno(), size, start)
        self._file.seek(start)
        return self._file.read(size)


_GAP = 1 << 17
"""Bytes between two pieces that are read over: a call has its price, too."""
_PIECES = 256
"""Of one call, with as many gaps; systems take 1024 at least."""


class Memory:
    """What a scan reads into, again and again; for one thread, and one scan at a time.

    New memory for each file would have to be cleared by the system first.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, size: int) -> NDArray[np.uint8]:
        """Some bytes, with whatever they hold."""
        if size > len(self._bytes):
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size]


class Reader:
    """For one thread; several may read the same file.

    Parameters
    ----------
    file
        Open and not buffered.
    memory
        Written over by each call.
    """

    def __init__(self, file: BinaryIO, memory: Memory) -> None:
        self._file, self._memory = file, memory
        self._gap = memoryview(bytearray(_GAP))

    def read(self, pieces: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """Bytes of pieces (place, size) one after the other; the next call writes over them.

        Raises
        ------
        ContractError
            If the file ends before, or cannot be read.
        """
        found = self._memory.of(sum(size for _, size in pieces))
        memory, done = found.data, 0
        start = end = 0
        buffers: list[memoryview] = []
        for place, size in pieces:
            if buffers and (not 0 <= place - end <= _GAP or len(buffers) >= 2 * _PIECES):
                self._fill(buffers, start)
                buffers = []
            if not buffers:
                start = place
            elif place > end:
                buffers.append(self._gap[: place - end])
            buffers.append(memory[done : done + size])
            done, end = done + size, place + size
        self._fill(buffers, start)
        return found

    def _fill(self, buffers: Sequence[memoryview], place: int) -> None:
        while buffers:
            try:
                count = os.preadv(self._file.fileno(), buffers, place)
            except OSError as problem:
                raise unreadable(problem, self._file.name) from problem
            wanted = sum(map(len, buffers))
            if count == wanted:
                return
            if not count:
                raise ContractError(
                    "was cut short while it was read",
                    where=str(self._file.name),
                    remedy="Copy or write this file again",
                )
            place += count
            buffers = _after(buffers, count)


def _after(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left to be filled once so many bytes are."""
    left = []
    for buffer in buffers:
        if count < len(buffer):
            left.append(buffer[count:])
        count = max(0, count - len(buffer))
    return left
