"""Thrift's compact protocol, as far as the headers of Parquet pages need it.

pyarrow reads page headers but shows none of them. Format: Apache Thrift,
``doc/specs/thrift-compact-protocol.md``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

Fields: TypeAlias = "dict[int, int | Fields]"
"""Field id -> integer, boolean as 0 or 1, or struct; fields of other types are left out."""

_DEEPEST = 8
"""Structs within structs; Parquet's page headers have three."""
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = {4, 5, 6}


# Full pages of one column have the same bytes here.
@lru_cache(maxsize=64)
def read_struct(content: bytes) -> tuple[Fields, int]:
    """Read the struct at the beginning; returns its fields, which are shared, and its length.

    Raises
    ------
    ValueError
        If there is none, or it does not end within the content.
    """
    reader = _Reader(content)
    try:
        return reader.struct(_DEEPEST), reader.place
    except IndexError as problem:
        raise ValueError("a header ends too early") from problem


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def struct(self, depth: int) -> Fields:
        if not depth:
            raise ValueError("a header of too many levels")
        fields: Fields = {}
        field = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            field = field + step if step else self._integer()
            if kind in {_TRUE, _FALSE}:
                fields[field] = int(kind == _TRUE)
            elif kind in _INTEGERS:
                fields[field] = self._integer()
            elif kind == _STRUCT:
                fields[field] = self.struct(depth - 1)
            else:
                self._skip(kind, depth)
        return fields

    def _skip(self, kind: int, depth: int) -> None:
        if kind in {_TRUE, _FALSE, _BYTE}:  # a boolean has a byte of its own in a list
            self._byte()
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _DOUBLE:
            self._pass(8)
        elif kind == _BINARY:
            self._pass(self._varint())
        elif kind in {_LIST, _SET}:
            head = self._byte()
            length = head >> 4
            for _ in range(self._varint() if length == 15 else length):
                self._skip(head & 15, depth)
        elif kind == _STRUCT:
            self.struct(depth - 1)
        else:
            raise ValueError(f"a field of unknown type {kind} in a header")

    def _pass(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise IndexError

    def _byte(self) -> int:
        value = self.content[self.place]
        self.place += 1
        return value

    def _integer(self) -> int:
        """Zigzag: 0, -1, 1, -2, ..."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            part = self._byte()
            value |= (part & 0x7F) << shift
            if part < 0x80:
                return value
        raise ValueError("an integer of too many bytes in a header")
