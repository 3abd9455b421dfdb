"""Likeness as a search that LSDB composes with its others: ``catalog.search(SimilarTo(...))``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import nested_pandas as npd
import numpy as np
import pyarrow as pa
from hats.catalog import TableProperties
from lsdb.core.search.abstract_search import AbstractSearch
from lsdb.types import HCCatalogTypeVar
from mocpy import MOC
from numpy.typing import ArrayLike, NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search.ask import search
from skyvec.search.metrics import Metric, Scorer, columns_of
from skyvec.search.query import Query, find_vectors
from skyvec_schemas.errors import ConfigurationError, MissingColumnError
from skyvec_schemas.vectors import tensor_values

_DEEPEST = 18
"""HEALPix order of the places of the best, deeper than any partition."""


class SimilarTo(AbstractSearch):
    """Rows whose vectors are like an example, for `lsdb.catalog.Catalog.search`.

    With a threshold the rows of each partition are judged by themselves, so that it composes in any
    order with cones, boxes and queries; the catalog must have the vectors (`load_extension`). With
    ``k`` they are the k best of the whole extension, or of the part that ``among`` and the other
    filters of `skyvec.search` leave: found at once, exactly, in one pass over the vectors. LSDB then
    reads only the partitions that hold them, and what it composes with takes rows away.

    Parameters
    ----------
    catalog
        Collection with the extension, or its properties file.
    like
        Id of an object, or ids, as in `skyvec.search`.
    vector
        A vector (dim,) or a `Query` in place of ``like``.
    k
        Rows of the whole extension.
    at_least
        Similarity that a row must reach, by ``cosine`` or ``inner_product``.
    at_most
        Distance within which a row must be, by ``cosine`` (1 - similarity) or ``l2``.
    options
        With ``k``, what else `skyvec.search` takes: ``where``, ``cone``, ``client``, ...

    Raises
    ------
    ConfigurationError
        As `skyvec.search`; and unless there is just one of ``k``, ``at_least`` and ``at_most``.
    """

    def __init__(
        self,
        catalog: str | Path,
        *,
        like: object | Sequence[object] | None = None,
        vector: ArrayLike | Query | None = None,
        k: int | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
        metric: Metric = "cosine",
        extension: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(fine=True)
        if sum(limit is not None for limit in (k, at_least, at_most)) != 1:
            raise ConfigurationError(
                "needs one limit",
                where="SimilarTo",
                remedy="Pass one of k=..., at_least=... (similarity) and at_most=... (distance)",
            )
        vectors = VectorCatalog.open(catalog, extension)
        self._column, self._id_column = vectors.name, vectors.id_column
        self._name = "similarity" if at_least is not None else "distance"
        self._limit = at_least if at_least is not None else at_most
        self._scorer: Scorer | None = None
        self._best: list[object] = []
        self._places = MOC.new_empty(_DEEPEST)
        if k is not None:
            found = search(vectors, like=like, vector=vector, k=k, metric=metric, **options).table
            self._best = found.column(vectors.id_column).to_pylist()
            ra, dec = (found.column(name).to_numpy() * u.deg for name in ("ra", "dec"))
            self._places = MOC.from_lonlat(ra, dec, max_norder=_DEEPEST)
            return
        if options:
            raise ConfigurationError(
                f"{', '.join(options)} needs k",
                where="SimilarTo",
                remedy="With a threshold, compose with LSDB's own searches",
            )
        if self._name not in columns_of(metric, np.zeros(1)):
            raise ConfigurationError(
                f"{metric} has no {self._name}",
                where="SimilarTo",
                remedy="Use at_most with l2, at_least with inner_product, either with cosine",
            )
        self._metric: Metric = metric
        self._scorer = Scorer(_one_query(vectors, like, vector).vectors, metric)

    def perform_hc_catalog_filter(self, hc_structure: HCCatalogTypeVar) -> HCCatalogTypeVar:
        """Partitions that hold one of the k best; all of them for a threshold."""
        if self._scorer is None:
            return hc_structure.filter_by_moc(self._places)
        # LSDB asks without end for as long as the structure is the one it read.
        return hc_structure.filter_from_pixel_list(hc_structure.get_healpix_pixels())

    def search_points(self, frame: npd.NestedFrame, metadata: TableProperties) -> npd.NestedFrame:
        """The rows of a partition that are like the example.

        Raises
        ------
        MissingColumnError
            If the catalog was opened without the column that is needed.
        """
        needed = self._id_column if self._scorer is None else self._column
        if needed not in frame.columns:
            raise MissingColumnError(
                f"no column {needed!r}",
                where=f"catalog {metadata.catalog_name}",
                remedy=f"Open it with its ids and catalog.load_extension({self._column!r})",
            )
        if self._scorer is None:
            return frame[frame[self._id_column].isin(self._best)]
        return frame[self._alike(frame[self._column].array.__arrow_array__())]

    def _alike(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
        """A row without a vector is like nothing."""
        if self._scorer is None or self._limit is None:
            return np.zeros(len(column), np.bool_)
        there = column.is_valid().to_numpy(zero_copy_only=False)
        values = tensor_values(column, missing=np.nan)[there]
        score = self._scorer.exact(values, np.zeros(len(values), np.int64))
        measured = columns_of(self._metric, score)[self._name]
        with np.errstate(invalid="ignore"):  # NaN is no direction
            near = (
                measured >= self._limit if self._name == "similarity" else measured <= self._limit
            )
        there[there] = near
        return there


def _one_query(
    vectors: VectorCatalog, like: object | None, vector: ArrayLike | Query | None
) -> Query:
    if (like is None) == (vector is None):
        raise ConfigurationError(
            "give either an id or a vector", where="SimilarTo", remedy="Pass like=... or vector=..."
        )
    if like is not None:
        query = Query(vectors=find_vectors(vectors, [like]), provenance=vectors.provenance)
    else:
        query = vector if isinstance(vector, Query) else Query.of(np.asarray(vector))
    query.check(vectors, width=vectors.dim)
    if len(query.vectors) != 1:
        raise ConfigurationError(
            f"is {len(query.vectors)} vectors", where="SimilarTo", remedy="Give one"
        )
    return query
