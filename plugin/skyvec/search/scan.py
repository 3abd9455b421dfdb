"""One file of vectors against all queries: what a thread or a Dask worker does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.search.best import Best, Candidates, Floor, Places
from skyvec.search.filters import LeafFilter
from skyvec.search.metrics import Doubles, Floats, Metric, Scorer
from skyvec.search.products import in_singles
from skyvec.search.rows import read_rows
from skyvec.vector_pages.known import KnownLeaf
from skyvec.vector_pages.opening import Vectors
from skyvec.vector_pages.pages import Block, VectorPages
from skyvec.vector_pages.reading import AVAILABLE, Memory
from skyvec_schemas.errors import ContractError

Head = Callable[[Floats], Floats]
"""Vectors (rows, dim) as stored -> vectors (rows, width) as compared, in whatever way."""

BLOCK_ROWS = 4096
"""Looked at together: few enough for the processor's cache, enough for what is done once a look."""
LOOK_ROWS = 1 << 15
"""Rows whose numbers are looked at together."""


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
    leaf: KnownLeaf
    """Left open: ids and positions come from the file that was scanned, whatever has its name by then."""

    def table(self, rows: Candidates, question: Question) -> pa.Table:
        """Some of the rows with what tells them apart: ``query``, ``score``, ``id``, ``ra``, ``dec``,
        ``pixel`` as in `LeafTask.place`, ``row`` of the file.
        """
        names = [question.id_column, question.ra_column, question.dec_column]
        facts = read_rows(self.leaf.file, names, rows.row)
        return pa.table(
            {
                "query": rows.query, "score": rows.score, "id": facts.column(0),
                "ra": facts.column(1), "dec": facts.column(2),
                "pixel": np.full(len(rows), self.task.place, np.int64), "row": rows.row,
            }
        )  # fmt: skip


class Scanner:
    """Asks one question of file after file; holds memory of its own, so one for each thread.

    Parameters
    ----------
    floor
        Of several scanners with the same question.
    """

    def __init__(self, question: Question, floor: Floor | None = None) -> None:
        self.question, self.memory = question, Memory()
        self.floor = floor or Floor(len(question.queries), question.k)
        self.scorer = Scorer(question.queries, question.metric, center=question.center)

    def scan(self, task: LeafTask) -> LeafAnswer:
        """Look at every vector of a task once; the answer's leaf is to be closed.

        Raises
        ------
        ContractError
            If a vector holds NaN or infinity, or the file is damaged or was written to meanwhile.
        """
        with ExitStack() as held:
            leaf = KnownLeaf.open(task.path, self.question.column)
            held.callback(leaf.close)
            vectors = leaf.vectors()
            rows, counts = _Scan(task, self, leaf.file).run(vectors)
            leaf.finish(vectors)
            held.pop_all()
        return LeafAnswer(task=task, rows=rows, counts=counts, leaf=leaf)


class _Scan:
    def __init__(self, task: LeafTask, scanner: Scanner, file: pq.ParquetFile) -> None:
        self.task, self.scanner, self.file = task, scanner, file
        self.question, self.scorer = scanner.question, scanner.scorer
        # Not a method: what refers to itself keeps its memory until Python looks for such rings.
        self.ids_of = partial(_ids_of, file, self.question.id_column)
        self.best = Best(self.question.k, scanner.floor, self.ids_of)
        self.searched = self.null = self.zero = 0

    def run(self, vectors: Vectors) -> tuple[Candidates, Counts]:
        asked = self.question.queries.shape[1]
        if self.question.head is None and vectors.dim not in {0, asked}:
            raise ContractError(
                f"has vectors of {vectors.dim} values, the query has {asked}",
                where=str(self.task.path),
                remedy="`skyvec verify` lists what is damaged; embed this pixel again",
            )
        wanted = self.task.filter.rows(self.file) if self.task.filter else None
        memory = self.scanner.memory
        blocks = vectors.blocks(groups=self._groups(wanted), rows=BLOCK_ROWS, memory=memory)
        if (
            isinstance(vectors, VectorPages) and AVAILABLE
            and self.scorer.alone and not self.question.head
        ):  # fmt: skip
            self._look_twice(vectors, blocks, wanted)
        else:
            self._look_once(blocks, wanted)
        counts = Counts(searched=self.searched, null=self.null, zero=self.zero)
        return self.best.found(), counts

    def _look_once(self, blocks: Iterator[Block], wanted: NDArray[np.bool_] | None) -> None:
        for block in blocks:
            keep, rows = self._chosen(block, wanted)
            if not len(rows):
                continue
            values = block.values if keep is None else block.values[keep]
            if self.question.head:
                values = self.question.head(in_singles(values))
            self._take(self.scorer.products(values), rows, values.__getitem__, values.shape[1])

    def _look_twice(
        self, vectors: VectorPages, blocks: Iterator[Block], wanted: NDArray[np.bool_] | None
    ) -> None:
        """Numbers of many blocks first, and then the few vectors that may count once more.

        What follows on the numbers has its price in each look, and they take little memory.
        """
        products: list[Floats] = []
        squares: list[Floats] = []
        places: list[Places] = []

        def take() -> None:
            rows = np.concatenate(places)
            found = np.concatenate(products), np.concatenate(squares)
            memory = self.scanner.memory
            self._take(found, rows, lambda some: vectors.rows(rows[some], memory), vectors.dim)
            for each in (products, squares, places):
                each.clear()

        for block in blocks:
            keep, rows = self._chosen(block, wanted)
            if not len(rows):
                continue
            product, square = self.scorer.products(block.values)
            products.append(product if keep is None else product[keep])
            squares.append(square if keep is None else square[keep])
            places.append(rows)
            if sum(map(len, places)) >= LOOK_ROWS:
                take()
        if places:
            take()

    def _groups(self, wanted: NDArray[np.bool_] | None) -> tuple[int, ...] | None:
        """Row groups in which a row is wanted; the pages of others are never touched."""
        if wanted is None:
            return self.task.groups
        metadata = self.file.metadata
        every = range(metadata.num_row_groups)
        bounds = [0, *accumulate(metadata.row_group(g).num_rows for g in every)]
        groups = every if self.task.groups is None else self.task.groups
        return tuple(g for g in groups if wanted[bounds[g] : bounds[g + 1]].any())

    def _chosen(
        self, block: Block, wanted: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.bool_] | None, Places]:
        """Which vectors to look at, None for all, and their rows."""
        if wanted is None and len(block.values) == len(block.null):
            return None, np.arange(block.first_row, block.first_row + len(block.null))
        there = ~block.null
        rows = block.first_row + np.flatnonzero(there)
        if wanted is None:
            self.null += len(block.null) - len(rows)
            return None, rows
        some = wanted[block.first_row : block.first_row + len(block.null)]
        self.null += int((some & block.null).sum())
        keep = some[there]
        return (None, rows) if keep.all() else (keep, rows[keep])

    def _take(
        self,
        found: tuple[Floats, Floats],
        rows: Places,
        values_of: Callable[[NDArray[np.int64]], Floats],
        dim: int,
    ) -> None:
        """Look at what `Scorer.products` found of some rows; values are asked for by their places."""
        self.searched += len(rows)
        least = self.scorer.ceilings(self.best.floor)
        scores = self.scorer.scores(*found, dim=dim)
        for odd in _few(np.flatnonzero(np.isinf(scores.slack))):
            scores.lengths[odd] = self.scorer.lengths(values_of(odd))
        self._refuse_no_numbers(scores.lengths, rows)
        if np.isinf(least).any():
            # Without a floor every row of the first block would be scored twice.
            least = np.maximum(least, scores.kth_lowest(self.question.k))
        # Downwards, so that rounding to the scores' type never loses a row.
        bar = np.nextafter(least.astype(scores.upper.dtype), -np.inf, dtype=scores.upper.dtype)
        # Three times as fast as by rows and columns at once.
        row, query = np.divmod(np.flatnonzero(scores.upper >= bar), len(bar))
        for some in _few(np.arange(len(row))):
            exact = self.scorer.exact(values_of(row[some]), query[some])
            known = ~np.isnan(exact)
            self.best.add(query[some][known], exact[known], rows[row[some]][known])

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


def _few(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """So many at a time as a block has rows."""
    return (places[start : start + BLOCK_ROWS] for start in range(0, len(places), BLOCK_ROWS))


def _ids_of(file: pq.ParquetFile, column: str, rows: Places) -> pa.Array:
    """Ids of some rows; decodes only the row groups that hold them."""
    return read_rows(file, [column], rows).column(0).combine_chunks()
