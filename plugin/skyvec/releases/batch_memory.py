"""Memory of batches that is used again, since fresh memory costs as much as what is read into it."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_BYTES = 1 << 16
"""Below this the allocator has memory at hand that the process already owns."""
_LINE = 64
"""Arrays that share a piece of memory begin at multiples of so many bytes."""


class BatchMemory:
    """Arrays whose memory serves again once nobody holds them, or a view or tensor of them.

    The system hands out fresh memory page by page, each with a fault and zeros: for a batch of
    cutouts that takes about as long as to read it from the page cache. Whoever keeps batches gets
    new memory, as from `numpy.empty`; what is free goes with this object.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def empty(self, *wanted: tuple[tuple[int, ...], np.dtype]) -> list[NDArray[Any]]:
        """One C-contiguous array for each (shape, dtype), with whatever values.

        They share one piece of memory, which is free when all of them are.
        """
        sizes = [dtype.itemsize * math.prod(shape) for shape, dtype in wanted]
        *starts, total = accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0)
        if total < SMALL_BYTES or any(dtype.hasobject for _, dtype in wanted):
            return [np.empty(shape, dtype) for shape, dtype in wanted]
        rooms = self._free[total]
        room = rooms.pop() if rooms else np.empty(total, np.uint8)
        # An array that owns nothing: views and tensors of it hold it, and not the room.
        lent = np.frombuffer(room.data, np.uint8)
        weakref.finalize(lent, rooms.append, room).atexit = False
        return [
            lent[start : start + size].view(dtype).reshape(shape)
            for start, size, (shape, dtype) in zip(starts, sizes, wanted, strict=True)
        ]
