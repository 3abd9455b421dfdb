"""Bytes on disk in a file without a name: it is gone with the process at the latest."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class UnnamedFile:
    """Any number of threads write to it and read from it, each at its own place.

    Parameters
    ----------
    folder
        On a disk with room; the system's for temporary files by default.
    size
        Bytes that it has from the start, all zero.
    """

    def __init__(self, folder: Path | None = None, *, size: int = 0) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        os.truncate(self._file.fileno(), size)

    def write(self, content: bytes, place: int) -> None:
        """All of it: what a full disk leaves out would read as zeros."""
        done = 0
        while done < len(content):
            done += os.pwrite(self._file.fileno(), content[done:], place + done)

    def read(self, size: int, place: int) -> bytes:
        """All that was asked for.

        Raises
        ------
        OSError
            If the file ends before.
        """
        raw = os.pread(self._file.fileno(), size, place)
        if len(raw) < size:
            raise OSError(f"{len(raw)} of {size} bytes were read back")
        return raw

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
