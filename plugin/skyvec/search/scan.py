"""One file of vectors against all queries: what a thread or a Dask worker does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.search.best import Best, Floor, Places
from skyvec.search.filters import LeafFilter
from skyvec.search.metrics import Doubles, Floats, Metric, Scorer
from skyvec.search.rows import read_rows
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.pages import Block
from skyvec_schemas.errors import ContractError

Head = Callable[[Floats], Floats]
"""Vectors (rows, dim) as stored -> vectors (rows, width) as compared, in whatever way."""

BLOCK_ROWS = 1024
"""Looked at together: few enough for the processor's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The same for every file."""

    queries: Doubles
    """(Q, width)."""
    metric: Metric
    k: int
    column: str
    """Of vectors."""
    id_column: str
    ra_column: str
    dec_column: str
    center: NDArray[np.float32] | None = None
    head: Head | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafTask:
    """A file, or some of its row groups, and which of its rows count."""

    place: int
    """Among the pixels of the catalog."""
    path: Path
    groups: tuple[int, ...] | None = None
    filter: LeafFilter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafAnswer:
    """What one task found."""

    table: pa.Table
    """Rows that may be in the answer: ``query``, ``score``, ``id``, ``ra``, ``dec``, ``pixel`` as
    in `LeafTask.place`, ``row`` of the file."""
    searched: int
    """Vectors that were compared."""
    null: int
    """Wanted rows without a vector."""
    zero: int
    """Vectors of length 0, which have no direction, where one was needed."""


def scan(task: LeafTask, question: Question, floor: Floor | None = None) -> LeafAnswer:
    """Look at every vector of a task once.

    Raises
    ------
    ContractError
        If a vector holds NaN or infinity, or the file is damaged.
    """
    with pq.ParquetFile(task.path) as file:
        return _Scan(task, question, floor or Floor(len(question.queries)), file).run()


class _Scan:
    def __init__(
        self, task: LeafTask, question: Question, floor: Floor, file: pq.ParquetFile
    ) -> None:
        self.task, self.question, self.file = task, question, file
        self.scorer = Scorer(question.queries, question.metric, center=question.center)
        self.best = Best(question.k, floor, self.ids_of)
        self.ends = np.cumsum(
            [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)],
            dtype=np.int64,
        )
        self.starts = np.concatenate([[0], self.ends])[:-1].astype(np.int64)
        self.searched = self.null = self.zero = 0

    def run(self) -> LeafAnswer:
        wanted = self.task.filter.rows(self.file) if self.task.filter else None
        vectors = open_vectors(self.task.path, self.question.column, file=self.file)
        for block in vectors.blocks(groups=self._groups(wanted), rows=BLOCK_ROWS):
            values, rows = self._chosen(block, wanted)
            if len(rows):
                self._take(values, rows)
        return LeafAnswer(
            table=self._table(), searched=self.searched, null=self.null, zero=self.zero
        )

    def ids_of(self, rows: Places) -> pa.Array:
        """Ids of some rows; decodes only the row groups that hold them."""
        return read_rows(self.file, [self.question.id_column], rows).column(0).combine_chunks()

    def _table(self) -> pa.Table:
        found, question = self.best.found(), self.question
        names = [question.id_column, question.ra_column, question.dec_column]
        facts = read_rows(self.file, names, found.row)
        return pa.table(
            {
                "query": found.query, "score": found.score, "id": facts.column(0),
                "ra": facts.column(1), "dec": facts.column(2),
                "pixel": np.full(len(found), self.task.place, np.int64), "row": found.row,
            }
        )  # fmt: skip

    def _groups(self, wanted: NDArray[np.bool_] | None) -> tuple[int, ...] | None:
        """Row groups in which a row is wanted; the pages of others are never touched."""
        if wanted is None:
            return self.task.groups
        groups = range(len(self.ends)) if self.task.groups is None else self.task.groups
        return tuple(g for g in groups if wanted[self.starts[g] : self.ends[g]].any())

    def _chosen(self, block: Block, wanted: NDArray[np.bool_] | None) -> tuple[Floats, Places]:
        """Vectors to look at, and their rows."""
        there = ~block.null
        rows = block.first_row + np.flatnonzero(there)
        if wanted is None:
            self.null += len(block.null) - len(rows)
            return block.values, rows
        some = wanted[block.first_row : block.first_row + len(block.null)]
        self.null += int((some & block.null).sum())
        keep = some[there]
        return (block.values, rows) if keep.all() else (block.values[keep], rows[keep])

    def _take(self, values: Floats, rows: Places) -> None:
        if self.question.head:
            values = self.question.head(values.astype(np.float32))
        scores = self.scorer.score(values)
        self._refuse_no_numbers(scores.lengths, rows)
        self.searched += len(rows)
        least = self.scorer.ceilings(self.best.floor)
        if np.isinf(least).any():
            # Without a floor every row of the first block would be scored twice.
            least = np.maximum(least, scores.kth_lowest(self.question.k))
        # Downwards, so that rounding to the scores' type never loses a row.
        bar = np.nextafter(least.astype(scores.upper.dtype), -np.inf, dtype=scores.upper.dtype)
        row, query = np.nonzero(scores.upper >= bar)
        if not len(row):
            return
        exact = self.scorer.exact(values[row], query)
        known = ~np.isnan(exact)
        self.best.add(query[known], exact[known], rows[row[known]])

    def _refuse_no_numbers(self, lengths: Floats, rows: Places) -> None:
        if self.question.metric == "cosine":
            self.zero += int((lengths == 0).sum())
        bad = ~np.isfinite(lengths)
        if bad.any():
            first = self.ids_of(rows[bad][:1])[0].as_py()
            raise ContractError(
                f"the vector of object {first!r} holds NaN or infinity",
                where=f"{self.task.path}, row {rows[bad][0]}",
                remedy="`skyvec verify` lists what is damaged; embed this pixel again",
            )
