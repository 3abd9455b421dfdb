"""Cosines of float16 vectors by NumKong, which widens them in the processor's registers.

It comes with ``skyvec[ann]``. Products and squares are summed in float32, as `Scorer` does; rows of
which a cosine says nothing come back marked. A version or a processor with which that is not so is
found out by a trial, and not used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Halves = NDArray[np.float16]
Doubles = NDArray[np.float64]
Distances = Callable[[Halves, Halves], NDArray[np.floating]]
"""Rows (n, dim) that lie together and one more (1, dim) -> one minus their cosines (n,)."""

_TRIAL_ERROR = 1e-5
"""Well above what sums of so few products are off by in float32, well below those in float16."""


class HalfCosines:
    """Cosines with one query.

    Parameters
    ----------
    query
        (dim,), of length 1.
    distances
        See `by_numkong`.
    """

    def __init__(self, query: Doubles, distances: Distances) -> None:
        self._query, self._distances = query.astype(np.float16)[None], distances
        taken = self._query[0].astype(np.float64)
        self.slack = float(np.linalg.norm(query - taken / np.linalg.norm(taken))) * (1 + 1e-6)
        """What a cosine may be off by since the query is rounded to float16."""

    def of(
        self, rows: Halves, least: float = -np.inf
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Cosines of rows (n, dim), and which may be no cosines; None if all are, and below least.

        Marked are rows of length 0, with NaN or infinity, and healthy ones that lie on the query or
        across it.
        """
        # By address and shape alone: a head may hand out a part of wider rows.
        distances = self._distances(np.ascontiguousarray(rows), self._query)
        # Most rows are far away: two looks at all of them instead of a dozen.
        if distances.min(initial=np.inf) > max(0, 1 - least) and not (distances == 1).any():
            return None
        return 1 - distances.astype(np.float32), _odd(distances)


@cache
def by_numkong() -> Distances | None:
    """None if it is not installed, or fails the trial."""
    try:
        import numkong
    except ImportError:
        return None

    def tensor(rows: Halves) -> Any:  # noqa: ANN401 - it has no types
        # By address, since rows of a mapped file may lie at any byte.
        place = rows.__array_interface__["data"][0]
        return numkong.from_pointer(place, rows.shape, "float16", owner=rows)

    def distances(rows: Halves, query: Halves) -> NDArray[np.floating]:
        return np.asarray(numkong.cdist(tensor(rows), tensor(query), metric="angular"))[:, 0]

    try:
        return distances if _trial(distances) else None
    except (AttributeError, TypeError, ValueError):
        return None


def _trial(distances: Distances) -> bool:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 1029)).astype(np.float16)
    query = (rng.standard_normal((1, 1029)) + rows[:1]).astype(np.float16)
    exact, wanted = rows.astype(np.float64), query[0].astype(np.float64)
    cosines = exact @ wanted / np.linalg.norm(exact, axis=1) / np.linalg.norm(wanted)
    if np.abs(1 - distances(rows, query) - cosines).max() > _TRIAL_ERROR:
        return False
    values: list[tuple[Any, float]] = [
        (0, np.nan), (500, np.inf), (1028, -np.inf), (slice(None), 0), (slice(None), np.inf),
    ]  # fmt: skip
    for place, value in values:
        rows[0] = 1
        rows[0, place] = value
        if not _odd(distances(rows, query))[0]:
            return False
    return True


def _odd(distances: NDArray[np.float32]) -> NDArray[np.bool_]:
    odd: NDArray[np.bool_] = ~((distances > 0) & (distances != 1))
    return odd
