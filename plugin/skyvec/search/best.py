"""The best rows so far, for many queries at once, in memory that does not grow with the catalog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyvec.search.metrics import Doubles

Places = NDArray[np.int64]
IdsOf = Callable[[Places], pa.Array]
"""Ids of rows of a file."""

_SPARE = 1 << 16
"""Rows of equal score that are kept before ids decide between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Rows of one file that may be in the answer."""

    query: NDArray[np.int64]
    score: Doubles
    row: Places

    @classmethod
    def none(cls) -> Candidates:
        """No rows."""
        nothing = np.zeros(0, np.int64)
        return cls(query=nothing, score=np.zeros(0), row=nothing)

    @classmethod
    def joined(cls, parts: list[Candidates]) -> Candidates:
        """All of several."""
        return cls(
            query=np.concatenate([part.query for part in parts]),
            score=np.concatenate([part.score for part in parts]),
            row=np.concatenate([part.row for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.query)

    def sorted(self) -> Candidates:
        """Query by query, the best first."""
        return self.take(np.lexsort((-self.score, self.query)))

    def take(self, places: NDArray[np.int64]) -> Candidates:
        """Some of them, in this order."""
        return Candidates(query=self.query[places], score=self.score[places], row=self.row[places])


class Floor:
    """Scores that a row must reach: the k-th best of each query that any thread has seen."""

    def __init__(self, queries: int, k: int) -> None:
        self.scores = np.full(queries, -np.inf)
        """(Q,)"""
        self._k, self._lock = k, Lock()
        self._best = Candidates.none()
        self._new: list[Candidates] = []
        self._count = 0
        # Seldom enough to cost little, often enough that few rows are looked at for nothing.
        self._patience = max(1, queries * k // 8)

    def add(self, found: Candidates) -> None:
        """Take in rows that a thread has found, each once."""
        with self._lock:
            self._new.append(found)
            self._count += len(found)
            if self._count >= self._patience:
                self._raise()

    def reached_by(self, found: Candidates) -> Candidates:
        """Those that may still be in the answer."""
        return found.take(np.flatnonzero(found.score >= self.scores[found.query]))

    def _raise(self) -> None:
        found = Candidates.joined([self._best, *self._new]).sorted()
        rank = np.arange(len(found)) - np.searchsorted(found.query, found.query)
        self._best = found.take(np.flatnonzero(rank < self._k))
        last = found.take(np.flatnonzero(rank == self._k - 1))
        scores = self.scores.copy()
        scores[last.query] = last.score
        self.scores, self._new, self._count = scores, [], 0


class Best:
    """Candidates of one file.

    Parameters
    ----------
    k
        Rows wanted for each query; rows of equal score are told apart by id, the smaller first.
    ids_of
        Asked only where many rows score the same.
    """

    def __init__(self, k: int, floor: Floor, ids_of: IdsOf) -> None:
        self._k, self._floor, self._ids_of = k, floor, ids_of
        self._kept = Candidates.none()
        self._new: list[Candidates] = []
        self._count = 0

    @property
    def floor(self) -> Doubles:
        """Scores (Q,) below which a row cannot be in the answer."""
        return self._floor.scores

    def add(self, query: NDArray[np.int64], score: Doubles, row: Places) -> None:
        """Take in rows; those below the floor may be among them."""
        keep = score >= self.floor[query]
        if not keep.any():
            return
        found = Candidates(query=query[keep], score=score[keep], row=row[keep])
        self._floor.add(found)
        self._new.append(found)
        self._count += len(found)
        if self._count >= len(self.floor) * self._k:
            self._prune()

    def found(self) -> Candidates:
        """What is left."""
        self._prune()
        return self._kept

    def _prune(self) -> None:
        kept = self._floor.reached_by(Candidates.joined([self._kept, *self._new]).sorted())
        if len(kept) > len(self.floor) * self._k + _SPARE:
            ids = self._ids_of(kept.row)
            kept = kept.take(first_of_each(kept.query, kept.score, ids, self._k))
        self._kept, self._new, self._count = kept, [], 0


def first_of_each(
    query: NDArray[np.int64], score: Doubles, ids: pa.Array, k: int
) -> NDArray[np.int64]:
    """Places of the k best of each query, query by query, best first, equal scores by id."""
    table = pa.table({"query": query, "score": score, "id": ids, "place": np.arange(len(query))})
    order = [("query", "ascending"), ("score", "descending"), ("id", "ascending")]
    table = table.sort_by(order)
    queries = table.column("query").to_numpy()
    rank = np.arange(len(queries)) - np.searchsorted(queries, queries)
    first: NDArray[np.int64] = table.column("place").to_numpy()[rank < k]
    return first
