"""FITS files opened so that every failure is one line that names the file."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WcsError

from skyvec_schemas.errors import ConfigurationError, ContractError

SUFFIXES = (".fits", ".fits.fz", ".fits.gz")
"""Plain, tile-compressed (fpack) and compressed as a whole."""

_FAILURES = (
    OSError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError,
    zlib.error, struct.error, fits.VerifyError, WcsError,
)  # fmt: skip
_ENDS = 1 << 16
_BLOCK = 2880


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside into a `ContractError` that names the file.

    Warnings of astropy about headers are dropped: the caller checks what it needs of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            yield
        except ContractError:
            raise
        except FileNotFoundError as problem:
            raise ContractError(
                "the file is gone",
                where=str(path),
                remedy="Fetch it again, or open the folder anew",
            ) from problem
        except _FAILURES as problem:
            raise unreadable(path, problem) from problem


def unreadable(path: Path, problem: object) -> ContractError:
    """The error for a file that is broken."""
    lines = str(problem).strip().splitlines()
    why = lines[0] if lines else type(problem).__name__
    return ContractError(
        f"cannot be read as FITS ({why})", where=str(path), remedy="Fetch this file again"
    )


def open_fits(path: Path, *, headers_only: bool = False) -> fits.HDUList:
    """Open a file; the caller closes it.

    Parameters
    ----------
    headers_only
        Show compressed images as the tables that hold them, whose header is much cheaper.
    """
    with naming(path):
        # Sections are read by seek: a map of a file on a network disk that shrinks is a crash.
        return fits.open(path, memmap=False, disable_image_compression=headers_only)


def is_image(hdu: fits.hdu.base.ExtensionHDU) -> bool:
    """Whether it is a 2-D image, as an image or as the table that holds a compressed one."""
    header = hdu.header
    if header.get("ZIMAGE"):
        return bool(header.get("ZNAXIS") == 2)
    return bool(hdu.is_image and header.get("NAXIS") == 2)


def image_hdu(hdus: fits.HDUList, name: str | None, path: Path) -> fits.hdu.base.ExtensionHDU:
    """The image of this EXTNAME (or EXTTYPE); the first image where no name is given."""
    with naming(path):
        # The first that fits: those after it need not be parsed.
        hdu = next((hdu for hdu in hdus if is_image(hdu) and _is_called(hdu, name)), None)
        if hdu is not None:
            _check_whole(hdu, path)
            return hdu
    found = ", ".join(hdu.name or "unnamed" for hdu in hdus)
    raise ContractError(
        f"no image {name!r} in it" if name else "no image in it",
        where=str(path),
        remedy=f"It holds {found}: name the right one, as in 'calexp.fits[IMAGE]'",
    )


def _is_called(hdu: fits.hdu.base.ExtensionHDU, name: str | None) -> bool:
    keys = ("EXTNAME", "EXTTYPE")
    return name is None or name.upper() in {str(hdu.header.get(key)).upper() for key in keys}


def table_hdu(hdus: fits.HDUList, name: str, path: Path) -> fits.hdu.base.ExtensionHDU:
    """An extension by its name."""
    with naming(path):
        if name in hdus:
            _check_whole(hdus[name], path)
            return hdus[name]
        found = ", ".join(hdu.name or "unnamed" for hdu in hdus)
    raise ContractError(
        f"no HDU {name}", where=str(path), remedy=f"It holds {found}: fetch the right file"
    )


def _check_whole(hdu: fits.hdu.base.ExtensionHDU, path: Path) -> None:
    """Refuse a file that ends before its data do; astropy only warns."""
    if path.suffix == ".gz":
        return
    place = hdu.fileinfo()
    # A compressed image tells its size only in whole blocks, whose last may be cut short.
    size = place["datSpan"] - _BLOCK + 1 if isinstance(hdu, fits.CompImageHDU) else hdu.size
    end, found = place["datLoc"] + size, path.stat().st_size
    if end > found:
        raise ContractError(
            f"truncated: {found} bytes where HDU {hdu.name or 'PRIMARY'} ends at byte {end}",
            where=str(path),
            remedy="Fetch this file again",
        )


def fits_files(root: str | Path) -> Iterator[tuple[str, Path]]:
    """Every FITS file at or under a path, with its name relative to it, in alphabetical order."""
    root = Path(root)
    if not root.exists():
        raise ConfigurationError(
            "there is no such file or folder",
            where=str(root),
            remedy="Give the folder of the files",
        )
    if root.is_file():
        yield root.name, root
        return
    # Links are followed, since many keep one copy of a release and folders of links to it.
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        for name in sorted(names):
            if name.endswith(SUFFIXES):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def fingerprint(path: Path) -> dict[str, object]:
    """Size and a digest of the first and last 64 KiB: headers with their checksums, and the end."""
    with naming(path):
        size = path.stat().st_size
        return {"bytes": size, "ends": _digest(path, size, path.stat().st_mtime_ns)}


@lru_cache(maxsize=1 << 14)
def _digest(path: Path, size: int, _modified: int) -> str:
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return hashlib.sha256(head + file.read()).hexdigest()
