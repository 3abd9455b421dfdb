"""All partitions against all queries, on threads or on a Dask cluster, and one answer of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from threading import local
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from hats.pixel_math.healpix_pixel import HealpixPixel
from threadpoolctl import ThreadpoolController

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.best import Floor, first_of_each
from skyvec.search.filters import CatalogFilters
from skyvec.search.scan import Counts, LeafAnswer, LeafTask, Question, Scanner
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client, Future

AHEAD = 8
"""Files that are on their way, for each worker, or in all on threads."""
_WAITING = 1 << 14
"""Rows of answers that are put in order at a time."""
_OPEN = 64
"""Scanned files that stay open until their rows are told, at most, besides those on their way."""
SHARE_ROWS = 1 << 16
"""Rows of a file for which a thread of its own is worth opening it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The k best rows of each query, query by query, best first."""

    table: pa.Table
    """See `LeafAnswer.table`."""
    searched: int
    """Vectors that were compared."""
    null: int
    zero: int


def rank(
    vectors: VectorCatalog,
    question: Question,
    filters: CatalogFilters,
    *,
    client: Client | None = None,
    threads: int | None = None,
) -> Ranking:
    """One pass over the partitions that the filters leave.

    Parameters
    ----------
    client
        Of a Dask cluster whose workers see the same files; this process by default.
    threads
        Of this process; as many as it has cores by default.
    """
    pixels = filters.pixels()
    threads = threads or os.cpu_count() or 1
    if client is None:
        tasks = _tasks(vectors, filters, pixels, threads)
        return _on_threads(tasks, question, _Merged(question), threads)
    return _on_cluster(_tasks(vectors, filters, pixels, 1), question, _Merged(question), client)


def _tasks(
    vectors: VectorCatalog, filters: CatalogFilters, pixels: Sequence[HealpixPixel], threads: int
) -> Iterator[LeafTask]:
    place = {pixel: number for number, pixel in enumerate(vectors.release.pixels)}
    for pixel in pixels:
        path, conditions = vectors.release.leaf(pixel), filters.of(pixel)
        # A filter is evaluated once for each task.
        split = conditions is None and len(pixels) < 4 * threads
        for groups in _shares(vectors, pixel, threads if split else 1):
            yield LeafTask(place=place[pixel], path=path, groups=groups, filter=conditions)


def _shares(
    vectors: VectorCatalog, pixel: HealpixPixel, count: int
) -> Sequence[tuple[int, ...] | None]:
    if count == 1:
        return [None]
    with open_parquet(vectors.release.leaf(pixel)) as file:
        metadata = file.metadata
    count = min(count, 1 + metadata.num_rows // SHARE_ROWS, max(1, metadata.num_row_groups))
    if count == 1:
        return [None]
    pieces = np.array_split(np.arange(metadata.num_row_groups), count)
    return [tuple(piece.tolist()) for piece in pieces]


def _on_threads(
    tasks: Iterator[LeafTask], question: Question, merged: _Merged, threads: int
) -> Ranking:
    floor = Floor(len(question.queries), question.k)
    held: list[LeafAnswer] = []
    own = local()

    def scanned(task: LeafTask) -> LeafAnswer:
        if not hasattr(own, "scanner"):
            own.scanner = Scanner(question, floor)
        answer: LeafAnswer = own.scanner.scan(task)
        return answer

    def table(answer: LeafAnswer) -> pa.Table:
        return answer.table(floor.reached_by(answer.rows), question)

    def tell() -> None:
        """Of what is held, but not of a file that lost all its rows meanwhile."""
        some = [each for each in held if len(floor.reached_by(each.rows))]
        merged.add(pool.map(table, some or held[:1]))
        while held:
            held.pop().leaf.close()

    with one_thread_each(), ThreadPoolExecutor(threads) as pool:
        # Few at a time, since what waits to be merged takes memory.
        waiting = deque(pool.submit(scanned, task) for task in islice(tasks, AHEAD + threads))
        try:
            while waiting:
                answer = waiting.popleft().result()
                waiting.extend(pool.submit(scanned, task) for task in islice(tasks, 1))
                merged.count(answer.counts)
                held.append(answer)
                # The later rows are told, the fewer are left to tell.
                many = sum(len(each.rows) for each in held) > merged.most
                if not waiting or many or len(held) >= _OPEN:
                    tell()
        finally:
            pool.shutdown(cancel_futures=True)
            done = [one for one in waiting if not one.cancelled() and not one.exception()]
            for each in (*held, *(one.result() for one in done)):
                each.leaf.close()
    return merged.ranking()


def _on_cluster(
    tasks: Iterator[LeafTask], question: Question, merged: _Merged, client: Client
) -> Ranking:
    from distributed import as_completed

    shared = client.scatter(question, broadcast=True)
    ahead = AHEAD * max(1, len(client.scheduler_info()["workers"]))

    def submit(task: LeafTask) -> Future:
        return client.submit(_scan_alone, task, shared, pure=False)

    running = as_completed([submit(task) for task in islice(tasks, ahead)])
    for future in running:
        counts, table = future.result()
        merged.count(counts)
        merged.add([table])
        for task in islice(tasks, 1):
            running.add(submit(task))
    return merged.ranking()


def _scan_alone(task: LeafTask, question: Question) -> tuple[Counts, pa.Table]:
    with one_thread_each():
        answer = Scanner(question).scan(task)
        with closing(answer.leaf):
            return answer.counts, answer.table(answer.rows, question)


@cache
def _pools() -> ThreadpoolController:
    """Looked for once, which takes as long as to search some ten thousand vectors."""
    return ThreadpoolController()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch and BLAS from starting threads of their own beside those that scan."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


class _Merged:
    def __init__(self, question: Question) -> None:
        self._k = question.k
        self.most = _WAITING + 2 * len(question.queries) * question.k
        """Rows that wait to be put in order."""
        self._table: pa.Table | None = None
        self._new: list[pa.Table] = []
        self._searched = self._null = self._zero = 0

    def count(self, counts: Counts) -> None:
        self._searched += counts.searched
        self._null += counts.null
        self._zero += counts.zero

    def add(self, tables: Iterable[pa.Table]) -> None:
        for table in tables:
            self._new.append(table)
            if sum(map(len, self._new)) > self.most:
                self._merge()

    def ranking(self) -> Ranking:
        table = self._merge()
        return Ranking(table=table, searched=self._searched, null=self._null, zero=self._zero)

    def _merge(self) -> pa.Table:
        parts = [*([] if self._table is None else [self._table]), *self._new]
        if not parts:
            raise ConfigurationError("has no partitions", where="catalog", remedy="Embed it first")
        table = pa.concat_tables(parts)
        query, score = (table.column(name).to_numpy() for name in ("query", "score"))
        best = first_of_each(query, score, table.column("id"), self._k)
        self._table, self._new = table.take(pa.array(best)).combine_chunks(), []
        return self._table
