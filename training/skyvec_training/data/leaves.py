"""Where the Parquet leaves of a HATS catalog lie, in one fixed order."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq

from skyvec_schemas.errors import ConfigurationError, MissingColumnError

_LEAF = re.compile(r"Norder=(\d+)/Dir=\d+/Npix=(\d+)(?:\.parquet|/)")


def catalog_folder(path: Path) -> Path:
    """The catalog itself, or the main catalog of a collection folder."""
    properties = path / "collection.properties"
    if not properties.is_file():
        return path
    for line in properties.read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "hats_primary_table_url":
            return path / value.strip()
    raise ConfigurationError(
        "it names no hats_primary_table_url",
        where=str(properties),
        remedy="Give the folder of the catalog itself",
    )


def leaves_of(path: Path) -> list[Path]:
    """Parquet leaves of a catalog or collection, by order and pixel."""
    dataset = catalog_folder(path) / "dataset"
    found = [
        (int(match[1]), int(match[2]), str(leaf))
        for leaf in dataset.rglob("*.parquet")
        if (match := _LEAF.search(leaf.relative_to(dataset).as_posix()))
    ]
    if not found:
        raise ConfigurationError(
            "there are no Norder=*/Dir=*/Npix=*.parquet leaves",
            where=str(dataset),
            remedy="Give the folder of a HATS catalog or collection",
        )
    return [Path(leaf) for _, _, leaf in sorted(found)]


def healpix_of(leaf: Path) -> tuple[int, int]:
    """Order and pixel of a leaf."""
    match = _LEAF.search(leaf.as_posix())
    if match is None:
        raise ValueError(f"{leaf} is no leaf of a HATS catalog")
    return int(match[1]), int(match[2])


def require_columns(leaf: Path, columns: list[str], *, remedy: str) -> None:
    """Refuse a leaf that lacks columns; the error names all of them."""
    missing = sorted(set(columns) - set(pq.read_schema(leaf).names))
    if missing:
        raise MissingColumnError(
            f"column {', '.join(missing)} is missing", where=str(leaf), remedy=remedy
        )
