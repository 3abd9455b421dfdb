"""Who is in one file of a release, and a digest of each row: read once, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.spatial_index import compute_spatial_index
from numpy.typing import NDArray

from skyvec.releases.ids import canonical_ids
from skyvec.releases.mmu.layout import id_name, pick
from skyvec.releases.sky import valid_positions
from skyvec.releases.versions.row_digests import (
    Digests,
    combined,
    digest_flat,
    digest_nested,
    digest_rows,
    digest_scalars,
    is_nested,
    little_endian,
    meaning,
)
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.release_manifest import BOOKKEEPING, DIGEST_BYTES, schema_digest
from skyvec_schemas.survey_columns import Survey

SLAB_BYTES = 32 << 20
"""Of one column in memory at a time."""
_COPY_AGAIN = "Copy or download this file again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRows:
    """The rows of one file, n entries each."""

    ids: NDArray[np.str_]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    healpix: NDArray[np.int64]
    """``_healpix_29`` of the position, -1 where it is not on the sky."""
    digests: Digests
    schema: str
    """Digest of the columns' names, types and shapes."""


def read_shard(path: Path, survey: Survey) -> ShardRows:
    """Digest the rows of an HDF5 file of the Multimodal Universe or of a Parquet leaf.

    Raises
    ------
    ContractError
        If the file is damaged, its columns differ in length or are of a kind that is not
        supported, or it has no id or position.
    """
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path, survey)
        return _read_hdf5(path, survey)
    except (OSError, pa.ArrowException) as problem:
        what = str(problem).strip().splitlines() or [type(problem).__name__]
        raise ContractError(
            f"cannot be read ({what[0][:120]}), {path.stat().st_size:,} bytes",
            where=str(path),
            remedy=_COPY_AGAIN,
        ) from problem


def _read_hdf5(path: Path, survey: Survey) -> ShardRows:
    with h5py.File(path, "r") as file:
        datasets = _datasets(file, path)
        keys = _keys(survey, list(datasets), path)
        alone = datasets[keys[0]].ndim == 0  # one object in a file, as in the supernova sets
        rows = 1 if alone else len(datasets[keys[0]])
        for name, dataset in datasets.items():
            if not alone and (dataset.ndim == 0 or len(dataset) != rows):
                found = len(dataset) if dataset.ndim else "no"
                raise ContractError(
                    f"{name!r} has {found} rows, {keys[0]!r} has {rows}",
                    where=str(path),
                    remedy=_COPY_AGAIN,
                )
        payload = {n: d for n, d in datasets.items() if _is_payload(n, keys)}
        filled = _filled(payload)
        columns: dict[str, Digests] = {}
        scalars = [n for n, d in payload.items() if d.ndim == (0 if alone else 1)]
        if scalars and rows:
            columns[""] = _hdf5_scalars({n: payload[n] for n in scalars})
        for name in payload.keys() - scalars:
            if rows:
                columns[name] = _hdf5_column(payload[name], filled.get(name), alone=alone)
        ids, ra, dec = (np.atleast_1d(datasets[key][()]) for key in keys)
        described = [_described(n, d, trimmed=n in filled) for n, d in datasets.items()]
        return _shard(path, ids, ra, dec, combined(columns, rows), described)


def _datasets(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    found = {}
    for name in file:
        link = file.get(name, getlink=True)
        item = file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(item, h5py.Dataset):
            kind = "a link" if item is None else "a group"
            raise ContractError(
                f"{name!r} is {kind}, only datasets at the root are supported",
                where=str(path),
                remedy="Write one dataset for each column, with the objects along its first axis",
            )
        found[name] = item
    return found


def _filled(datasets: dict[str, h5py.Dataset]) -> dict[str, h5py.Dataset]:
    """Column of spectra -> the wavelengths that say where each row's filling begins.

    A file is as wide as its longest spectrum, so the filling of one row depends on the others.
    """
    filled = {}
    for name, waves in datasets.items():
        if name.endswith("_lambda") and waves.ndim == 2:
            prefix = name.removesuffix("lambda")
            for sibling, dataset in datasets.items():
                if sibling.startswith(prefix) and dataset.shape[-1] == waves.shape[1]:
                    filled[sibling] = waves
    return filled


def _described(name: str, dataset: h5py.Dataset, *, trimmed: bool) -> str:
    shape: tuple[object, ...] = dataset.shape[1:]
    return meaning(name, dataset.dtype, (*shape[:-1], "L") if trimmed else shape)


def _hdf5_scalars(datasets: dict[str, h5py.Dataset]) -> Digests:
    numbers, texts = {}, {}
    for name, dataset in datasets.items():
        values = np.atleast_1d(dataset[()])
        if values.dtype.kind in "SO":
            texts[name] = [
                little_endian(value).tobytes() if isinstance(value, np.ndarray) else value
                for value in values.tolist()
            ]
        else:
            numbers[name] = values
    return digest_scalars(numbers, texts)


def _hdf5_column(dataset: h5py.Dataset, waves: h5py.Dataset | None, *, alone: bool) -> Digests:
    name = str(dataset.name).lstrip("/")
    found = []
    for slab in _slabs(dataset, alone=alone):
        values = dataset[()][None] if alone else dataset[slab]
        lengths = None
        if waves is not None:
            wave = waves[slab]
            real = np.isfinite(wave) & (wave > 0)
            lengths = np.where(real.any(1), real.shape[1] - real[:, ::-1].argmax(1), 0)
        if values.dtype.kind in "SO":
            joined = [b"\0".join(_texts(row)) for row in values]
            found.append(digest_scalars({}, {name: joined}))
            continue
        shape: tuple[object, ...] = values.shape[1:]
        about = meaning(name, dataset.dtype, (*shape[:-1], "L") if waves is not None else shape)
        found.append(digest_rows(about, little_endian(values), lengths))
    return np.concatenate(found)


def _texts(row: object) -> Iterator[bytes]:
    """Fields of texts or of numbers of varying length, as bytes."""
    for value in np.atleast_1d(np.asarray(row)).ravel().tolist():
        yield value if isinstance(value, bytes) else np.asarray(value, "<f8").tobytes()


def _slabs(dataset: h5py.Dataset, *, alone: bool) -> Iterator[slice]:
    if alone:
        yield slice(0, 1)
        return
    row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64)))
    step = max(1, SLAB_BYTES // row_bytes)
    if dataset.chunks:
        step = max(1, step // dataset.chunks[0]) * dataset.chunks[0]  # each chunk decoded once
    for start in range(0, len(dataset), step):
        yield slice(start, start + step)


def _read_parquet(path: Path, survey: Survey) -> ShardRows:
    with pq.ParquetFile(path) as leaf:
        schema = leaf.schema_arrow
        keys = _keys(survey, schema.names, path)
        payload = [name for name in schema.names if _is_payload(name, keys)]
        nested = [name for name in payload if is_nested(schema.field(name).type)]
        flat = sorted(set(payload) - set(nested))
        columns = {}
        for name in nested:
            columns[name] = _over_batches(
                leaf, [name], lambda b, name=name: digest_nested(name, b.column(0))
            )
        if flat:
            columns[""] = _over_batches(
                leaf, flat, lambda b: digest_flat({n: b.column(n) for n in flat})
            )
        table = leaf.read(columns=list(keys))
        rows = leaf.metadata.num_rows
    ids, ra, dec = (table.column(key) for key in keys)
    texts = np.array(["" if i is None else i for i in ids.to_pylist()], dtype=object)
    whole = pa.types.is_integer(ids.type) and not ids.null_count
    return _shard(
        path,
        ids.to_numpy() if whole or pa.types.is_floating(ids.type) else texts,
        ra.to_numpy(),
        dec.to_numpy(),
        combined(columns, rows),
        [f"{field.name}:{field.type}" for field in schema],
    )


def _over_batches(leaf: pq.ParquetFile, columns: list[str], digest) -> Digests:  # type: ignore[no-untyped-def]  # noqa: ANN001
    row_bytes = _row_bytes(leaf.metadata, columns)
    found = [
        digest(batch)
        for batch in leaf.iter_batches(
            max(1, min(SLAB_BYTES // row_bytes, 1 << 16)), columns=columns
        )
        if len(batch)
    ]
    return np.concatenate(found) if found else np.empty((0, DIGEST_BYTES), np.uint8)


def _row_bytes(metadata: pq.FileMetaData, columns: list[str]) -> int:
    total = 0
    for group in range(metadata.num_row_groups):
        chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        total += sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] in columns
        )
    return max(1, total // max(1, metadata.num_rows))


def _keys(survey: Survey, names: list[str], path: Path) -> tuple[str, str, str]:
    wanted = {
        "id": id_name(survey, names),
        "right ascension": pick((survey.ra_column, "ra"), names),
        "declination": pick((survey.dec_column, "dec"), names),
    }
    absent = [what for what, name in wanted.items() if name is None]
    if absent:
        raise MissingColumnError(
            f"no column for {', '.join(absent)} (it has {', '.join(names[:8])})",
            where=str(path),
            remedy=f"Name them {survey.id_column}, {survey.ra_column}, {survey.dec_column}",
        )
    found = [name for name in wanted.values() if name is not None]
    return found[0], found[1], found[2]


def _is_payload(name: str, keys: tuple[str, str, str]) -> bool:
    return name not in keys and name.lower() not in BOOKKEEPING


def _shard(
    path: Path,
    ids: NDArray[np.generic],
    ra: NDArray[np.generic],
    dec: NDArray[np.generic],
    digests: Digests,
    described: list[str],
) -> ShardRows:
    try:
        texts = canonical_ids(ids)
    except TypeError as problem:
        raise ContractError(
            str(problem), where=str(path), remedy="Store ids as integers or text"
        ) from problem
    lon, lat = (np.asarray(angle, np.float64) for angle in (ra, dec))
    valid = valid_positions(lon, lat)
    healpix = np.full(len(texts), -1, np.int64)
    if valid.any():
        healpix[valid] = compute_spatial_index(lon[valid], lat[valid])
    return ShardRows(
        ids=texts,
        ra=lon,
        dec=lat,
        healpix=healpix,
        digests=digests,
        schema=schema_digest(described),
    )
