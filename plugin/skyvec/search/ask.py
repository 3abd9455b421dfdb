"""``skyvec.search``: objects like these, exactly, in one pass over the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from mocpy import MOC
from numpy.typing import ArrayLike, NDArray

from skyvec.answers.answer import Answer
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search.examples import average, mean_vector
from skyvec.search.filters import CatalogFilters, Filters, ids_as
from skyvec.search.metrics import METRIC_LINES, METRICS, Metric, columns_of
from skyvec.search.partitions import Ranking, rank
from skyvec.search.query import Query, find_object, find_objects
from skyvec.search.regions import Box, Cone
from skyvec.search.scan import Head, Question
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client

NAMED = 5
"""Ids that are named in the answer's lines."""
NEAR = 2.0
"""Arcseconds within which an object is the one at a position."""


def search(
    catalog: str | Path | VectorCatalog,
    *,
    like: object | Sequence[object] | None = None,
    unlike: object | Sequence[object] = (),
    at: tuple[float, float] | None = None,
    vector: ArrayLike | Query | None = None,
    k: int = 10,
    extension: str | None = None,
    metric: Metric = "cosine",
    center: bool = False,
    together: bool = True,
    radius: float = NEAR,
    where: str | None = None,
    cone: Cone | str | None = None,
    box: Box | None = None,
    moc: MOC | str | Path | None = None,
    among: Sequence[object] | None = None,
    head: Head | None = None,
    client: Client | None = None,
    threads: int | None = None,
) -> Answer:
    """The ``k`` objects most like an example, exact over the stored vectors.

    Every partition that the region touches is read once; memory does not grow with the catalog.
    Equal scores are ordered by id. Rows without a vector are left out and counted.

    Parameters
    ----------
    catalog
        Collection with an embedding extension, or an ``<extension>.properties`` file.
    like
        Id of an object, or ids; they are left out of the answer. Several are averaged, by cosine
        each at unit length, so that they count the same.
    unlike
        Ids to stay away from: the mean of their vectors is taken off that of ``like``. By
        ``cosine`` and ``inner_product``.
    at
        Right ascension and declination in degrees of an object, in place of its id.
    vector
        Query vectors, (dim,) or (Q, dim), of the same model; or a `Query`, as `encode` makes of
        an image or a spectrum, and `example` of an object in another catalog.
    k
        Rows wanted for each query; fewer come back from a smaller catalog.
    extension
        Which extension, if there are several.
    metric
        ``cosine``, ``l2`` (Euclidean distance) or ``inner_product``.
    center
        Take the mean of all vectors off first, by ``cosine``: what every object shares says
        nothing about likeness. Takes a second pass.
    together
        False: each id of ``like`` is a query of its own.
    radius
        Arcseconds from ``at``.
    where, cone, box, moc, among
        Search among rows that meet all of these; see `Filters`.
    head
        Applied to the stored vectors, and to those of ``like``, before they are compared:
        (rows, dim) -> (rows, width), float32. ``vector`` is already of that width.
    client
        Of a Dask cluster whose workers see the same files; threads of this process by default.
    threads
        As many as there are cores by default.

    Returns
    -------
    Answer
        Its table has the id column, ``ra`` and ``dec`` in degrees, and ``similarity`` (larger is
        more alike) with ``cosine`` and ``inner_product``, ``distance`` (smaller is more alike)
        with ``l2`` and ``cosine``, where it is 1 - similarity; nearest first. With several
        queries a first column ``query`` names them.

    Raises
    ------
    ConfigurationError
        Unknown id, an object without a vector, a position outside of the footprint, vectors of
        another model or width, a filter that is none, k < 1.
    ContractError
        A stored vector that holds NaN or infinity, or a damaged file.
    """
    vectors = (
        catalog if isinstance(catalog, VectorCatalog) else VectorCatalog.open(catalog, extension)
    )
    _refuse_settings(k, metric, center=center, given=(like, at, vector), unlike=_listed(unlike))
    filters = CatalogFilters(Filters(where=where, cone=cone, box=box, moc=moc, ids=among), vectors)
    middle = mean_vector(vectors, head) if center else None
    if at is not None:
        like = find_object(vectors, *at, radius=radius)
    examples = _Examples(_listed(like), _listed(unlike), together)
    if like is None:
        query = vector if isinstance(vector, Query) else Query.of(np.asarray(vector))
    else:
        query = examples.query(vectors, metric, center=middle, head=head)
    query.check(vectors, width=_width(vectors, head))
    info = vectors.release.catalog.catalog_info
    question = Question(
        queries=query.vectors, metric=metric, k=k + examples.spare, column=vectors.name,
        id_column=vectors.id_column, ra_column=str(info.ra_column),
        dec_column=str(info.dec_column), center=middle, head=head,
    )  # fmt: skip
    ranking = rank(vectors, question, filters, client=client, threads=threads)
    asked = {**query.asked, "metric": METRIC_LINES[metric]}
    if center:
        asked["metric"] += ", the mean of all vectors taken off"
    if at is not None:
        asked["at"] = f"RA {at[0]:g}, Dec {at[1]:g}: object {like}"
    table = examples.taken_out(ranking.table, vectors, k)
    return Answer(
        table=_table(vectors, table, metric, query),
        id_column=vectors.id_column,
        catalog=vectors.primary,
        extension=vectors.name,
        fingerprint=vectors.provenance.fingerprint(),
        question=asked | filters.describe() | _counts(ranking),
        examples=query.examples,
    )


@dataclass(frozen=True, slots=True)
class _Examples:
    """Objects of the catalog that are searched for; they are not part of the answer."""

    positive: list[object]
    negative: list[object]
    together: bool

    @property
    def spare(self) -> int:
        """Rows of a query that may be taken out again."""
        own = len(self.positive) if self.together else min(1, len(self.positive))
        return own + len(self.negative)

    def query(
        self,
        vectors: VectorCatalog,
        metric: Metric,
        *,
        center: NDArray[np.float32] | None,
        head: Head | None,
    ) -> Query:
        if not self.positive:
            raise ConfigurationError("is empty", where="like", remedy="Give at least one id")
        found, objects = find_objects(vectors, [*self.positive, *self.negative])
        if head is not None:
            found = np.asarray(head(found.astype(np.float32)), np.float64)
        positive, negative = np.split(found, [len(self.positive)])
        groups = [positive] if self.together else np.split(positive, len(positive))
        rows = [average(group, negative, metric=metric, center=center) for group in groups]
        asked = {"like": _few(self.positive)}
        if self.negative:
            asked["unlike"] = _few(self.negative)
        return Query(
            vectors=np.concatenate(rows),
            names=() if self.together else tuple(self.positive),
            asked=asked,
            examples=objects.append_column(
                "role", pa.array(["like"] * len(positive) + ["unlike"] * len(negative))
            ),
        )

    def taken_out(self, table: pa.Table, vectors: VectorCatalog, k: int) -> pa.Table:
        """The k best of each query that are no examples of it."""
        keep = np.ones(len(table), np.bool_)
        if self.positive:
            ids, query = table.column("id"), table.column("query").to_numpy()
            shared = [*self.negative, *(self.positive if self.together else [])]
            keep &= ~pc.is_in(ids, ids_as(shared, vectors)).to_numpy()
            if not self.together:
                own = ids_as(self.positive, vectors).take(pa.array(query))
                keep &= ~pc.equal(ids, own).to_numpy()
        table = table.filter(pa.array(keep))
        query = table.column("query").to_numpy()
        order = np.arange(len(query)) - np.searchsorted(query, query)
        return table.filter(pa.array(order < k))


def _refuse_settings(
    k: int, metric: str, *, center: bool, given: tuple[object, object, object], unlike: list[object]
) -> None:
    if k < 1:
        raise ConfigurationError("must be at least 1", where=f"k = {k}", remedy="Ask for more")
    if metric not in METRICS:
        raise ConfigurationError(
            "is no metric", where=f"metric {metric!r}", remedy=f"Use one of {', '.join(METRICS)}"
        )
    if center and metric != "cosine":
        raise ConfigurationError(
            "changes nothing but cosines", where=f"center with {metric}", remedy="Leave it out"
        )
    if sum(one is not None for one in given) != 1:
        raise ConfigurationError(
            "give either an id, a position or a vector",
            where="search",
            remedy="Pass one of like=..., at=(ra, dec) and vector=...",
        )
    if unlike and given[2] is not None:
        raise ConfigurationError(
            "needs ids on both sides", where="unlike", remedy="Pass like=... in place of vector=..."
        )


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    if isinstance(value, pa.Array):
        return list(value.to_pylist())
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _few(ids: list[object]) -> str:
    named = ", ".join(map(str, ids[:NAMED]))
    return named + (f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else "")


def _width(vectors: VectorCatalog, head: Head | None) -> int:
    """Width of the vectors as they are compared."""
    if head is None:
        return vectors.dim
    return int(np.asarray(head(np.zeros((1, vectors.dim), np.float32))).shape[1])


def _table(vectors: VectorCatalog, found: pa.Table, metric: Metric, query: Query) -> pa.Table:
    columns: dict[str, object] = {}
    if len(query.vectors) > 1:
        number = found.column("query").to_numpy()
        named = pa.array(list(query.names)) if query.names else None
        columns["query"] = named.take(pa.array(number)) if named is not None else number
    columns[vectors.id_column] = found.column("id")
    columns |= {name: found.column(name) for name in ("ra", "dec")}
    return pa.table(columns | columns_of(metric, found.column("score").to_numpy()))


def _counts(ranking: Ranking) -> dict[str, str]:
    lines = {"searched": f"{ranking.searched:,} vectors, exactly"}
    left_out = []
    if ranking.null:
        left_out.append(f"{ranking.null:,} rows without a vector")
    if ranking.zero:
        left_out.append(f"{ranking.zero:,} vectors of length 0, which have no direction")
    return lines | ({"left out": ", ".join(left_out)} if left_out else {})
