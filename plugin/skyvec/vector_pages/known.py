"""Files that are opened again and again: what is known of each from the time before.

Every search of a catalog meets the same footers and the same headers of pages, which take a tenth
of its time to read.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import pyarrow.parquet as pq
from zict import LRU

from skyvec.releases.hats.leaf import ParquetPlace
from skyvec.releases.hats.remote import is_remote, unreadable
from skyvec.vector_pages.chunks import Layout
from skyvec.vector_pages.decoded import DecodedVectors
from skyvec.vector_pages.opening import Vectors
from skyvec.vector_pages.pages import VectorPages

_Key = tuple[Path, tuple[object, ...]]
"""Path and stamp: a file that is written again is another one."""

# Some 5 kB and 0.3 kB for each row group.
_footers: LRU[_Key, pq.FileMetaData] = LRU(1 << 12, {}, weight=lambda _, of: of.num_row_groups)
_layouts: LRU[tuple[_Key, str], Layout] = LRU(1 << 16, {}, weight=lambda _, of: len(of.groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLeaf:
    """One file and a column of vectors in it; close it after use.

    All that is read of a local file is of the one that had its name when it was opened.
    """

    place: ParquetPlace
    column: str
    handle: BinaryIO | None
    """None: it is remote."""

    @classmethod
    def open(cls, path: Path, column: str) -> Self:
        """Open a file.

        Raises
        ------
        ContractError
            If it is not there or not a complete Parquet file.
        """
        with ExitStack() as held:
            try:
                handle = None if is_remote(path) else held.enter_context(path.open("rb", 0))
            except OSError as problem:
                raise unreadable(problem, path) from problem
            place = ParquetPlace(path, handle=handle, footers=_footers)
            held.pop_all()
        return cls(place=place, column=column, handle=handle)

    def close(self) -> None:
        """Let go of the file."""
        self.place.file.close()
        if self.handle:
            self.handle.close()

    @property
    def file(self) -> pq.ParquetFile:
        """The same, with all its columns."""
        return self.place.file

    def vectors(self) -> Vectors:
        """See `open_vectors`; valid until the file is closed.

        Raises
        ------
        ContractError
            If the file is damaged, has no such column, or that holds no vectors of one width.
        """
        if self.handle is None:
            reason = "is not on a local disk"
        elif layout := _layouts.get((self._key, self.column)):
            return VectorPages(self.handle, layout)
        else:
            path = self.place.path
            pages = VectorPages.of(self.handle, self.column, file=self.file, path=path)
            if isinstance(pages, VectorPages):
                return pages
            reason = pages.reason
        return DecodedVectors(self.place.path, self.column, reason=reason, place=self.place)

    def finish(self, vectors: Vectors) -> None:
        """Make sure that nobody wrote to the file, and remember what it takes to read it again.

        Raises
        ------
        ContractError
            If it was written to.
        """
        self.place.refuse_change()
        if not self.place.lasting:
            return
        if self._key not in _footers:
            _footers[self._key] = self.file.metadata
        if isinstance(vectors, VectorPages) and (self._key, self.column) not in _layouts:
            _layouts[self._key, self.column] = vectors.layout

    @property
    def _key(self) -> _Key:
        return self.place.path, self.place.stamp


def forget() -> None:
    """Take every file for unknown."""
    _footers.clear()
    _layouts.clear()
