"""Which files of a folder belong to a release, in which layout, and the pixel of each."""

from __future__ import annotations

from pathlib import Path

from hats.io import paths

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.mmu.layout import HEALPIX, ORDER, PIXELS, SUFFIXES
from skyvec.releases.versions.manifest import files_below
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.release_manifest import Layout


def discover(data: Path) -> tuple[Layout, list[str]]:
    """Layout of a folder and the paths of its files.

    Raises
    ------
    ConfigurationError
        If it is neither layout.
    """
    if not data.is_dir():
        raise ConfigurationError(
            "there is no such folder", where=str(data), remedy="Give the folder of the release"
        )
    files = list(files_below(data))
    if any(Path(file).suffix in SUFFIXES for file in files):
        return "mmu-hdf5", files
    if any(_hats_pixel(file) for file in files):
        return "hats", files
    raise ConfigurationError(
        "holds neither healpix=P/*.hdf5 nor a HATS catalog",
        where=str(data),
        remedy="Give the folder above the pixels' folders",
    )


def pixel_of(path: str, layout: Layout) -> tuple[int, int] | None:
    """Order and pixel that a path names; None for a companion.

    Raises
    ------
    ContractError
        If a file with objects lies in no pixel's folder.
    """
    if layout == "hats":
        return _hats_pixel(path)
    place = Path(path)
    if place.suffix not in SUFFIXES:
        return None
    prefix, _, number = place.parent.name.partition("=")
    if prefix == HEALPIX and number.isdecimal() and int(number) < PIXELS:
        return ORDER, int(number)
    raise ContractError(
        "lies in no folder healpix=P with P below 3072",
        where=path,
        remedy="Move it to the folder of its pixel (NSIDE 16, nested), or out of the release",
    )


def _hats_pixel(path: str) -> tuple[int, int] | None:
    place = Path(path)
    if place.suffix != ".parquet" or "dataset" not in place.parts:
        return None
    pixel = paths.get_healpix_from_path(path)
    return (int(pixel.order), int(pixel.pixel)) if pixel.order >= 0 else None


def main_catalog(data: Path) -> Path:
    """Folder whose leaves are the objects; margins and other catalogs beside it repeat them."""
    return HatsRelease.open(data).root
