"""Ids of any release as one canonical text, so that the same object has the same id everywhere."""

from __future__ import annotations

import ast
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray

MISSING = ""
"""Canonical id of null, masked and blank ids; it equals no other id."""

_WHITE = "\x00 \t\r\n\v\f"  # numpy drops a NUL at the end
_REPR_OF_BYTES = re.compile(r"""b(['"])(.*)\1""", re.DOTALL)


def canonical_ids(
    values: NDArray[Any] | pa.Array | pa.ChunkedArray | pd.Series[Any] | ExtensionArray,
) -> NDArray[np.str_]:
    """Ids (n,) as text: integers in decimal, bytes decoded, padding and ``b'...'`` taken off.

    The Multimodal Universe pads SDSS ids with spaces, and its HATS port holds the literal text
    ``b'   2575025233207519232'``. Leading zeros, signs and case stay, since they tell objects
    apart. Null, masked and blank ids become `MISSING`.

    Raises
    ------
    TypeError
        For floats, since beyond 2^53 different ids have become equal, and for whatever else is
        neither whole numbers nor text, or not one id for each object.
    """
    if isinstance(values, pd.Series | ExtensionArray):
        values = pa.array(values, from_pandas=True)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = _without_floats(values)
    if values.ndim > 1:
        raise TypeError(f"ids are an array of shape {values.shape}, not one for each object")
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    texts = _texts(np.atleast_1d(np.asarray(values)))
    return texts if masked is None else np.where(masked, MISSING, texts)


def _without_floats(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Values of an Arrow column; `to_numpy` alone turns whole numbers with nulls into floats."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) and column.null_count:
        column = column.cast(pa.string())
    chunks = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    return np.asarray(chunks.to_numpy())


def _texts(array: NDArray[Any]) -> NDArray[np.str_]:
    kind = array.dtype.kind
    if not array.size:
        return np.empty(0, np.str_)
    if kind == "f":
        raise TypeError(f"ids are {array.dtype}, which cannot hold 64-bit ids exactly")
    if kind in "iu":
        return array.astype(np.str_)
    if kind not in "SUTO":
        raise TypeError(f"ids are {array.dtype}, neither whole numbers nor text")
    if kind in "OT":
        return np.array([_text(value) for value in array.astype(object).tolist()], np.str_)
    try:
        texts = np.strings.strip(array.astype(np.bytes_).astype(np.str_), _WHITE)
    except UnicodeError:  # not ASCII
        return _texts(array.astype(object))
    wrapped = np.flatnonzero(
        np.strings.startswith(texts, "b'") | np.strings.startswith(texts, 'b"')
    )
    if wrapped.size:
        texts[wrapped] = [_unwrapped(text) for text in texts[wrapped].tolist()]
    return texts


def _text(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return MISSING
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")  # "replace" would make ids equal
    elif isinstance(value, bool) or not isinstance(value, str | int | np.integer):
        raise TypeError(f"id {value!r} is a {type(value).__name__}, no whole number and no text")
    text = str(value).encode("utf-8", "backslashreplace").decode()  # no halves of surrogate pairs
    return _unwrapped(text.strip(_WHITE))


def _unwrapped(text: str) -> str:
    """Text of ``b'...'``, which str() made of bytes, escapes included."""
    wrapped = _REPR_OF_BYTES.fullmatch(text)
    if not wrapped:
        return text
    inner = wrapped[2]
    if "\\" in inner:
        try:
            inner = ast.literal_eval(text).decode("utf-8", "backslashreplace")
        except (SyntaxError, ValueError):
            return text
    return inner.strip(_WHITE)
