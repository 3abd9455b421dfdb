"""Files by URI: a folder, ``hf://``, ``s3://``, ``https://``; read by range, patiently."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from hats.io.file_io import get_upath
from upath import UPath

from skyvec_schemas.errors import (
    ConfigurationError,
    ContractError,
    InfrastructureError,
    SkyvecError,
)

T = TypeVar("T")

ATTEMPTS = 4
"""How often a request that failed for a passing reason is made in all."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice the one before."""
CONNECT_SECONDS, READ_SECONDS = 15, 60
"""How long a server may stay silent over https."""
TAIL_BYTES = 1 << 16
"""Fetched from the end of a remote file at once and kept: Parquet footers lie there."""
BUFFER_BYTES = 1 << 23
"""Read at a time from each column chunk, so that a row group is never held whole as on disk."""

_NEEDED = {
    "hf": ("huggingface_hub", "skyvec[hub]"),
    "s3": ("s3fs", "s3fs"),
    "gs": ("gcsfs", "gcsfs"),
    "http": ("aiohttp", "aiohttp"),
    "https": ("aiohttp", "aiohttp"),
}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_UNREADABLE = "Import or copy this pixel again"
_OUR_OWN = "`skyvec verify` names everything that is damaged, and what to do"


def located(place: str | Path | UPath) -> Path:
    """Path of a local place, a UPath (which has the same methods) of a remote one.

    A UPath with its own storage options is taken as it is. S3 is read anonymously unless the
    environment names a key or a profile.

    Raises
    ------
    ConfigurationError
        If the protocol is unknown, or its package is not installed.
    """
    if isinstance(place, UPath):
        return cast("Path", place) if is_remote(place) else Path(place.path)
    text = str(place)
    if isinstance(place, Path) or "://" not in text:
        return Path(place)
    protocol = text.partition("://")[0]
    module, package = _NEEDED.get(protocol, ("fsspec", "fsspec"))
    if find_spec(module) is None:
        raise ConfigurationError(
            f"{protocol}:// needs the package {module}, which is not installed",
            where=text,
            remedy=f"pip install '{package}'",
        )
    try:
        upath = get_upath(text, **_options(protocol))
        upath.fs  # noqa: B018 - an unknown protocol shows only here
    except (ValueError, ImportError) as problem:
        raise ConfigurationError(
            f"cannot be opened ({first_line(problem)})",
            where=text,
            remedy=f"Give a folder, or a URI that starts with {'://, '.join(_NEEDED)}://",
        ) from problem
    return cast("Path", upath) if is_remote(upath) else Path(upath.path)


def _options(protocol: str) -> dict[str, object]:
    if protocol in {"http", "https"}:
        import aiohttp

        patience = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
        )
        return {"client_kwargs": {"timeout": patience}}
    if protocol == "s3" and {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(os.environ):
        return {"anon": False}
    return {}


def is_remote(path: Path | UPath) -> bool:
    """Whether a path leads off this machine's file systems."""
    return getattr(path, "protocol", "") not in {"", "file", "local"}


def resolved(path: Path) -> Path:
    """The absolute path of a local place; a remote one as it is, since it has no links."""
    return path if is_remote(path) else path.resolve()


def patiently(call: Callable[[], T], *, where: str, kind: type[SkyvecError] = ContractError) -> T:
    """Make a call again, with growing pauses, while it fails for a reason that may pass.

    Parameters
    ----------
    where
        Names the file in the error.
    kind
        Error for what no repetition mends: not there, not allowed.

    Raises
    ------
    InfrastructureError
        If the reason did not pass.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except SkyvecError:
            raise
        except Exception as problem:
            last = attempt == ATTEMPTS - 1
            if last or not _may_pass(problem):
                raise _explained(problem, where=where, kind=kind) from problem
            time.sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def _chain(problem: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = problem
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _status(problem: BaseException) -> int | None:
    """HTTP status, wherever the client library keeps it."""
    for link in _chain(problem):
        response = getattr(link, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        for status in (
            getattr(link, "status", None),
            getattr(response, "status_code", None),
            metadata.get("HTTPStatusCode"),
        ):
            if isinstance(status, int):
                return status
    return None


def _may_pass(problem: BaseException) -> bool:
    status = _status(problem)
    if status is not None:
        return status in _PASSING
    return any(
        isinstance(link, TimeoutError | ConnectionError | _ShortAnswerError)
        or type(link).__module__.startswith("aiohttp")
        for link in _chain(problem)
    )


def _explained(problem: Exception, *, where: str, kind: type[SkyvecError]) -> SkyvecError:
    status = _status(problem)
    told = f"HTTP {status}" if status else first_line(problem)
    if _may_pass(problem):
        if any(isinstance(link, TimeoutError) for link in _chain(problem)):
            told = "no answer in time"
        return InfrastructureError(
            f"cannot be fetched after {ATTEMPTS} attempts ({told})",
            where=where,
            remedy="Check the network and the server, then run the same command again",
        )
    if status in {401, 403} or isinstance(problem, PermissionError):
        return kind(
            f"access is refused ({told})",
            where=where,
            remedy="Log in (hf auth login, AWS_PROFILE) or ask its owner for access",
        )
    if status in {404, 410} or isinstance(problem, FileNotFoundError):
        return kind("is not there", where=where, remedy="Check the address")
    return kind(f"cannot be read ({told})", where=where, remedy=_UNREADABLE)


class _ShortAnswerError(OSError):
    """A server sent fewer bytes than it was asked for."""


class RangeReader(io.RawIOBase):
    """A remote file of which only the ranges asked for are fetched; its end is kept.

    Raises
    ------
    SkyvecError
        From every read that fails for good; see `patiently`.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.fs, self.key = cast("UPath", path).fs, cast("UPath", path).path
        self.bytes = self._size()
        self.at = 0
        self.tail_start = max(0, self.bytes - TAIL_BYTES)
        self.tail = self._fetch(self.tail_start, self.bytes)

    def _size(self) -> int:
        known = patiently(lambda: self.fs.info(self.key), where=self.where)["size"]
        if known is None:
            raise ContractError(
                "the server does not say how long it is",
                where=self.where,
                remedy="Use a server that sends Content-Length, or copy the catalog",
            )
        return int(known)

    def _fetch(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""

        def once() -> bytes:
            answer = bytes(self.fs.cat_file(self.key, start=start, end=stop))
            if len(answer) > stop - start:
                raise ContractError(
                    "the server ignores byte ranges",
                    where=self.where,
                    remedy="Use a server that answers Range requests, or copy the catalog",
                )
            if len(answer) < stop - start:
                raise _ShortAnswerError(f"{len(answer)} of {stop - start} bytes came")
            return answer

        return patiently(once, where=self.where)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self.at

    def size(self) -> int:
        """Bytes in the file."""
        return self.bytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; nothing is fetched."""
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.bytes}[whence]
        return self.at

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here on, fewer only at the end of the file."""
        stop = self.bytes if size is None or size < 0 else min(self.bytes, self.at + size)
        if self.at >= self.tail_start:
            answer = self.tail[self.at - self.tail_start : stop - self.tail_start]
        else:
            answer = self._fetch(self.at, stop)
        self.at += len(answer)
        return answer


def open_bytes(path: Path) -> io.BufferedReader | RangeReader:
    """A file to seek and read in, local or remote."""
    return RangeReader(path) if is_remote(path) else path.open("rb")


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, local or remote, that is read in bounded memory.

    Raises
    ------
    ContractError
        If it is not there or not a complete Parquet file.
    """
    handle = RangeReader(path) if is_remote(path) else path
    try:
        return pq.ParquetFile(handle, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as problem:
        raise unreadable(problem, path) from problem


def is_there(path: Path, *, kind: type[SkyvecError] = ContractError) -> bool:
    """Whether a remote file exists; a server that fails or refuses is an error, not a no."""
    fs, key = cast("UPath", path).fs, cast("UPath", path).path

    def once() -> bool:
        try:
            fs.info(key)
        except Exception as problem:
            if _status(problem) in {404, 410}:
                return False
            if (
                _status(problem) is None
                and isinstance(problem, FileNotFoundError)
                and not (_may_pass(problem))
            ):
                return False
            raise
        return True

    return patiently(once, where=str(path), kind=kind)


_MACHINE = {errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT,
            errno.EAGAIN, errno.EBUSY, errno.ENOTCONN, errno.ECONNRESET}  # fmt: skip
"""What a disk or a file system that is not well says of files that may be."""


def unreadable(problem: Exception, path: Path | str) -> SkyvecError:
    """What to say of a file that cannot be decoded: it is broken, or its disk is not well."""
    if isinstance(problem, OSError) and problem.errno in _MACHINE:
        return InfrastructureError(
            f"cannot be read now ({first_line(problem)})",
            where=str(path),
            remedy="Mend the disk or the mount, and run the same command again",
        )
    return ContractError(
        f"cannot be read ({first_line(problem)})",
        where=str(path),
        remedy=_OUR_OWN if _is_ours(path) else _UNREADABLE,
    )


def _is_ours(path: Path | str) -> bool:
    """Whether a leaf is one of an extension, which has records of its own beside ``dataset/``."""
    if isinstance(path, str) or is_remote(path):
        return False
    return any((up.parent / "skyvec").is_dir() for up in path.parents if up.name == "dataset")


def first_line(problem: BaseException) -> str:
    """First line of what an exception says, or what it is."""
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
