"""What is in nested Arrow types and columns: structs, lists of structs, lists and tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def type_at(schema: pa.Schema, path: tuple[str, ...]) -> pa.DataType:
    """Type of a column or field; what lies in a list of structs counts as a list."""
    kind = schema.field(path[0]).type
    lists = 0
    for field in path[1:]:
        lists += depth(kind)
        kind = fields_of(kind)[field]
    for _ in range(lists):
        kind = pa.list_(kind)
    return kind


def fields_of(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Fields of a struct or of a list of structs."""
    inner = innermost(kind)
    return {f.name: f.type for f in inner.fields} if pa.types.is_struct(inner) else {}


def innermost(kind: pa.DataType) -> pa.DataType:
    """What is in the lists or tensors."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif is_list(kind):
            kind = kind.value_type
        else:
            return kind


def depth(kind: pa.DataType) -> int:
    """Axes of one row: levels of lists, and the dimensions of tensors."""
    axes = 0
    while True:
        if isinstance(kind, pa.FixedShapeTensorType):
            return axes + len(kind.shape)
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif is_list(kind):
            kind, axes = kind.value_type, axes + 1
        else:
            return axes


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any kind."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in checks)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether it is a number; True, False and nothing but null included."""
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(check(kind) for check in checks)


def array_at(batch: pa.RecordBatch, path: Sequence[str]) -> pa.Array:
    """The column or field at a path; a null struct makes its fields null.

    A field of structs in lists comes as lists of that field.
    """
    array = batch.column(path[0])
    for field in path[1:]:
        array = _field(array, field)
    return array


def _field(array: pa.Array, name: str) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        return _field(array.storage, name)
    if pa.types.is_struct(array.type):
        return pc.struct_field(array, [array.type.get_field_index(name)])
    lengths, inner = level(array)
    offsets = pa.array(starts(lengths).astype(np.int32), mask=_mask(array))
    return pa.ListArray.from_arrays(offsets, _field(inner, name))


def _mask(array: pa.Array) -> NDArray[np.bool_] | None:
    """Null rows as `ListArray.from_arrays` takes them: in the offsets, which are one more."""
    if not array.null_count:
        return None
    return np.append(array.is_null().to_numpy(zero_copy_only=False), [False])


def level(array: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Length of each list, 0 where null, and what is in them, one after the other."""
    lengths = pc.list_value_length(array)
    if lengths.null_count:
        lengths = lengths.fill_null(0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64), array.flatten()


def starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of consecutive lists starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)])
