"""Products of stored vectors with one query and with themselves, in one look at each vector.

By Numba, whose loop widens float16 in the processor's registers and sums along many lanes at once.
NumKong takes rows as they are as well, but sums along one lane, and takes two and a half times as
long; torch and numpy write the widened rows down first (docs/log.md). For the products with many
queries, which a matrix library knows best, they are written down here as well.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Singles = NDArray[np.float32]

_TAKEN = {np.dtype(np.float16), np.dtype(np.float32)}


def fits(values: NDArray[Any]) -> bool:
    """Whether rows are such that `products_of` takes them: float16 or float32, without gaps."""
    lies = values.flags.aligned and values.flags.c_contiguous
    return lies and values.dtype in _TAKEN and (values.dtype == np.float32 or _widens())


@cache
def _widens() -> bool:
    """Whether the processor has an instruction for float16, as all but x86 before 2012 do."""
    old = torch.backends.cpu.get_cpu_capability() in {"DEFAULT", "NO AVX"}
    return not (old and platform.machine() in {"x86_64", "AMD64"})


def products_of(
    values: NDArray[Any], origin: Singles | None, query: Singles
) -> tuple[Singles, Singles]:
    """Products (n,) of rows (n, dim) with a query (dim,), and their squares (n,), in float32.

    Other threads run meanwhile.

    Parameters
    ----------
    origin
        (dim,), taken off each row first.

    Raises
    ------
    ValueError
        If rows, origin and query are not of one width, which the loop does not look at.
    """
    if not values.shape[1:] == query.shape == (query if origin is None else origin).shape:
        raise ValueError(f"rows of {values.shape[1]} values, a query of {len(query)}")
    from skyvec.search.products_loop import products_loop

    products, squares = np.empty((2, len(values)), np.float32)
    products_loop(_bits(values), origin, query, products, squares)
    return products, squares


def widened(
    values: NDArray[np.float16], origin: Singles | None, out: Singles
) -> tuple[Singles, Singles]:
    """Rows (n, dim) in float32, written to ``out``, and their squares (n,); see `products_of`."""
    from skyvec.search.products_loop import widening_loop

    squares = np.empty(len(values), np.float32)
    widening_loop(_bits(values), origin, out, squares)
    return out, squares


def in_singles(values: NDArray[Any]) -> Singles:
    """Rows (n, dim) in float32; numpy takes thirty times as long to widen float16."""
    if values.dtype == np.float16 and fits(values):
        return widened(values, None, np.empty(values.shape, np.float32))[0]
    return values.astype(np.float32, copy=False)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.uint16) if values.dtype == np.float16 else values
