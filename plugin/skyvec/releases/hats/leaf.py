"""The rows of one HATS pixel: one Parquet file or a folder of them, read row group by row group."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.remote import BUFFER_BYTES, RangeReader, is_remote, open_bytes, unreadable
from skyvec_schemas.errors import ContractError

PREFETCH_BYTES = 1 << 27
"""Chosen chunks of a remote row group up to this size are fetched in few requests and held."""
_LIST_LEVELS = {"list", "element", "item", "array", "array_element", "bag"}
"""What writers call the levels of a list in a Parquet path."""


def leaf_path(root: Path, pixel: HealpixPixel, suffix: str = ".parquet") -> Path:
    """Where a catalog holds a pixel: a file, or the folder of its files if the suffix is ``/``.

    What `hats.io.paths.pixel_catalog_file` says, which makes a UPath of a local folder step by step
    and takes a millisecond for it.
    """
    folder = f"{paths.PARTITION_ORDER}={pixel.order}/{paths.PARTITION_DIR}={pixel.dir}"
    name = f"{paths.PARTITION_PIXEL}={pixel.pixel}{suffix.rstrip('/')}"
    return root / f"{paths.DATASET_DIR}/{folder}/{name}"


_MOMENT = 2_000_000_000
"""Nanoseconds; file systems tell times that differ by as much."""

KeepGroup = Callable[[pq.RowGroupMetaData], bool]


class ParquetPlace:
    """One Parquet file, local or remote, that is read in bounded memory.

    Parameters
    ----------
    handle
        Of a local file that the caller has open and closes. That file is read and looked after then,
        whatever takes its name.
    footers
        By path and stamp; such a file is opened without reading its footer again.

    Raises
    ------
    ContractError
        If it is not there or not a complete Parquet file.
    """

    def __init__(
        self,
        path: Path,
        *,
        handle: BinaryIO | None = None,
        footers: Mapping[tuple[Path, tuple[object, ...]], pq.FileMetaData] | None = None,
    ) -> None:
        self.path, self._given = path, handle
        try:
            self._handle = handle or (RangeReader(path) if is_remote(path) else path)
            self._stamp = self._stamped()
            known = footers.get((path, self._stamp)) if footers else None
            self.file = pq.ParquetFile(
                self._handle, metadata=known, buffer_size=BUFFER_BYTES, pre_buffer=False
            )
        except (OSError, pa.ArrowInvalid) as problem:
            raise unreadable(problem, path) from problem

    def _stamped(self) -> tuple[object, ...]:
        if isinstance(self._handle, RangeReader):
            return self._handle.bytes, hashlib.sha256(self._handle.tail).hexdigest()
        status = os.fstat(self._given.fileno()) if self._given else self.path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ino

    @property
    def stamp(self) -> tuple[object, ...]:
        """Differs if the file was written again: size and time, or size and digest of the end."""
        return self._stamp

    @property
    def lasting(self) -> bool:
        """Whether the stamp tells what is in the file from all that will be written to it.

        What was written this moment may be written again at the same time, as its disk counts it.
        """
        if isinstance(self._handle, RangeReader):
            return True
        _, written, _ = self._stamp
        return isinstance(written, int) and time.time_ns() - written > _MOMENT

    def refuse_change(self, since: tuple[object, ...] | None = None) -> None:
        """Compare with an earlier stamp, or a local file with itself when it was opened.

        Raises
        ------
        ContractError
            If the file was written again.
        """
        now = self._stamp if since else self._stamped()
        if now != (since or self._stamp):
            raise ContractError(
                "changed while it was read",
                where=str(self.path),
                remedy="Run the same command again when nothing writes to it any more",
            )

    def chunks(self, paths: Sequence[str]) -> list[str]:
        """Parquet columns that hold these dotted paths, whatever its writer called list levels.

        Raises
        ------
        ContractError
            If this file lacks one that the catalog's schema has.
        """
        schema = self.file.schema
        known = [schema.column(place).path for place in range(len(schema))]
        chosen, lacking = [], []
        for path in paths:
            # A column of this very name has no others in it.
            found = [path] if path in known else [c for c in known if _leads_to(c, path)]
            chosen += found
            lacking += [] if found else [path]
        if lacking:
            raise ContractError(
                f"no column {', '.join(map(repr, lacking))}, which the catalog's schema has",
                where=str(self.path),
                remedy="Import this pixel again with all columns",
            )
        return chosen

    def batches(
        self, chunks: Sequence[str], *, rows: int, groups: Sequence[int]
    ) -> Iterator[pa.RecordBatch]:
        """Batches of at most ``rows`` rows of some row groups; no batch spans two groups."""
        file = self.file
        for group in groups:
            if is_remote(self.path) and self._bytes(group, chunks) <= PREFETCH_BYTES:
                file = pq.ParquetFile(self._handle, metadata=self.file.metadata, pre_buffer=True)
            try:
                yield from file.iter_batches(rows, row_groups=[group], columns=list(chunks))
            except (OSError, pa.ArrowInvalid) as problem:
                raise unreadable(problem, self.path) from problem

    def decoded_bytes(self, chunks: Sequence[str]) -> int:
        """Bytes of these columns in all row groups, uncompressed."""
        groups = range(self.file.metadata.num_row_groups)
        return sum(c.total_uncompressed_size for group in groups for c in self._of(group, chunks))

    def _bytes(self, group: int, chunks: Sequence[str]) -> int:
        return sum(c.total_compressed_size for c in self._of(group, chunks))

    def _of(self, group: int, chunks: Sequence[str]) -> Iterator[pq.ColumnChunkMetaData]:
        metadata, wanted = self.file.metadata.row_group(group), set(chunks)
        columns = (metadata.column(place) for place in range(metadata.num_columns))
        return (c for c in columns if c.path_in_schema in wanted)


def _leads_to(column: str, path: str) -> bool:
    """Whether a Parquet column is a dotted path or in it, levels of lists aside."""
    if column == path or column.startswith(f"{path}."):
        return True
    wanted = path.split(".")
    for part in column.split("."):
        if wanted and part == wanted[0]:
            wanted = wanted[1:]
        elif part not in _LIST_LEVELS:
            break
    return not wanted


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """Rows of one pixel, numbered through all its files; close it after use."""

    files: tuple[ParquetPlace, ...]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Leaf:
        """Open the files of a pixel."""
        return cls(files=tuple(ParquetPlace(path) for path in paths))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for place in self.files:
            place.file.close()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(place.file.metadata.num_rows for place in self.files)

    def rows_of(self, paths: Sequence[str], size: int) -> int:
        """Rows, at least one, whose values in these columns take about ``size`` bytes."""
        held = sum(place.decoded_bytes(place.chunks(paths)) for place in self.files)
        return max(1, size * self.rows // max(held, 1))

    @property
    def stamps(self) -> tuple[tuple[object, ...], ...]:
        """Stamp of each file."""
        return tuple(place.stamp for place in self.files)

    def refuse_change(self, since: Sequence[tuple[object, ...]]) -> None:
        """Compare every file with an earlier stamp."""
        for place, stamp in zip(self.files, since, strict=True):
            place.refuse_change(stamp)

    def batches(
        self,
        paths: Sequence[str],
        *,
        rows: int,
        wanted: NDArray[np.int64] | None = None,
        keep: KeepGroup | None = None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Number of the first row, and a batch; of those row groups that hold a wanted row.

        Parameters
        ----------
        paths
            Columns or dotted paths into structs.
        wanted
            Rows in ascending order; all by default.
        keep
            Says of a row group whether it is read at all.

        Raises
        ------
        ContractError
            If a file cannot be decoded, or was written again meanwhile.
        """
        first = 0
        for place in self.files:
            chunks = place.chunks(paths)
            for group in range(place.file.metadata.num_row_groups):
                metadata = place.file.metadata.row_group(group)
                stop = first + metadata.num_rows
                last = _last_wanted(wanted, first, stop)
                if last >= first and (keep is None or keep(metadata)):
                    # Nothing beyond the last wanted row is decoded.
                    step = min(rows, last - first + 1)
                    yield from _until(place.batches(chunks, rows=step, groups=[group]), first, last)
                first = stop
            place.refuse_change()

    def single_rows(
        self, paths: Sequence[str], rows: Sequence[int], *, at_once: int
    ) -> Iterator[pa.RecordBatch]:
        """Some rows in ascending order, each a batch of its own, in one pass over the files.

        Parameters
        ----------
        at_once
            Rows decoded at a time.

        Raises
        ------
        ContractError
            If a row is not there.
        """
        waiting = deque(rows)
        for start, batch in self.batches(paths, rows=at_once, wanted=np.array(rows, np.int64)):
            while waiting and waiting[0] < start + len(batch):
                yield batch.slice(waiting.popleft() - start, 1)
        if waiting:
            raise ContractError(
                f"row {waiting[0]} is not there any more",
                where=", ".join(str(place.path) for place in self.files),
                remedy="Run the same command again when nothing writes to it any more",
            )


def _last_wanted(wanted: NDArray[np.int64] | None, first: int, stop: int) -> int:
    """The last wanted row of a row group, -1 if there is none."""
    if wanted is None:
        return stop - 1
    before = int(np.searchsorted(wanted, stop))
    return int(wanted[before - 1]) if before and wanted[before - 1] >= first else -1


def _until(
    batches: Iterator[pa.RecordBatch], first: int, last: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in batches:
        start, first = first, first + len(batch)
        yield start, batch
        del batch
        if first > last:
            return


def footer(path: Path) -> dict[str, Any]:
    """Size, row count and footer digest of a file: what it holds, without reading it all."""
    with open_bytes(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length + 8 > size:
            raise ContractError(
                "not a complete Parquet file",
                where=str(path),
                remedy="Import or copy this pixel again",
            )
        file.seek(size - 8 - length)
        content = file.read(length)
        try:
            rows = pq.read_metadata(pa.BufferReader(b"PAR1" + content + tail)).num_rows
        except (OSError, pa.ArrowInvalid) as problem:
            raise unreadable(problem, path) from problem
    return {"bytes": size, "rows": rows, "footer": hashlib.sha256(content).hexdigest()}
