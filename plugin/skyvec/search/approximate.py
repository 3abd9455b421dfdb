"""An approximate index beside an extension: one graph for each HATS pixel, with measured recall.

Graphs are those of usearch (HNSW, Malkov and Yashunin, arXiv 1603.09320) in float16. What an index
finds is scored again from the stored vectors, so that its scores are exact; what it misses is
stated by its recall.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import ArrayLike, NDArray

from skyvec.answers.answer import Answer
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.best import first_of_each
from skyvec.search.filters import CatalogFilters, Filters
from skyvec.search.graphs import (
    empty_graph,
    fill_graph,
    graph_file,
    held_out,
    restored_graph,
    usearch_index,
    vectors_of,
    wilson_interval,
)
from skyvec.search.metrics import METRIC_LINES, Doubles, Metric, Scorer, columns_of
from skyvec.search.partitions import rank
from skyvec.search.query import Query, find_objects
from skyvec.search.rows import read_rows
from skyvec.search.scan import Question
from skyvec_schemas.errors import ConfigurationError

QUERIES = 500
"""Held out to measure the recall."""
FACTS = "index.json"
_SPARE = 2
"""Times k that are scored again, since float16 may have put them in another order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Share of the true k nearest that the index finds, on objects that it had not seen."""

    recall: float
    low: float
    """Ends of a 95% interval (Wilson's, for as many trials as queries, which is too wide)."""
    high: float
    k: int
    queries: int

    def __str__(self) -> str:
        """For people."""
        return (
            f"recall@{self.k} {self.recall:.3f} (95%: {self.low:.3f} to {self.high:.3f}) against "
            f"exact search, measured on {self.queries} objects held out"
        )


class ApproximateIndex:
    """An index in a folder; made by `build`, found by `open`."""

    def __init__(self, folder: Path, vectors: VectorCatalog, facts: Mapping[str, Any]) -> None:
        self.folder, self.vectors = folder, vectors
        self.metric: Metric = facts["metric"]
        self.expansion: int = facts["expansion"]
        self.recall = Recall(**facts["recall"])

    @classmethod
    def build(
        cls,
        catalog: str | Path,
        folder: str | Path | None = None,
        *,
        extension: str | None = None,
        metric: Metric = "cosine",
        k: int = 10,
        queries: int = QUERIES,
        expansion: int = 128,
        seed: int = 0,
    ) -> Self:
        """Index every vector, and measure the recall before the held-out ones are added.

        Parameters
        ----------
        folder
            Beside the extension by default.
        k
            At which the recall is measured.
        queries
            Objects that are held out for it, at most a tenth of all.
        expansion
            Candidates that a search keeps in each graph: more find more, and take longer.

        Raises
        ------
        ConfigurationError
            If usearch is not installed, or there are too few vectors to measure anything.
        """
        usearch_index()
        vectors = VectorCatalog.open(catalog, extension)
        folder = Path(folder) if folder else _folder(vectors)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FACTS).unlink(missing_ok=True)  # half an index must not look like one
        held = held_out(vectors, queries, np.random.default_rng(seed))
        for pixel in vectors.release.pixels:
            index = empty_graph(vectors.dim, metric, expansion)
            fill_graph(index, vectors, pixel, without=held.get(pixel, np.zeros(0, np.int64)))
            index.save(str(graph_file(folder, pixel)))
        facts = {
            "fingerprint": vectors.provenance.fingerprint(),
            "extension": vectors.name,
            "metric": metric,
            "expansion": expansion,
            "recall": asdict(Recall(recall=0, low=0, high=0, k=k, queries=0)),
            "tiles": _identities(vectors),
        }
        measured = cls(folder, vectors, facts).measure(held, k)
        for pixel, rows in held.items():
            index = restored_graph(graph_file(folder, pixel), expansion, view=False)
            index.add(rows, vectors_of(vectors, pixel, rows), threads=1)
            index.save(str(graph_file(folder, pixel)))
        facts["recall"] = asdict(measured)
        (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True))
        return cls(folder, vectors, facts)

    @classmethod
    def open(
        cls, catalog: str | Path, folder: str | Path | None = None, *, extension: str | None = None
    ) -> Self:
        """An index that was built, if it still is that of these vectors.

        Raises
        ------
        ConfigurationError
            If there is none, or the extension was made again, by another model or of other rows.
        """
        usearch_index()
        vectors = VectorCatalog.open(catalog, extension)
        folder = Path(folder) if folder else _folder(vectors)
        try:
            facts = json.loads((folder / FACTS).read_text())
        except (OSError, ValueError) as problem:
            raise ConfigurationError(
                "is no finished index",
                where=str(folder),
                remedy="Build it with ApproximateIndex.build",
            ) from problem
        changed = facts["fingerprint"] != vectors.provenance.fingerprint()
        if changed or facts["tiles"] != _identities(vectors):
            raise ConfigurationError(
                f"is stale: extension {vectors.name} "
                + ("was made by another model or setting" if changed else "has other rows")
                + " since",
                where=str(folder),
                remedy="Build it again, or search without it",
            )
        return cls(folder, vectors, facts)

    def search(
        self, *, like: object | None = None, vector: ArrayLike | Query | None = None, k: int = 10
    ) -> Answer:
        """Objects like an example; as `skyvec.search`, but some of the true ones are missed.

        The answer says how many by its recall, and its scores are exact.
        """
        vectors = self.vectors
        if (like is None) == (vector is None):
            raise ConfigurationError(
                "give either an id or a vector", where="search", remedy="Pass like= or vector="
            )
        if like is not None:
            liked, object_ = find_objects(vectors, [like])
            query = Query(
                vectors=liked,
                asked={"like": str(like)},
                examples=object_.append_column("role", pa.array(["like"])),
            )
        else:
            query = vector if isinstance(vector, Query) else Query.of(np.asarray(vector))
        query.check(vectors, width=vectors.dim)
        found = self._nearest(query.vectors, k + (like is not None))
        ids, ra, dec = self._facts(found)
        order = first_of_each(found.query, found.score, ids, k + 1)
        own = np.array([like is not None and str(ids[i].as_py()) == str(like) for i in order])
        order = order[~own] if len(order) else order
        number = found.query[order]
        order = order[np.arange(len(number)) - np.searchsorted(number, number) < k]
        columns: dict[str, object] = {"query": found.query[order]} if len(query.vectors) > 1 else {}
        columns |= {
            vectors.id_column: ids.take(pa.array(order)),
            "ra": ra[order],
            "dec": dec[order],
        }
        return Answer(
            table=pa.table(columns | columns_of(self.metric, found.score[order])),
            id_column=vectors.id_column,
            catalog=vectors.primary,
            extension=vectors.name,
            fingerprint=vectors.provenance.fingerprint(),
            question={
                **query.asked,
                "metric": METRIC_LINES[self.metric],
                "searched": f"approximately, {self.recall}",
            },
            examples=query.examples,
        )

    def _nearest(self, queries: Doubles, k: int) -> _Nearest:
        """The k nearest by the graphs, with exact scores."""
        near: list[_Nearest] = []
        for place, pixel in enumerate(self.vectors.release.pixels):
            graph = restored_graph(graph_file(self.folder, pixel), self.expansion, view=True)
            count = min(_SPARE * k, len(graph))
            if not count:
                continue
            matches = graph.search(queries.astype(np.float16), count, threads=1)
            rows = np.asarray(matches.keys, np.int64).reshape(len(queries), -1)
            near.append(
                _Nearest(
                    query=np.repeat(np.arange(len(queries)), rows.shape[1]),
                    score=-np.asarray(matches.distances, np.float64).ravel(),
                    place=np.full(rows.size, place),
                    row=rows.ravel(),
                )
            )
        every = _Nearest.joined(near)
        every = every.take(every.best(_SPARE * k))
        scorer = Scorer(queries, self.metric)
        score = np.empty(len(every.row))
        for place in np.unique(every.place).tolist():
            here = np.flatnonzero(every.place == place)
            pixel = self.vectors.release.pixels[place]
            values = vectors_of(self.vectors, pixel, every.row[here])
            score[here] = scorer.exact(values, every.query[here])
        return _Nearest(query=every.query, score=score, place=every.place, row=every.row)

    def _facts(self, found: _Nearest) -> tuple[pa.Array, Doubles, Doubles]:
        vectors, info = self.vectors, self.vectors.release.catalog.catalog_info
        names = [vectors.id_column, str(info.ra_column), str(info.dec_column)]
        tables, order = [], []
        for place in np.unique(found.place).tolist():
            here = np.flatnonzero(found.place == place)
            with open_parquet(vectors.release.leaf(vectors.release.pixels[place])) as file:
                tables.append(read_rows(file, names, found.row[here]))
            order.append(here)
        table = pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
        ids = table.column(0).combine_chunks()
        return ids, table.column(1).to_numpy(), table.column(2).to_numpy()

    def measure(self, held: Mapping[HealpixPixel, NDArray[np.int64]], k: int) -> Recall:
        """Recall of the graphs on rows that they do not hold."""
        places = {pixel: place for place, pixel in enumerate(self.vectors.release.pixels)}
        away = {(places[pixel], row) for pixel, rows in held.items() for row in rows.tolist()}
        queries = np.concatenate(
            [vectors_of(self.vectors, pixel, rows) for pixel, rows in held.items()]
        ).astype(np.float64)
        exact = self._exact(queries, k, away)
        near = self._nearest(queries, k)
        near = near.take(near.best(k))
        found: list[set[tuple[int, int]]] = [set() for _ in queries]
        for query, place, row in zip(near.query, near.place, near.row, strict=True):
            found[query].add((int(place), int(row)))
        shares = [len(ours & true) / len(true) for ours, true in zip(found, exact, strict=True)]
        recall, trials = float(np.mean(shares)), len(shares)
        low, high = wilson_interval(recall, trials)
        return Recall(recall=recall, low=low, high=high, k=k, queries=trials)

    def _exact(
        self, queries: Doubles, k: int, away: set[tuple[int, int]]
    ) -> list[set[tuple[int, int]]]:
        vectors, info = self.vectors, self.vectors.release.catalog.catalog_info
        question = Question(
            queries=queries, metric=self.metric, k=k + len(away), column=vectors.name,
            id_column=vectors.id_column, ra_column=str(info.ra_column),
            dec_column=str(info.dec_column),
        )  # fmt: skip
        table = rank(vectors, question, CatalogFilters(Filters(), vectors)).table
        found: list[list[tuple[int, int]]] = [[] for _ in queries]
        columns = (table.column(name).to_pylist() for name in ("query", "pixel", "row"))
        for query, place, row in zip(*columns, strict=True):
            if (place, row) not in away and len(found[query]) < k:
                found[query].append((place, row))
        return [set(each) for each in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Nearest:
    query: NDArray[np.int64]
    score: Doubles
    place: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: list[_Nearest]) -> _Nearest:
        names = ("query", "score", "place", "row")
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})

    def take(self, order: NDArray[np.int64]) -> _Nearest:
        return _Nearest(query=self.query[order], score=self.score[order],
                        place=self.place[order], row=self.row[order])  # fmt: skip

    def best(self, k: int) -> NDArray[np.int64]:
        return first_of_each(self.query, self.score, pa.array(self.row), k)


def _folder(vectors: VectorCatalog) -> Path:
    return vectors.release.root.parent / f"{vectors.name}_index"


def _identities(vectors: VectorCatalog) -> dict[str, Any]:
    return {f"{p.order}/{p.pixel}": dict(vectors.release.identity(p))
            for p in vectors.release.pixels}  # fmt: skip
