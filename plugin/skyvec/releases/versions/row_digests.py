"""Digests of rows that depend on the values alone, not on how a file lays them out.

A row's digest is the SHA-256 (128 bits of it) over the digests of its columns in the order of
their names. All columns with one number or text in a row count as one column here, since they are
cheap to digest together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skyvec_schemas.release_manifest import DIGEST_BYTES

Digests = NDArray[np.uint8]
"""(n, 16)."""

SCALARS = ""
"""Name under which the columns with one value in a row are digested together."""
_TEXT = "text"


def combined(columns: Mapping[str, Digests], rows: int) -> Digests:
    """Digests of whole rows from those of their columns."""
    if not columns:
        return np.zeros((rows, DIGEST_BYTES), np.uint8)
    names = sorted(columns)
    matrix = np.hstack([columns[name] for name in names])
    return digest_rows("\n".join(names), matrix)


def digest_rows(
    meaning: str, rows: NDArray[np.generic], lengths: NDArray[np.int64] | None = None
) -> Digests:
    """Digests of the rows of one array (n, ...).

    Parameters
    ----------
    meaning
        What the bytes are: name, type and shape.
    lengths
        (n,) how much of the last axis counts in each row; all of it by default.
    """
    base = hashlib.sha256(meaning.encode())
    found = bytearray()
    for place, row in enumerate(rows):
        digest = base.copy()
        if lengths is None:
            digest.update(row.data if row.flags.c_contiguous else np.ascontiguousarray(row).data)
        else:
            digest.update(lengths[place].tobytes())
            digest.update(np.ascontiguousarray(row[..., : lengths[place]]).data)
        found += digest.digest()[:DIGEST_BYTES]
    return _as_digests(found)


def digest_scalars(
    numbers: Mapping[str, NDArray[np.generic]], texts: Mapping[str, Sequence[bytes | None]]
) -> Digests:
    """Digests of rows with one value in each column: numbers (n,) and texts, None where null."""
    names = sorted(numbers)
    meaning = ";".join(
        [*(f"{name}:{_kind(numbers[name].dtype)}" for name in names),
         *(f"{name}:{_TEXT}" for name in sorted(texts))]
    )  # fmt: skip
    packed = [
        np.ascontiguousarray(little_endian(numbers[name])).view(np.uint8).reshape(
            len(numbers[name]), -1
        )
        for name in names
    ]  # fmt: skip
    if not texts:
        return digest_rows(meaning, np.hstack(packed))
    fixed = np.hstack(packed) if packed else None
    base = hashlib.sha256(meaning.encode())
    found = bytearray()
    for place, words in enumerate(zip(*(texts[name] for name in sorted(texts)), strict=True)):
        digest = base.copy()
        if fixed is not None:
            digest.update(fixed[place].data)
        for word in words:
            digest.update(b"-" if word is None else b"%d:%b" % (len(word), word))
        found += digest.digest()[:DIGEST_BYTES]
    return _as_digests(found)


def little_endian(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same values in little-endian order."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def meaning(name: str, dtype: np.dtype, shape: tuple[object, ...]) -> str:
    """Text for the name, type and row shape of a column, byte order left out."""
    return f"{name}:{_kind(dtype)}:{','.join(map(str, shape))}"


def _kind(dtype: np.dtype) -> str:
    return str(dtype.newbyteorder("<").descr if dtype.names else dtype.str.lstrip("<>|="))


def _as_digests(found: bytearray) -> Digests:
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, DIGEST_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Leaf:
    """The values of one primitive field of an Arrow column, flat, and where each row's lie."""

    name: str
    kind: str
    lengths: tuple[NDArray[np.int64], ...]
    """Length of every list at each depth, -1 for null."""
    starts: tuple[NDArray[np.int64], ...]
    """(rows + 1,) where each row begins at each depth; the last is into the values."""
    values: NDArray[np.generic]
    nulls: NDArray[np.int64]
    """Places of null values."""


def is_nested(kind: pa.DataType) -> bool:
    """Whether rows of this Arrow type differ in size, text excepted."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_nested(kind.storage_type)
    if pa.types.is_struct(kind):
        return any(is_nested(field.type) for field in kind.fields)
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_map(kind)
    )


def digest_nested(name: str, column: pa.Array) -> Digests:
    """Digests of the rows of one Arrow column of lists, tensors or structs of them."""
    leaves = sorted(_leaves(name, column), key=lambda leaf: leaf.name)
    base = hashlib.sha256(
        ";".join(f"{leaf.name}:{leaf.kind}:{len(leaf.lengths)}" for leaf in leaves).encode()
    )
    found = bytearray()
    for row in range(len(column)):
        digest = base.copy()
        for leaf in leaves:
            for depth, lengths in enumerate(leaf.lengths):
                start, stop = leaf.starts[depth][row : row + 2]
                digest.update(lengths[start:stop].data)
            start, stop = leaf.starts[-1][row : row + 2]
            digest.update(leaf.values[start:stop].data)
            first, last = np.searchsorted(leaf.nulls, [start, stop])
            if last > first:
                digest.update(b"null" + (leaf.nulls[first:last] - start).tobytes())
        found += digest.digest()[:DIGEST_BYTES]
    return _as_digests(found)


def digest_flat(columns: Mapping[str, pa.Array]) -> Digests:
    """Digests of the rows of Arrow columns with one value in a row, structs of such included."""
    numbers: dict[str, NDArray[np.generic]] = {}
    texts: dict[str, Sequence[bytes | None]] = {}
    for name, column in columns.items():
        for leaf_name, array in _fields(name, column):
            if _is_text(array.type):
                texts[leaf_name] = array.cast(pa.large_binary()).to_pylist()
                continue
            values, nulls = _primitive(array)
            numbers[leaf_name] = values
            numbers[f"{leaf_name}?"] = np.zeros(len(values), np.bool_)
            numbers[f"{leaf_name}?"][nulls] = True
    return digest_scalars(numbers, texts)


def _fields(name: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    array = _plain(array)
    if not pa.types.is_struct(array.type):
        yield name, array
        return
    for field, child in zip(array.type.fields, array.flatten(), strict=True):
        yield from _fields(f"{name}.{field.name}", child)


def _leaves(name: str, column: pa.Array) -> Iterator[_Leaf]:
    every = np.arange(len(column) + 1, dtype=np.int64)
    yield from _descend(name, column, lengths=(), starts=(every,))


def _descend(
    name: str,
    array: pa.Array,
    *,
    lengths: tuple[NDArray[np.int64], ...],
    starts: tuple[NDArray[np.int64], ...],
) -> Iterator[_Leaf]:
    array = _plain(array)
    if pa.types.is_struct(array.type):
        for field, child in zip(array.type.fields, array.flatten(), strict=True):
            yield from _descend(f"{name}.{field.name}", child, lengths=lengths, starts=starts)
        return
    if is_nested(array.type) or _is_text(array.type):
        measure = pc.binary_length if _is_text(array.type) else pc.list_value_length
        found = pc.fill_null(measure(array), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.maximum(found, 0))])
        lengths, starts = (*lengths, found), (*starts, offsets[starts[-1]])
        if not _is_text(array.type):
            yield from _descend(name, array.flatten(), lengths=lengths, starts=starts)
            return
        joined = b"".join(text for text in array.cast(pa.large_binary()).to_pylist() if text)
        values: NDArray[np.generic] = np.frombuffer(joined, np.uint8)
        nulls, kind = np.empty(0, np.int64), _TEXT
    else:
        values, nulls = _primitive(array)
        kind = str(array.type)
    yield _Leaf(name=name, kind=kind, lengths=lengths, starts=starts, values=values, nulls=nulls)


def _plain(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_map(array.type):
        return array.cast(pa.list_(pa.struct([array.type.key_field, array.type.item_field])))
    return array


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    )  # fmt: skip


def _primitive(array: pa.Array) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Values of a column of fixed width, 0 where null, and the places of the nulls."""
    nulls = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_null(array.type) or not len(array):
        return np.zeros(len(array), np.uint8), nulls
    if pa.types.is_boolean(array.type):
        bits = pc.fill_null(array, False).to_numpy(zero_copy_only=False)  # noqa: FBT003
        return bits.astype(np.uint8), nulls
    width = array.type.bit_width // 8
    dtype = np.dtype({1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}.get(width, f"V{width}"))
    data = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * width)
    if len(nulls):
        data = data.copy()
        data[nulls] = np.zeros(1, dtype)
    return data, nulls
