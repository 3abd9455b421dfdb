"""Vectors of any file: from its pages where they are plain, by pyarrow otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.vector_pages.decoded import DecodedVectors
from skyvec.vector_pages.pages import BLOCK_ROWS, Block, NotMappable, VectorPages
from skyvec.vector_pages.reading import Memory


class Vectors(Protocol):
    """The vectors of one file."""

    dim: int
    dtype: np.dtype[Any]

    def blocks(
        self,
        *,
        groups: Sequence[int] | None = None,
        rows: int = BLOCK_ROWS,
        memory: Memory | None = None,
    ) -> Iterator[Block]:
        """All vectors in order, or those of some row groups; see `VectorPages.blocks`."""

    def row(self, row: int) -> NDArray[np.floating] | None:
        """The vector (dim,) of one row, None if it is null."""


def open_vectors(path: Path, column: str, *, file: pq.ParquetFile | None = None) -> Vectors:
    """The vectors of a file; the answers do not depend on how they are read.

    Parameters
    ----------
    file
        The same file, where the caller has it open.

    Raises
    ------
    ContractError
        If the file is damaged, has no such column, or that holds no vectors of one width.
    """
    pages = VectorPages.open(path, column, file=file)
    if isinstance(pages, NotMappable):
        return DecodedVectors(path, column, reason=pages.reason)
    return pages
