"""How alike a stored vector and a query are: fast for all rows, exact for those that may count.

Every row is scored in float32 (float64 vectors in float64), and every score comes with a bound on
its rounding error, so that rows beyond the bound are provably not among the best. The others are
scored once more in float64, in an order of summation that depends on the row alone.
Bounds: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skyvec.search.products import fits, products_of, widened
from skyvec_schemas.errors import ConfigurationError

Metric = Literal["cosine", "l2", "inner_product"]
METRICS: tuple[Metric, ...] = ("cosine", "l2", "inner_product")
METRIC_LINES: dict[Metric, str] = {
    "cosine": "cosine similarity",
    "l2": "Euclidean distance",
    "inner_product": "inner product",
}
"""For people."""

Floats: TypeAlias = NDArray[np.floating[Any]]
Doubles: TypeAlias = NDArray[np.float64]

_TINY, _HUGE = 1e-12, 1e15
"""Lengths beyond which squares leave float32's range and the bound says nothing."""
_TOGETHER = 512
"""Rows scored at a time: few enough for the processor's cache."""
_PAIRS = 128
"""The same in float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Of n rows for Q queries; larger is more alike."""

    upper: Floats
    """(n, Q), no smaller than what `Scorer.exact` gives."""
    slack: Floats
    """(n,), what `upper` adds to cover the rounding errors; infinity where it cannot."""
    lengths: Floats
    """(n,), of the vectors as compared; 0 has no direction, NaN and infinity are no vectors."""

    def kth_lowest(self, k: int) -> Doubles:
        """Scores (Q,) that k of the rows are sure to reach."""
        if k > len(self.upper):
            return np.full(self.upper.shape[1], -np.inf)
        sure = np.isfinite(self.slack)
        lower = np.full(self.upper.shape, -np.inf, self.upper.dtype)
        lower[sure] = self.upper[sure] - 2 * self.slack[sure, None]
        kth: Doubles = np.partition(lower, len(lower) - k, axis=0)[len(lower) - k]
        return kth.astype(np.float64)


class Scorer:
    """Scores of stored vectors for some queries; holds scratch memory, so one for each thread.

    Parameters
    ----------
    queries
        (Q, dim), finite.
    center
        (dim,), taken off stored vectors and queries alike; only for ``cosine``.

    Raises
    ------
    ConfigurationError
        If a query has no direction, where one is needed.
    """

    def __init__(
        self, queries: Doubles, metric: Metric, *, center: NDArray[np.float32] | None = None
    ) -> None:
        self.metric = metric
        # Distances are differences of large numbers unless measured from amid the queries.
        origin = queries.mean(axis=0).astype(np.float32) if metric == "l2" else center
        self._origin = origin
        wanted = queries if origin is None else queries - origin.astype(np.float64)
        self._reach = np.linalg.norm(wanted, axis=1)
        if metric != "l2":
            if not self._reach.all():
                raise ConfigurationError(
                    "has length 0, so that nothing is more like it than anything else",
                    where="query vector",
                    remedy="Give another example, or search by metric l2",
                )
            wanted = wanted / self._reach[:, None]
        self._wanted = wanted
        self._columns = {
            kind: np.ascontiguousarray(wanted.T.astype(kind)) for kind in (np.float32, np.float64)
        }
        self._scratch = np.empty((0, 0), np.float32)

    @property
    def alone(self) -> bool:
        """Whether there is one query, of which products are found without values at hand."""
        return len(self._wanted) == 1

    def score(self, values: Floats) -> Scores:
        """Upper ends of the scores of rows (n, dim)."""
        scores = self.scores(*self.products(values), dim=values.shape[1])
        odd = np.isinf(scores.slack)
        if odd.any():
            scores.lengths[odd] = self.lengths(values[odd])
        return scores

    def scores(self, products: Floats, squares: Floats, *, dim: int) -> Scores:
        """The same by what `products` found, which is written over.

        Lengths of rows whose ``slack`` is infinity may be wrong; `lengths` has them.
        """
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            lengths = np.sqrt(squares)
            slack = self._slack(lengths, dim, products.dtype.type)
            if self.metric == "cosine":
                products /= lengths[:, None]
            elif self.metric == "l2":
                products *= 2
                products -= squares[:, None]
                products -= (self._reach**2).astype(products.dtype)
            products += slack[:, None]
        odd = ~((lengths > _TINY) & (lengths < _HUGE))
        if odd.any():
            products[odd], slack[odd] = np.inf, np.inf
        return Scores(upper=products, slack=slack, lengths=lengths)

    def lengths(self, values: Floats) -> Doubles:
        """Lengths (n,) of rows (n, dim) as compared, whatever their size."""
        rows = values.astype(np.float64)
        if self._origin is not None:
            rows -= self._origin
        return np.asarray(np.sqrt(np.vecdot(rows, rows)))

    def products(self, values: Floats) -> tuple[Floats, Floats]:
        """Of rows (n, dim) with the queries (n, Q), and with themselves (n,)."""
        kind = np.float64 if values.dtype == np.float64 else np.float32
        if self.alone and fits(values):
            found, squares = products_of(values, self._origin, self._columns[np.float32][:, 0])
            return found[:, None], squares
        products = np.empty((len(values), len(self._wanted)), kind)
        squares = np.empty(len(values), kind)
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(values), _TOGETHER):
                some = slice(start, start + _TOGETHER)
                rows, squares[some] = self._moved(values[some], kind)
                np.matmul(rows, self._columns[kind], out=products[some])
        return products, squares

    def _moved(self, values: Floats, kind: type[Any]) -> tuple[Floats, Floats]:
        """Rows in the type that is computed in, the origin taken off, and their squares."""
        if values.dtype == np.float16 and fits(values):
            if len(self._scratch) < len(values):
                self._scratch = np.empty((max(_TOGETHER, len(values)), values.shape[1]), np.float32)
            return widened(values, self._origin, self._scratch[: len(values)])
        rows = values.astype(kind, copy=False)
        if self._origin is not None:
            rows = rows - self._origin
        return rows, np.vecdot(rows, rows)

    def exact(self, values: Floats, query: NDArray[np.int64]) -> Doubles:
        """Scores (p,) in float64 of rows (p, dim), each for the query (p,) beside it.

        NaN by cosine for rows of length 0.
        """
        found = np.empty(len(values))
        for start in range(0, len(values), _PAIRS):
            some = slice(start, start + _PAIRS)
            found[some] = self._exact(values[some].astype(np.float64), query[some])
        return found

    def _exact(self, rows: Doubles, query: NDArray[np.int64]) -> Doubles:
        if self._origin is not None:
            rows = rows - self._origin
        wanted = self._wanted[query]
        # Not by BLAS: the sum over a row must not depend on the rows around it.
        if self.metric == "l2":
            return np.asarray(-((rows - wanted) ** 2).sum(axis=1))
        products: Doubles = (rows * wanted).sum(axis=1)
        if self.metric == "cosine":
            with np.errstate(invalid="ignore"):
                return np.asarray(products / np.sqrt((rows * rows).sum(axis=1)))
        return np.asarray(products * self._reach[query])

    def ceilings(self, exact: Doubles) -> Doubles:
        """Exact scores (Q,), as `score` counts: inner products there are those of unit queries."""
        return exact / self._reach if self.metric == "inner_product" else exact

    def _slack(self, lengths: Floats, dim: int, kind: type[Any]) -> Floats:
        """Bound (n,) on the error of each score and of adding the bound itself.

        A product of two vectors is off by at most ``dim`` roundings of the product of their
        lengths, whatever the order of summation; a length by half as many.
        """
        share = _share(dim, kind)
        if self.metric == "cosine":
            return np.full(len(lengths), share, kind)
        if self.metric == "inner_product":
            return np.asarray(share * lengths, kind)
        return np.asarray(share * (lengths * 1.001 + self._reach.max()) ** 2, kind)


def _share(dim: int, kind: type[Any]) -> float:
    """Of the product of two lengths, that a sum of ``dim`` products may be off by; with some to
    spare for what is done to the sum.
    """
    unit = float(np.finfo(kind).eps) / 2
    return (1.5 * dim + 32) * unit * (2 if kind is np.float64 else 1)


def columns_of(metric: Metric, score: Doubles) -> dict[str, Doubles]:
    """Scores by the names that people know them by; the nearest come first in each."""
    if metric == "l2":
        return {"distance": np.sqrt(-score)}
    if metric == "cosine":
        similarity = np.clip(score, -1.0, 1.0)
        return {"similarity": similarity, "distance": 1 - similarity}
    return {"similarity": score}
