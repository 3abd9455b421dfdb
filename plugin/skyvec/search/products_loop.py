"""The loops of `skyvec.search.products`, compiled by Numba at their first call and kept on disk.

Imported where it is first needed: Numba takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Singles = NDArray[np.float32]


@intrinsic  # type: ignore[untyped-decorator]
def _widened(_: Any, value: Any) -> Any:  # noqa: ANN401 - Numba has no types
    """A float32 as it is, a uint16 taken for a float16: Numba knows none, processors do."""

    def build(_: Any, builder: Any, __: Any, given: Any) -> Any:  # noqa: ANN401
        if value == types.float32:
            return given[0]
        return builder.fpext(builder.bitcast(given[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), build


def _products(
    rows: NDArray[Any], origin: Singles | None, query: Singles, products: Singles, squares: Singles
) -> None:
    """Fill in ``products`` and ``squares`` (n,) of rows (n, dim), an origin (dim,) taken off first."""
    for row in range(rows.shape[0]):
        product = square = np.float32(0)
        for place in range(rows.shape[1]):
            value = _widened(rows[row, place])
            if origin is not None:
                value -= origin[place]
            product += value * query[place]
            square += value * value
        products[row], squares[row] = product, square


def _widening(rows: NDArray[Any], origin: Singles | None, out: Singles, squares: Singles) -> None:
    """Fill in the rows in float32 (n, dim) and ``squares`` (n,), an origin (dim,) taken off first."""
    for row in range(rows.shape[0]):
        square = np.float32(0)
        for place in range(rows.shape[1]):
            value = _widened(rows[row, place])
            if origin is not None:
                value -= origin[place]
            out[row, place] = value
            square += value * value
        squares[row] = square


def _compiled(loop: Callable[..., None]) -> Any:  # noqa: ANN401
    # The order of summation is free: bounds hold for any.
    options = {"nogil": True, "fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
    try:
        return njit(loop, cache=True, **options)
    except RuntimeError:  # nowhere to keep it
        return njit(loop, **options)


products_loop, widening_loop = _compiled(_products), _compiled(_widening)
