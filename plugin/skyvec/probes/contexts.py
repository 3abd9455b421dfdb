"""Context vectors of labelled rows in a file without a name: memory does not grow with them."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec.stage.unnamed_file import UnnamedFile

_BYTES = 2
"""Of a value in float16, which costs a probe nothing."""


class ContextSpool:
    """Takes contexts from any number of threads, and gives them back one by one.

    The file lies where the system keeps temporary ones (``TMPDIR``).

    Parameters
    ----------
    dim
        Values of a context vector.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._file, self._end, self._lock = UnnamedFile(), 0, Lock()

    def put(self, contexts: Sequence[Tensor]) -> NDArray[np.int64]:
        """Store the contexts (tokens, dim) of some rows; where each begins, and its tokens."""
        counts = np.array([len(context) for context in contexts], np.int64)
        content = torch.cat(list(contexts)).half().numpy().tobytes() if contexts else b""
        with self._lock:
            start, self._end = self._end, self._end + int(counts.sum())
        self._file.write(content, start * self.dim * _BYTES)
        begins = start + np.cumsum(counts) - counts
        return np.stack([begins, counts], axis=1)

    def get(self, begin: int, count: int) -> Tensor:
        """The context (tokens, dim) of one row, float16."""
        width = self.dim * _BYTES
        raw = bytearray(self._file.read(count * width, begin * width))
        return torch.frombuffer(raw, dtype=torch.float16).view(count, self.dim)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()


class Contexts(Sequence[Tensor]):
    """Contexts of some rows of a spool, each read when it is asked for.

    Parameters
    ----------
    places
        Of each row, as `ContextSpool.put` gave it.
    """

    def __init__(self, spool: ContextSpool, places: NDArray[np.int64]) -> None:
        self.spool, self.places = spool, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Tensor:  # type: ignore[override]  # no slices are asked for
        begin, count = self.places[row].tolist()
        return self.spool.get(begin, count)

    def of(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Contexts:
        """Those of some rows."""
        return Contexts(self.spool, self.places[rows])
