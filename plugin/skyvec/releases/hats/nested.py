"""Nested Arrow columns as arrays: lists and tensors of any depth, ragged or not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from skyvec.releases.hats.arrow_types import is_list, level, starts


class Stacks:
    """An array for each row, out of lists or tensors; equal ones come together without a copy.

    Parameters
    ----------
    array
        A column of lists, tensors or both.
    null
        What a null number reads as; by default NaN, or 0 where there is no NaN.
    """

    def __init__(self, array: pa.Array, *, null: bool | None = None) -> None:
        self._null = null
        levels: list[NDArray[np.int64]] = []
        stored: tuple[int, ...] = ()
        order: list[int] = []
        while True:
            if isinstance(array.type, pa.FixedShapeTensorType):
                stored = tuple(array.type.shape)
                order = list(array.type.permutation or range(len(stored)))
                lengths, array = level(array.storage)
                levels.append(lengths)
                break
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            elif is_list(array.type):
                lengths, array = level(array)
                levels.append(lengths)
            else:
                break
        self._values = array
        self._tensor: Tensor | None = None
        self._stored = stored if order != sorted(order) else ()
        self._order = order
        logical = tuple(stored[axis] for axis in order)
        self.shapes, self.starts = _shapes(levels, logical)

    @property
    def values(self) -> Tensor:
        """All numbers in a row; a view of Arrow's memory, but for nulls (NaN, False) and bits."""
        if self._tensor is None:
            self._tensor = _flat(self._values, null=self._null)
        return self._tensor

    def take(self, rows: NDArray[np.int64], shape: tuple[int, ...] | None = None) -> list[Tensor]:
        """Pieces (k, *shape) of rows of one shape, in order; a view for rows that lie together.

        Parameters
        ----------
        shape
            To read each row as, instead of its own.
        """
        own = tuple(self.shapes[rows[0]].tolist())
        starts, stops = self.starts[rows], self.starts[rows + 1]
        breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        edges = [0, *breaks.tolist(), len(rows)]
        pieces = []
        for first, last in pairwise(edges):
            flat = self.values[starts[first] : stops[last - 1]]
            pieces.append(self._shaped(flat, last - first, own, shape))
        return pieces

    def _shaped(
        self, flat: Tensor, count: int, own: tuple[int, ...], shape: tuple[int, ...] | None
    ) -> Tensor:
        if not self._stored:
            return flat.view(count, *(shape or own))
        lists = len(own) - len(self._stored)
        axes = (*range(1 + lists), *(1 + lists + axis for axis in self._order))
        turned = flat.view(count, *own[:lists], *self._stored).permute(axes)
        return turned if shape is None else turned.reshape(count, *shape)


def _shapes(
    levels: list[NDArray[np.int64]], tensor: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shape of each row, -1 along an axis that is ragged, and where its values start."""
    count, lists = len(levels[0]), len(levels) - (1 if tensor else 0)
    shapes = np.zeros((count, lists + len(tensor)), np.int64)
    bounds = np.arange(count + 1)
    for axis, lengths in enumerate(levels):
        if axis < lists:
            shapes[:, axis] = _common(lengths, bounds)
        bounds = starts(lengths)[bounds]
    if tensor:
        there = bounds[1:] > bounds[:-1]
        shapes[:, lists:] = np.where(there[:, None], np.array(tensor), 0)
    return shapes, bounds


def _common(lengths: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The one length of the lists of each row, 0 if it has none, -1 if they differ."""
    if len(lengths) and (lengths == lengths[0]).all():
        return np.where(bounds[1:] > bounds[:-1], lengths[0], 0)
    common = np.zeros(len(bounds) - 1, np.int64)
    filled = np.flatnonzero(bounds[1:] > bounds[:-1])
    if len(filled):
        # Between the starts of two filled rows lie only empty ones, so reduceat sees whole rows.
        low = np.minimum.reduceat(lengths, bounds[filled])
        high = np.maximum.reduceat(lengths, bounds[filled])
        common[filled] = np.where(low == high, low, -1)
    return common


def _flat(values: pa.Array, *, null: bool | None) -> Tensor:
    if values.null_count:
        usual = np.nan if pa.types.is_floating(values.type) else 0
        values = values.fill_null(pa.scalar(usual if null is None else null).cast(values.type))
    if pa.types.is_boolean(values.type):
        return torch.from_numpy(_bits(values))
    return from_dlpack(values)


def _bits(values: pa.BooleanArray) -> NDArray[np.bool_]:
    """One byte for each bit."""
    start, stop = values.offset, values.offset + len(values)
    packed = np.frombuffer(values.buffers()[1], np.uint8) if len(values) else np.empty(0, np.uint8)
    first = start // 8
    bits = np.unpackbits(packed[first : -(-stop // 8)], bitorder="little")
    return bits[start - 8 * first : stop - 8 * first].view(np.bool_)
