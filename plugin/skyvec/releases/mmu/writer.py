"""Columns -> files in the layout of the Multimodal Universe, in bounded memory."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import h5py
import numpy as np
from hats.pixel_math.healpix_shim import radec2pix
from numpy.typing import NDArray

from skyvec.releases.mmu.layout import HEALPIX, ORDER, dtype_of
from skyvec.releases.sky import valid_positions
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import Survey

Layout = Literal["contiguous", "object", "mmu"]
Columns = Mapping[str, NDArray[np.generic]]

_BIG_ROW = 4096
"""Bytes from which a row is worth a chunk of its own."""


def write_mmu_file(
    path: Path,
    batches: Iterable[Columns],
    *,
    rows: int,
    layout: Layout = "contiguous",
    compression: str | None = None,
) -> Path:
    """Write one file, aside first, so that ``path`` is absent, as it was, or whole.

    Parameters
    ----------
    batches
        Column -> rows (k, ...). The first batch fixes columns, dtypes and shapes; text becomes
        fixed-length bytes.
    rows
        Sum of all k.
    layout
        ``contiguous``: fastest to read. ``object``: one chunk for each object. ``mmu``: chunks
        guessed from the first batch and growing, as the builders of LS and HSC do.
    compression
        A filter of h5py (``lzf``, ``gzip``); not for ``contiguous``.

    Raises
    ------
    ConfigurationError
        If batches disagree with the first, or with ``rows``.
    """
    path = Path(path)
    if compression and layout == "contiguous":
        raise _refused(path, "contiguous datasets cannot be compressed", "Choose another layout")
    source = iter(batches)
    first = _stored(next(source, {}))
    if not first:
        raise _refused(path, "there is no batch", "Give at least one, if of no rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with h5py.File(aside, "w") as file:
            for name, values in first.items():
                _create(file, name, values, rows, layout, compression)
            _fill(file, path, chain([first], map(_stored, source)), rows)
        os.replace(aside, path)  # noqa: PTH105 - atomic on every platform
    finally:
        aside.unlink(missing_ok=True)
    return path


def _create(
    file: h5py.File,
    name: str,
    values: NDArray[np.generic],
    rows: int,
    layout: Layout,
    compression: str | None,
) -> None:
    trail = values.shape[1:]
    shape = (rows, *trail)
    if layout == "mmu":
        # h5py guesses the chunk from the shape at creation: that of the first write.
        file.create_dataset(
            name,
            shape=values.shape,
            maxshape=(None, *trail),
            dtype=values.dtype,
            chunks=True,
            compression=compression,
        ).resize(rows, axis=0)
    elif layout == "object" and rows and values.dtype.itemsize * np.prod(trail) >= _BIG_ROW:
        chunks = (1, *trail)
        file.create_dataset(
            name, shape=shape, dtype=values.dtype, chunks=chunks, compression=compression
        )
    else:
        file.create_dataset(name, shape=shape, dtype=values.dtype)


def _fill(file: h5py.File, path: Path, batches: Iterable[Columns], rows: int) -> None:
    start = 0
    for number, batch in enumerate(batches):
        count = _row_count(batch)
        if batch.keys() != file.keys():
            differing = ", ".join(sorted(batch.keys() ^ file.keys()))
            raise _refused(path, f"batch {number} differs in columns ({differing})", _SAME)
        if count is None or start + count > rows:
            found = {name: len(values) for name, values in batch.items()}
            what = f"batch {number} has rows {found} of which {rows - start} are left"
            raise _refused(path, what, "Give every column as many rows, and their true sum")
        for name, values in batch.items():
            dataset = file[name]
            if not _fits(values.dtype, dataset.dtype) or values.shape[1:] != dataset.shape[1:]:
                what = (
                    f"{name!r} is {values.dtype} {values.shape[1:]} in batch {number}, "
                    f"{dataset.dtype} {dataset.shape[1:]} in the first"
                )
                raise _refused(path, what, _SAME)
            dataset[start : start + count] = values
        start += count
    if start != rows:
        raise _refused(path, f"{start} rows came, {rows} were announced", "Give their true sum")


def _stored(batch: Columns) -> dict[str, NDArray[np.generic]]:
    """The same columns with text as fixed-length bytes; HDF5 has no fixed-length UTF-32."""
    return {name: _plain(name, np.asarray(values)) for name, values in batch.items()}


def _plain(name: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
    if values.dtype.kind == "U":
        return np.char.encode(values.astype(np.str_), "utf-8")
    if values.dtype.hasobject:
        raise ConfigurationError(
            "holds Python objects",
            where=f"column {name!r}",
            remedy="Give numbers, or text as a numpy array of strings",
        )
    # What h5py read carries notes of its own on the dtype, which numpy would warn of.
    return values.view(values.dtype.str) if values.dtype.metadata else values


def _row_count(batch: Columns) -> int | None:
    counts = {len(values) for values in batch.values()}
    return counts.pop() if len(counts) == 1 else None


def _fits(found: np.dtype, stored: np.dtype) -> bool:
    """Equal, or text no longer than the place for it: h5py would cut it off in silence."""
    if found.kind == stored.kind == "S":
        return found.itemsize <= stored.itemsize
    return found == stored


_SAME = "Give every batch the columns, dtypes and shapes of the first"


def _refused(path: Path, what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(what, where=str(path), remedy=remedy)


def write_mmu_release(
    root: Path,
    survey: Survey,
    batches: Iterable[Columns],
    *,
    layout: Layout = "contiguous",
    compression: str | None = None,
) -> list[Path]:
    """Write ``root/healpix=P/001-of-001.hdf5`` for every order-4 pixel that holds an object.

    ``healpix`` is computed from the positions, and columns that the builders type in a way of
    their own are cast. Rows keep their order within a pixel. Rows wait on disk in ``root`` until
    their number is known, so that memory is bounded by one batch.

    Parameters
    ----------
    root
        Folder of the survey's configuration, e.g. ``legacysurvey/dr10_south_21``.
    batches
        Column -> rows; at least the survey's id, ``ra`` and ``dec``, in any order on the sky.

    Returns
    -------
    list
        The files, in the order of their pixels.

    Raises
    ------
    ConfigurationError
        If columns are missing or batches disagree.
    ContractError
        If a position is not on the sky, or a value does not survive its cast.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".spool") as folder:
        spool = Path(folder)
        counts: dict[int, int] = {}
        texts: dict[str, np.dtype] = {}
        for number, batch in enumerate(batches):
            columns = _of_survey(root, survey, batch, number)
            for name, values in columns.items():
                if values.dtype.kind == "S":
                    texts[name] = np.promote_types(texts.get(name, values.dtype), values.dtype)
            pixels = columns[HEALPIX]
            for pixel in np.unique(pixels).tolist():
                rows = np.flatnonzero(pixels == pixel)
                with (spool / str(pixel)).open("ab") as waiting:
                    _append(waiting, {name: values[rows] for name, values in columns.items()})
                counts[pixel] = counts.get(pixel, 0) + len(rows)
        return [
            write_mmu_file(
                root / f"{HEALPIX}={pixel}" / "001-of-001.hdf5",
                _waiting(spool / str(pixel), texts),
                rows=counts[pixel],
                layout=layout,
                compression=compression,
            )
            for pixel in sorted(counts)
        ]


def _of_survey(
    root: Path, survey: Survey, batch: Columns, number: int
) -> dict[str, NDArray[np.generic]]:
    where = f"{root}, batch {number}"
    columns = _stored(batch)
    required = (survey.id_column, survey.ra_column, survey.dec_column)
    if absent := [name for name in required if name not in columns]:
        raise ConfigurationError(
            f"no column {', '.join(map(repr, absent))}",
            where=where,
            remedy=f"Every batch needs {', '.join(required)}",
        )
    if _row_count(columns) is None:
        found = {name: len(values) for name, values in columns.items()}
        raise ConfigurationError(
            f"columns differ in rows {found}", where=where, remedy="Give every column as many"
        )
    ra, dec = (columns[name].astype(np.float64) for name in required[1:])
    if len(wrong := np.flatnonzero(~valid_positions(ra, dec))):
        row = int(wrong[0])
        raise ContractError(
            f"row {row}: ra = {ra[row]}, dec = {dec[row]} is no place on the sky",
            where=where,
            remedy="Mend or leave out such rows before writing",
        )
    cast = {name: _cast(survey, name, values, where) for name, values in columns.items()}
    return {**cast, HEALPIX: radec2pix(ORDER, ra, dec).astype(np.int64)}


def _cast(
    survey: Survey, name: str, values: NDArray[np.generic], where: str
) -> NDArray[np.generic]:
    dtype = dtype_of(survey, name, values.dtype)
    if dtype.kind == "i" and values.dtype.kind not in "iu":
        raise ContractError(
            f"{name!r} is {values.dtype}, it is stored as {dtype}",
            where=where,
            remedy="Give integers: other types do not hold every 64-bit id",
        )
    stored = values.astype(dtype, copy=False)
    if dtype.kind in "ib" and not np.array_equal(stored, values):
        raise ContractError(
            f"{name!r} holds values that {dtype} does not",
            where=where,
            remedy="Give a mask as 0 and 1, and ids below 2^63",
        )
    return stored


def _append(waiting: BinaryIO, columns: Columns) -> None:
    for values in (np.array(list(columns), np.str_), *columns.values()):
        np.lib.format.write_array(waiting, values, allow_pickle=False)


def _waiting(path: Path, texts: Mapping[str, np.dtype]) -> Iterator[Columns]:
    """Parts as they were appended; text as wide as the widest of all."""
    size = path.stat().st_size
    with path.open("rb") as waiting:
        while waiting.tell() < size:
            names = np.lib.format.read_array(waiting, allow_pickle=False).tolist()
            parts = {name: np.lib.format.read_array(waiting, allow_pickle=False) for name in names}
            yield {name: values.astype(texts.get(name, values.dtype), copy=False)
                   for name, values in parts.items()}  # fmt: skip
