"""Raw samples of HATS catalogs: structs of lists, lists of structs, lists and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import is_remote
from skyvec.releases.lint.raw_sample import (
    COUNTED_FILES,
    KEY_ROWS,
    RawFile,
    RawRelease,
    Rows,
    choose,
    extrapolate,
    is_small,
    logical_columns,
    spread,
)
from skyvec.releases.mmu.layout import IDS, pick
from skyvec_schemas.errors import ContractError, SkyvecError
from skyvec_schemas.survey_columns import Survey

_SHAPED = re.compile(r"^(?P<path>.+)\[(?P<shape>\d+(?:\s*,\s*\d+)*)\]$")
_STREAM = 1 << 20
"""Bytes read ahead; with larger or no limits a few rows cost the whole column of a row group."""


def sample_hats(
    release: HatsRelease,
    survey: Survey,
    columns: Mapping[str, str] | None = None,
    *,
    rows: int = 64,
    files: int = 3,
) -> RawRelease:
    """Leaves spread over a catalog, and the size of all.

    Parameters
    ----------
    columns
        Logical name -> column (or ``column.field``) where it is not the survey's.

    Raises
    ------
    ContractError
        If it has no leaf that can be read.
    """
    pixels = release.pixels
    looked_at = spread(len(pixels), COUNTED_FILES)
    counted: dict[int, int] = {}
    sizes: dict[int, int] = {}
    problems: list[SkyvecError] = []
    absent: list[str] = []
    for at in looked_at:
        parts = release.files(pixels[at])
        if not parts or not all(part.exists() for part in parts):
            absent.append(str(release.leaf(pixels[at])))
            continue
        try:
            counted[at] = sum(_row_count(part) for part in parts)
            sizes[at] = sum(part.stat().st_size for part in parts)
        except SkyvecError as problem:
            problems.append(problem)
    if problems and not counted:
        raise problems[0]
    sampled = []
    for at, share in choose(counted, rows=rows, files=files).items():
        try:
            sampled.append(
                sample_leaf(
                    release.files(pixels[at])[0], survey, columns or {},
                    rows=share, pixel=pixels[at], index=release.healpix_column,
                )
            )  # fmt: skip
        except SkyvecError as problem:
            problems.append(problem)
    stated = release.catalog.catalog_info.total_rows
    whole = len(counted) == len(pixels)
    return RawRelease(
        files=tuple(sampled),
        rows=int(stated) if stated is not None else extrapolate([1] * len(pixels), counted),
        bytes=round(sum(sizes.values()) * len(pixels) / max(1, len(sizes))),
        file_count=len(pixels),
        exact=whole,
        largest=max(counted.values(), default=0),
        problems=tuple(problems),
        stated_rows=None if stated is None else int(stated),
        counted_rows=sum(counted.values()) if whole else None,
        absent_files=tuple(absent),
        unlisted_files=_unlisted(release),
    )


def sample_leaf(
    path: Path,
    survey: Survey,
    columns: Mapping[str, str],
    *,
    rows: int,
    pixel: HealpixPixel | None = None,
    index: str = "_healpix_29",
) -> RawFile:
    """First rows of one Parquet file.

    Raises
    ------
    ContractError
        If it cannot be decoded.
    """
    try:
        with (
            path.open("rb") as handle,
            pq.ParquetFile(handle, buffer_size=_STREAM, pre_buffer=False) as leaf,
        ):
            schema = leaf.schema_arrow
            keys = {
                logical: _flat(_first(leaf, where, KEY_ROWS))
                for logical, where in _key_columns(schema, survey, columns, index).items()
            }
            arrays = {
                logical: found
                for logical, name in logical_columns(survey).items()
                if (found := _arrays(leaf, logical, _targets(name, columns), rows))
            }
            return RawFile(
                path=str(path),
                rows=leaf.metadata.num_rows,
                columns=tuple(schema.names),
                keys=keys,
                arrays=arrays,
                pixel=pixel,
            )
    except (pa.ArrowInvalid, OSError) as problem:
        raise _undecodable(path, problem) from problem


def _targets(name: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Where ``column.part`` may lie, the declared place first."""
    if name in columns:
        return (columns[name],)
    column, _, part = name.partition(".")
    whole = columns.get(column, column)
    if not part:
        return (whole,)
    usual = {"flux": ("flux", "array"), "lambda": ("lambda", "wavelength")}.get(part, (part,))
    return tuple(f"{whole}{mark}{each}" for mark in "._" for each in usual) + (
        (whole,) if part == "flux" else ()
    )


def _arrays(leaf: pq.ParquetFile, logical: str, targets: tuple[str, ...], rows: int) -> Rows:
    """First rows of an array; empty if the file does not have it."""
    count = min(KEY_ROWS, 16 * rows) if is_small(logical) else rows
    for target in targets:
        if target.startswith("="):  # the same names for every row
            names = np.array([name.strip() for name in target[1:].split(",")])
            return (names,) * min(count, leaf.metadata.num_rows)
        shaped = _SHAPED.match(target)
        where = _resolve(leaf.schema_arrow, shaped["path"] if shaped else target)
        if where is None or not _is_list(_kind(leaf.schema_arrow, where)):
            continue
        found = row_arrays(_first(leaf, where, count))
        return _shaped(found, shaped["shape"]) if shaped else found
    return ()


def _shaped(found: Rows, declared: str) -> Rows:
    shape = tuple(int(side) for side in declared.split(","))
    size = int(np.prod(shape))
    return tuple(
        row.reshape(shape) if row is not None and row.size == size else row for row in found
    )


def _kind(schema: pa.Schema, where: tuple[str, ...]) -> pa.DataType:
    kind = schema.field(where[0]).type
    for inner in where[1:]:
        if _is_list(kind):
            return kind
        kind = kind.field(inner).type
    return kind


def row_arrays(column: pa.Array) -> Rows:
    """Each row of a list, nested list or tensor column as an array of its own shape."""
    if isinstance(column, pa.FixedShapeTensorArray):
        present = column.is_valid().to_numpy(zero_copy_only=False)
        dense = column.to_numpy_ndarray()
        return tuple(dense[i] if there else None for i, there in enumerate(present))
    return tuple(
        None if not value.is_valid else _dense(value.values) if _is_list(value.type)
        else np.asarray(value.as_py())
        for value in column
    )  # fmt: skip


def _dense(values: pa.Array) -> NDArray[Any]:
    """One array of nested lists of equal lengths; dtype object where they are not."""
    shape = [len(values)]
    while _is_list(values.type):
        lengths = pc.unique(pc.fill_null(pc.list_value_length(values), 0))
        if len(lengths) != 1:
            return np.array([None] * shape[0], object)
        shape.append(lengths[0].as_py())
        values = values.flatten()
    flat = _flat(values)
    # A null among numbers is dropped by no step above, so the size fits.
    return flat.reshape(shape)


def _flat(values: pa.Array) -> NDArray[Any]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.null_count and pa.types.is_integer(values.type):
        return np.array(values.to_pylist(), object)
    if values.null_count and pa.types.is_boolean(values.type):
        values = values.fill_null(False)  # noqa: FBT003 - the value that fills
    return values.to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        isinstance(kind, pa.FixedShapeTensorType)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def _first(leaf: pq.ParquetFile, where: tuple[str, ...], rows: int) -> pa.Array:
    """The first rows of a column, or of a field within structs or lists of structs."""
    name = where[0] if _through_lists(leaf.schema_arrow, where) else ".".join(where)
    parts = []
    for batch in leaf.iter_batches(rows, columns=[name]):
        parts.append(batch.column(0))
        break
    if not parts:
        return pa.array([], pa.null())
    found = parts[0]
    for inner in where[1:]:
        found = _field(found, inner)
    return found


def _through_lists(schema: pa.Schema, where: tuple[str, ...]) -> bool:
    return len(where) > 1 and _is_list(schema.field(where[0]).type)


def _field(column: pa.Array, name: str) -> pa.Array:
    if not _is_list(column.type):
        return pc.struct_field(column, name)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    ends = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    inner = pc.struct_field(column.flatten(), name)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), inner)


def _key_columns(
    schema: pa.Schema, survey: Survey, columns: Mapping[str, str], index: str
) -> dict[str, tuple[str, ...]]:
    wanted = {
        "id": survey.id_column,
        "ra": survey.ra_column,
        "dec": survey.dec_column,
        "healpix": "healpix",
        "healpix_29": index,
        **{scalar.name: scalar.name for scalar in survey.scalars},
        **{label: label for label in survey.labels},
    }
    declared = {survey.id_column if k == "object_id" else k: v for k, v in columns.items()}
    found = {logical: _resolve(schema, declared.get(n, n)) for logical, n in wanted.items()}
    return {logical: where for logical, where in found.items() if where}


def _resolve(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """Steps to a column: itself, ``column.field``, or a field that just one struct has."""
    known = pick((name, *(IDS if name in IDS else ())), schema.names)
    if known:
        return (known,)
    root, _, rest = name.partition(".")
    if rest:
        there = root in schema.names and rest in _fields(schema.field(root).type)
        return (root, rest) if there else None
    homes = [f.name for f in schema if pa.types.is_struct(f.type) and name in _fields(f.type)]
    return (homes[0], name) if len(homes) == 1 else None


def _fields(kind: pa.DataType) -> list[str]:
    if _is_list(kind):
        kind = kind.value_type
    return [field.name for field in kind.fields] if pa.types.is_struct(kind) else []


def _row_count(path: Path) -> int:
    try:
        with path.open("rb") as handle:
            return int(pq.read_metadata(handle).num_rows)
    except (pa.ArrowInvalid, OSError) as problem:
        raise _undecodable(path, problem) from problem


def _undecodable(path: Path, problem: Exception) -> ContractError:
    what = str(problem).strip().splitlines()
    return ContractError(
        f"cannot be decoded ({what[0][:80] if what else type(problem).__name__})",
        where=str(path),
        remedy="Import or copy this pixel again",
    )


def _unlisted(release: HatsRelease) -> tuple[str, ...]:
    """Leaves on a local disk that the partition list does not name; remote ones are not listed."""
    if is_remote(release.root):
        return ()
    listed = {str(release.leaf(pixel)).rstrip("/") for pixel in release.pixels}
    there = map(str, release.root.glob("dataset/Norder=*/Dir=*/Npix=*"))
    return tuple(sorted(place for place in there if place not in listed))
