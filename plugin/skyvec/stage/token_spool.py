"""Tokens of a pixel's rows, written in any order and read in the catalog's, on disk.

Sources are read in the order of their own files, so tokens come in any order; 1 to 3 kB a row in a
file without a name keep a worker's memory independent of the size of a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec.stage.unnamed_file import UnnamedFile
from skyvec_core.observations import Tokens

_ABSENT = 0
"""What a row that was never written reads as; codes are stored from 1."""


class TokenSpool:
    """Tokens by modality.

    Parameters
    ----------
    folder
        On a disk with room; the file vanishes with the process at the latest.
    rows
        Rows of the pixel.
    widths
        Token key -> tokens of one object.
    """

    def __init__(self, folder: Path, *, rows: int, widths: Mapping[str, int]) -> None:
        self.widths = dict(widths)
        bytes_each = [2 * width * rows for width in self.widths.values()]
        starts = np.cumsum([0, *bytes_each])
        self._start = dict(zip(self.widths, starts.tolist(), strict=False))
        self._file = UnnamedFile(folder, size=int(starts[-1]))

    def put(self, key: str, rows: NDArray[np.int64], coded: Tokens) -> None:
        """Store tokens of these rows."""
        codes = torch.where(coded.valid_BN, coded.ids_BN + 1, _ABSENT).numpy().astype(np.int16)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run, part in zip(np.split(rows, breaks), np.split(codes, breaks), strict=True):
            if len(run):
                self._file.write(part.tobytes(), self._place(key, int(run[0])))

    def get(self, key: str, start: int, stop: int) -> Tokens:
        """Tokens of the rows from ``start`` to before ``stop``."""
        width = self.widths[key]
        size = 2 * width * (stop - start)
        raw = self._file.read(size, self._place(key, start))
        codes = torch.from_numpy(np.frombuffer(raw, np.int16).reshape(-1, width).astype(np.int64))
        valid = codes != _ABSENT
        return Tokens(ids_BN=torch.where(valid, codes - 1, 0), valid_BN=valid)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def _place(self, key: str, row: int) -> int:
        return self._start[key] + 2 * self.widths[key] * row
