"""One file of vectors against all queries: what a thread or a Dask worker does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.releases.hats.leaf import ParquetPlace
from skyvec.search.best import Best, Candidates, Floor, Places
from skyvec.search.filters import LeafFilter
from skyvec.search.metrics import Doubles, Floats, Metric, Scorer
from skyvec.search.rows import read_rows
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.pages import Block
from skyvec.vector_pages.reading import Memory
from skyvec_schemas.errors import ContractError

Head = Callable[[Floats], Floats]
"""Vectors (rows, dim) as stored -> vectors (rows, width) as compared, in whatever way."""

BLOCK_ROWS = 4096
"""Looked at together: few enough for the processor's cache, enough for what is done once a look."""


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
class Counts:
    """What one task went through."""

    searched: int
    """Vectors that were compared."""
    null: int
    """Wanted rows without a vector."""
    zero: int
    """Vectors of length 0, which have no direction, where one was needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafAnswer:
    """What one task found."""

    task: LeafTask
    rows: Candidates
    """That may be in the answer."""
    counts: Counts
    file: pq.ParquetFile
    """Left open: ids and positions come from the file that was scanned, whatever has its name by then."""

    def table(self, rows: Candidates, question: Question) -> pa.Table:
        """Some of the rows with what tells them apart: ``query``, ``score``, ``id``, ``ra``, ``dec``,
        ``pixel`` as in `LeafTask.place`, ``row`` of the file.
        """
        names = [question.id_column, question.ra_column, question.dec_column]
        facts = read_rows(self.file, names, rows.row)
        return pa.table(
            {
                "query": rows.query, "score": rows.score, "id": facts.column(0),
                "ra": facts.column(1), "dec": facts.column(2),
                "pixel": np.full(len(rows), self.task.place, np.int64), "row": rows.row,
            }
        )  # fmt: skip


def scan(
    task: LeafTask,
    question: Question,
    floor: Floor | None = None,
    memory: Memory | None = None,
) -> LeafAnswer:
    """Look at every vector of a task once; the answer's file is to be closed.

    Parameters
    ----------
    floor
        Of several tasks with the same question.
    memory
        Of this thread.

    Raises
    ------
    ContractError
        If a vector holds NaN or infinity, or the file is damaged or was written again meanwhile.
    """
    floor = floor or Floor(len(question.queries), question.k)
    with ExitStack() as held:
        place = ParquetPlace(task.path)
        held.callback(place.file.close)
        answer = _Scan(task, question, floor, place.file).run(memory or Memory())
        # Vectors were opened by name, too; ids of another file would be given to them in silence.
        place.refuse_change()
        held.pop_all()
    return answer


class _Scan:
    def __init__(
        self, task: LeafTask, question: Question, floor: Floor, file: pq.ParquetFile
    ) -> None:
        self.task, self.question, self.file = task, question, file
        self.scorer = Scorer(question.queries, question.metric, center=question.center)
        # Not a method: what refers to itself keeps its memory until Python looks for such rings.
        self.ids_of = partial(_ids_of, file, question.id_column)
        self.best = Best(question.k, floor, self.ids_of)
        self.searched = self.null = self.zero = 0

    def run(self, memory: Memory) -> LeafAnswer:
        wanted = self.task.filter.rows(self.file) if self.task.filter else None
        vectors = open_vectors(self.task.path, self.question.column, file=self.file)
        groups = self._groups(wanted)
        for block in vectors.blocks(groups=groups, rows=BLOCK_ROWS, memory=memory):
            values, rows = self._chosen(block, wanted)
            if len(rows):
                self._take(values, rows)
        counts = Counts(searched=self.searched, null=self.null, zero=self.zero)
        return LeafAnswer(task=self.task, rows=self.best.found(), counts=counts, file=self.file)

    def _groups(self, wanted: NDArray[np.bool_] | None) -> tuple[int, ...] | None:
        """Row groups in which a row is wanted; the pages of others are never touched."""
        if wanted is None:
            return self.task.groups
        metadata = self.file.metadata
        every = range(metadata.num_row_groups)
        bounds = [0, *accumulate(metadata.row_group(g).num_rows for g in every)]
        groups = every if self.task.groups is None else self.task.groups
        return tuple(g for g in groups if wanted[bounds[g] : bounds[g + 1]].any())

    def _chosen(self, block: Block, wanted: NDArray[np.bool_] | None) -> tuple[Floats, Places]:
        """Vectors to look at, and their rows."""
        if wanted is None and len(block.values) == len(block.null):
            return block.values, np.arange(block.first_row, block.first_row + len(block.null))
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
        self.searched += len(rows)
        least = self.scorer.ceilings(self.best.floor)
        scores = self.scorer.score(values, least)
        if scores is None:
            return
        self._refuse_no_numbers(scores.lengths, rows)
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


def _ids_of(file: pq.ParquetFile, column: str, rows: Places) -> pa.Array:
    """Ids of some rows; decodes only the row groups that hold them."""
    return read_rows(file, [column], rows).column(0).combine_chunks()
