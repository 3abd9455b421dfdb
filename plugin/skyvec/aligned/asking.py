"""Questions through an aligned head: words among images, an image among spectra, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from skyvec.aligned.space import AlignedSpace, StoredTower
from skyvec.answers.catalog_scores import catalog_scores
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search.ask import search
from skyvec.search.query import Query
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client
    from mocpy import MOC

    from skyvec.answers.answer import Answer
    from skyvec.search.regions import Box, Cone


class Filters(TypedDict, total=False):
    """Where to search, as `skyvec.search` has it."""

    where: str | None
    cone: Cone | str | None
    box: Box | None
    moc: MOC | str | Path | None
    among: Sequence[object] | None
    client: Client | None
    threads: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedQuery:
    """A question in the common space, with the way of the stored vectors into it.

    ``skyvec.search(..., vector=query.query, head=query.head)`` answers it.
    """

    query: Query
    head: StoredTower


def words_query(space: AlignedSpace, texts: Sequence[str], vectors: VectorCatalog) -> AlignedQuery:
    """Words as a question to an extension.

    Raises
    ------
    ConfigurationError
        As `AlignedSpace.words` and `AlignedSpace.stored`.
    """
    head = space.stored(vectors.provenance)
    query = Query(
        vectors=space.words(texts),
        names=tuple(texts),
        provenance=vectors.provenance,
        asked={"words": " | ".join(texts), "aligned by": _named(space)},
    )
    return AlignedQuery(query=query, head=head)


def counterpart_query(space: AlignedSpace, query: Query, vectors: VectorCatalog) -> AlignedQuery:
    """Vectors of one modality as a question to an extension of another one.

    Parameters
    ----------
    query
        From `skyvec.search.query.example` or `encode`: its provenance says which tower reads it.

    Raises
    ------
    ConfigurationError
        If its origin is unknown, or as `AlignedSpace.stored`.
    """
    if query.provenance is None:
        raise ConfigurationError(
            "nothing says what made it",
            where="query vector",
            remedy="Take it from an extension with `example`, or from pixels with `encode`",
        )
    ours, theirs = space.stored(query.provenance), space.stored(vectors.provenance)
    asked = {
        **query.asked,
        "from, to": f"{ours.tower} to {theirs.tower}",
        "aligned by": _named(space),
    }
    mapped = replace(
        query,
        vectors=ours(query.vectors).astype("float64"),
        provenance=vectors.provenance,
        asked=asked,
    )
    return AlignedQuery(query=mapped, head=theirs)


def search_words(
    catalog: str | Path | VectorCatalog,
    text: str | Sequence[str],
    *,
    head: str | Path | AlignedSpace,
    k: int = 10,
    extension: str | None = None,
    **filters: Unpack[Filters],
) -> Answer:
    """The ``k`` objects whose vectors lie nearest to words, in the space of an aligned head.

    Parameters
    ----------
    text
        What to look for, e.g. ``"edge-on galaxy"``; several texts are queries of their own.
    head
        File or folder of a head with a tower of words.
    filters
        Where to search: ``where``, ``cone``, ``box``, ``moc``, ``among``; ``client``, ``threads``.

    Returns
    -------
    Answer
        With ``similarity`` (cosine) and the scores of the catalog beside it. How good the head is,
        only labels can tell: see `Answer.judged`.

    Raises
    ------
    ConfigurationError
        Words without an aligned head, a head of another model or other modalities, and whatever
        `skyvec.search` refuses.
    """
    vectors = _opened(catalog, extension)
    texts = [text] if isinstance(text, str) else list(text)
    return _asked(vectors, words_query(_space(head), texts, vectors), k=k, filters=filters)


def search_counterparts(
    catalog: str | Path | VectorCatalog,
    query: Query,
    *,
    head: str | Path | AlignedSpace,
    k: int = 10,
    extension: str | None = None,
    **filters: Unpack[Filters],
) -> Answer:
    """The ``k`` objects whose vectors of one modality lie nearest to a query of another one.

    With a head for image and spectrum: which spectra would belong to this image, and back. See
    `search_words` for the rest.
    """
    vectors = _opened(catalog, extension)
    return _asked(vectors, counterpart_query(_space(head), query, vectors), k=k, filters=filters)


def _asked(vectors: VectorCatalog, asked: AlignedQuery, *, k: int, filters: Filters) -> Answer:
    found = search(vectors, vector=asked.query, head=asked.head, k=k, metric="cosine", **filters)
    if len(asked.query.vectors) > 1:
        return found
    scores = catalog_scores(vectors, asked.query.vectors[0], head=asked.head)
    return replace(found, scores=scores)


def _opened(catalog: str | Path | VectorCatalog, extension: str | None) -> VectorCatalog:
    if isinstance(catalog, VectorCatalog):
        return catalog
    return VectorCatalog.open(catalog, extension)


def _space(head: str | Path | AlignedSpace) -> AlignedSpace:
    return head if isinstance(head, AlignedSpace) else AlignedSpace.open(head)


def _named(space: AlignedSpace) -> str:
    parts: list[Any] = [space.path.parent.name, space.path.name]
    return "/".join(part for part in parts if part)
