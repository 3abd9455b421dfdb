"""The files of one survey: leaves of a HATS catalog, or HDF5 files of the Multimodal Universe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_training.data.leaves import leaves_of

_HDF5 = {".hdf5", ".h5"}
_PIXEL = re.compile(r"healpix=(\d+)")


def parts_of(path: Path) -> list[Path]:
    """Parquet leaves of a catalog or collection, else HDF5 files below a folder, in fixed order.

    Raises
    ------
    ConfigurationError
        If there are neither.
    """
    try:
        return leaves_of(path)
    except ConfigurationError:
        found = [file for file in path.rglob("*") if file.suffix in _HDF5]
    if not found:
        raise ConfigurationError(
            "there are no Norder=*/Dir=*/Npix=*.parquet leaves and no .hdf5 files",
            where=str(path),
            remedy="Give a HATS catalog or collection, or a survey folder of the Multimodal Universe",
        )
    return sorted(found, key=lambda file: (_pixel(file), str(file)))


def is_hdf5(part: Path) -> bool:
    """Whether the part is a file of the Multimodal Universe."""
    return part.suffix in _HDF5


def names_of(part: Path) -> set[str]:
    """Columns of a part."""
    if not is_hdf5(part):
        return set(pq.read_schema(part).names)
    with _open(part) as file:
        return set(file)


def rows_of(part: Path, column: str) -> int:
    """Rows of a part."""
    if not is_hdf5(part):
        return int(pq.read_metadata(part).num_rows)
    with _open(part) as file:
        return len(file[column])


def shape_of(part: Path, dataset: str) -> tuple[int, ...]:
    """Shape of a dataset of an HDF5 file, objects first."""
    with _open(part) as file:
        return tuple(file[dataset].shape)


def require(part: Path, columns: Sequence[str], *, remedy: str) -> None:
    """Refuse a part that lacks columns; the error names all of them."""
    missing = sorted(set(columns) - names_of(part))
    if missing:
        raise MissingColumnError(
            f"column {', '.join(missing)} is missing", where=str(part), remedy=remedy
        )


def hdf5_batches(
    part: Path, columns: Sequence[str], rows: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Datasets of an HDF5 file, ``rows`` rows at a time, in the machine's byte order.

    Raises
    ------
    ContractError
        If the datasets differ in length, or do not decode.
    """
    with _open(part) as file:
        counts = {name: len(file[name]) for name in columns}
        if len(set(counts.values())) > 1:
            raise ContractError(
                f"datasets differ in length: {counts}",
                where=str(part),
                remedy="Copy this file again and compare its checksum with the release",
            )
        for start in range(0, next(iter(counts.values())), rows):
            try:
                found = {name: file[name][start : start + rows] for name in columns}
            except OSError as error:
                raise _broken(part, error) from error
            yield {k: v.astype(v.dtype.newbyteorder("="), copy=False) for k, v in found.items()}


def ids_of(values: NDArray[Any]) -> NDArray[np.bytes_]:
    """Ids of any type as text of one width."""
    return np.asarray(values.astype("S32"))


def _pixel(file: Path) -> int:
    match = _PIXEL.search(file.parent.name)
    return int(match[1]) if match else -1


def _open(part: Path) -> h5py.File:
    try:
        return h5py.File(part, "r")
    except OSError as error:
        raise _broken(part, error) from error


def _broken(part: Path, error: OSError) -> ContractError:
    return ContractError(
        f"it cannot be read as HDF5 ({error})",
        where=str(part),
        remedy="Copy this file again and compare its checksum with the release",
    )
