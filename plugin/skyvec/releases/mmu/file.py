"""One HDF5 file of a release, opened with suspicion: columns at its root, one row per object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from skyvec.releases.mmu.layout import IDS, id_name, pick
from skyvec.releases.mmu.rows import Rows, open_rows
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.survey_columns import Survey

_AGAIN = "Copy this file again and compare its checksum with the release"


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was looked at."""

    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """From what the system says of the file."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class MmuFile:
    """An open file; a context manager.

    Raises
    ------
    ContractError
        On opening if it is gone or no whole HDF5 file; later if a dataset is absent, cannot be
        decoded or lies elsewhere. Names the file, the dataset and the remedy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as problem:
            raise self.refused(str(problem.strerror), remedy="Mount or download it again") from None
        try:
            self.stamp = Stamp.of(os.fstat(self.descriptor))
            self._file = self._open()
        except BaseException:
            os.close(self.descriptor)
            raise
        self.names: frozenset[str] = frozenset(self._file)
        self._checked: dict[str, h5py.Dataset] = {}

    def _open(self) -> h5py.File:
        try:
            # Some network file systems cannot lock, which is no reason not to read.
            return h5py.File(self.path, "r", locking="best-effort")
        except OSError as problem:
            head = os.pread(self.descriptor, 16, 0)
            if not h5py.is_hdf5(self.path):
                kind = (
                    "a web page" if head.lstrip().lower().startswith(b"<") else f"begins {head!r}"
                )
                what = f"not an HDF5 file ({kind}, {self.stamp.size} bytes)"
            else:
                what = f"cannot be opened, {self.stamp.size} bytes ({problem})"
            raise self.refused(what) from problem

    def __enter__(self) -> Self:
        """The open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._file.close()
        os.close(self.descriptor)

    def refused(self, what: str, *, dataset: str = "", remedy: str = _AGAIN) -> ContractError:
        """The error of this file, or of one of its datasets."""
        return ContractError(what, where=self.where(dataset), remedy=remedy)

    def where(self, dataset: str = "") -> str:
        """Name of the file and of one of its datasets, for errors."""
        return f"{self.path}, dataset {dataset!r}" if dataset else str(self.path)

    def check_unchanged(self, since: Stamp) -> None:
        """Refuse a file that was written to, or replaced, since it was looked at."""
        try:
            now = Stamp.of(self.path.stat())
        except OSError as problem:
            raise self.refused(str(problem.strerror), remedy="Put it back and run again") from None
        if now != since or Stamp.of(os.fstat(self.descriptor)) != since:
            raise self.refused(
                f"changed while it was read: {since.size} bytes, now {now.size}",
                remedy="Let the release rest, or read a finished version of it, and run again",
            )

    def id_name(self, survey: Survey) -> str:
        """Name of the id column; the number of its rows is that of the file."""
        if name := id_name(survey, self.names):
            return name
        groups = [name for name in self.names if isinstance(self._file.get(name), h5py.Group)]
        if groups:
            raise self.refused(
                f"holds groups ({sorted(groups)[0]}, ...), one for each object, not columns",
                remedy="Such files (MaNGA) are not supported: rewrite them as columns",
            )
        raise MissingColumnError(
            f"none of {', '.join(dict.fromkeys((survey.id_column, *IDS)))}",
            where=str(self.path),
            remedy="Name the id with --id-column, or write the file again",
        )

    def named(self, wanted: Sequence[str], *, remedy: str) -> str:
        """The first of several names that is there; else an error with the nearest neighbour."""
        if name := pick(wanted, self.names):
            return name
        near = get_close_matches(wanted[0], sorted(self.names), n=1)
        raise MissingColumnError(
            f"no dataset {' or '.join(map(repr, wanted))}"
            + (f" (nearest: {near[0]!r})" if near else ""),
            where=str(self.path),
            remedy=remedy,
        )

    def dataset(self, name: str, rows: int | None = None) -> h5py.Dataset:
        """A dataset that lies in this very file, can be decoded and has as many rows as the id."""
        if name not in self._checked:
            self._checked[name] = self._check(name)
        found = self._checked[name]
        count = found.shape[0] if found.shape else 1
        if rows is not None and count != rows:
            raise self.refused(
                f"has {count} rows, the id has {rows}",
                dataset=name,
                remedy="Build this file again: its columns do not belong together",
            )
        return found

    def _check(self, name: str) -> h5py.Dataset:
        # By h5py's lower level, since the upper one takes twice as long, for dozens of columns.
        place = name.encode()
        try:
            if self._file.id.links.get_info(place).type == h5py.h5l.TYPE_EXTERNAL:
                raise self._elsewhere(name, self._file.get(name, getlink=True).filename)
            found = h5py.h5o.open(self._file.id, place)
        except (KeyError, OSError, RuntimeError) as problem:
            raise self.refused(f"cannot be opened ({problem})", dataset=name) from problem
        if not isinstance(found, h5py.h5d.DatasetID):
            raise self.refused("is a group, not a column", dataset=name)
        home = os.fsdecode(h5py.h5f.get_name(found))
        if home != self._file.filename:
            raise self._elsewhere(name, home)
        properties = found.get_create_plist()
        if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise self._elsewhere(name, "other files")
        self._check_filters(properties, name)
        return h5py.Dataset(found)

    def _elsewhere(self, name: str, place: str) -> ContractError:
        return self.refused(
            f"lies outside of this file, in {place}",
            dataset=name,
            remedy="Store the values themselves: what is elsewhere can change unseen",
        )

    def _check_filters(self, properties: h5py.h5p.PropDCID, name: str) -> None:
        for place in range(properties.get_nfilters()):
            code, _, _, label = properties.get_filter(place)
            if h5py.h5z.filter_avail(code):
                continue
            if find_spec("hdf5plugin"):
                import_module("hdf5plugin")
            if not h5py.h5z.filter_avail(code):
                title = label.decode("utf-8", "replace") or "without a name"
                raise self.refused(
                    f"is compressed by HDF5 filter {code} ({title}), which is not installed",
                    dataset=name,
                    remedy="pip install hdf5plugin",
                )

    def column(self, name: str, rows: int | None = None) -> NDArray[np.generic]:
        """A whole column (n, ...), in the machine's byte order."""
        dataset = self.dataset(name, rows)
        try:
            values = np.asarray(dataset[()])
        except (OSError, RuntimeError, ValueError) as problem:
            raise self.refused(f"cannot be decoded ({problem})", dataset=name) from problem
        values = np.atleast_1d(values)
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def rows(
        self,
        name: str,
        chosen: NDArray[np.int64],
        *,
        count: int,
        window: int | None = None,
    ) -> Rows:
        """Chosen rows of a dataset that must have ``count`` rows; see `open_rows`."""
        dataset = self.dataset(name, count)
        return open_rows(dataset, chosen, descriptor=self.descriptor, window=window)
