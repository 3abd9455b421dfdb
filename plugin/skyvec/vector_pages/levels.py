"""Repetition and definition levels of a page: which of its entries begin a row, which are null.

Levels are runs of one value or bit-packed groups of eight (Parquet's ``RLE`` encoding).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class OtherLayoutError(Exception):
    """A healthy column that is no matrix of one row for each vector; says in what way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRows:
    """How the values of one page fall into rows."""

    leading: int
    """Values that end a row of the page before."""
    null: NDArray[np.bool_]
    """Of the rows (n,) that begin in the page."""
    lacking: int
    """Values that the last row has in the next page."""

    @property
    def whole(self) -> bool:
        """Whether no row is shared with another page."""
        return not self.leading and not self.lacking


# Full pages of null-free vectors have the same bytes here, in every file.
@lru_cache(maxsize=16)
def page_rows(
    repetition: bytes, definition: bytes, entries: int, *, dim: int, highest: int, nullable: bool
) -> PageRows:
    """Sort the entries of a page into rows of ``dim`` values.

    Parameters
    ----------
    repetition, definition
        Encoded levels.
    entries
        Levels of either kind: one for each value, and one for each null row.
    highest
        Definition level of a value that is there.
    nullable
        Whether rows may be null, so that level 0 means one.

    Raises
    ------
    OtherLayoutError
        If rows are of other lengths or hold nulls.
    ValueError
        If the levels are damaged.
    """
    begins = np.flatnonzero(decode_levels(repetition, width=1, count=entries) == 0)
    levels = decode_levels(definition, width=highest.bit_length(), count=entries)
    absent = levels != highest
    if absent.any() and (not nullable or levels[absent].any()):
        raise OtherLayoutError("has empty vectors or nulls within vectors")
    leading = int(begins[0]) if len(begins) else entries
    null = absent[begins]
    if absent[:leading].any() or absent.sum() != null.sum():
        raise ValueError("a null amid a row")
    counts = np.diff(begins, append=entries)
    if (counts[null] != 1).any():
        raise ValueError("values in a null row")
    lacking = int(dim - counts[-1]) if len(null) and not null[-1] else 0
    whole = counts[:-1] if lacking else counts
    if leading > dim or lacking < 0 or (whole[~null[: len(whole)]] != dim).any():
        raise OtherLayoutError(f"has vectors that are not {dim} wide")
    null.setflags(write=False)
    return PageRows(leading=leading, null=null, lacking=lacking)


def decode_levels(content: bytes, *, width: int, count: int) -> NDArray[np.uint8]:
    """Levels (count,) of ``width`` bits, at most 8.

    Raises
    ------
    ValueError
        If there are fewer or more.
    """
    levels = np.empty(count, np.uint8)
    done = place = 0
    while done < count:
        head, place = _varint(content, place)
        length, packed = head >> 1, head & 1
        size = length * width if packed else 1
        if place + size > len(content) or not length:
            raise ValueError("levels end too early")
        if packed:
            bits = np.unpackbits(
                np.frombuffer(content, np.uint8, size, place), bitorder="little"
            ).reshape(-1, width)
            values = np.packbits(bits, axis=1, bitorder="little")[:, 0]
            run = min(len(values), count - done)  # the last group is filled up
            levels[done : done + run] = values[:run]
        else:
            run = length
            if done + run > count:
                raise ValueError("more levels than entries")
            levels[done : done + run] = content[place]
        done, place = done + run, place + size
    return levels


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(content) and shift < 35:
        part = content[place]
        place += 1
        value |= (part & 0x7F) << shift
        if part < 0x80:
            return value, place
        shift += 7
    raise ValueError("levels end too early")
