"""What is searched for: vectors, what they are called, and what made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import hats
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.coordinates import angular_separation
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import ArrayLike, NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.filters import ids_as
from skyvec.search.metrics import Doubles
from skyvec.stage.selection import Selection
from skyvec.vector_pages.opening import open_vectors
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Vectors to be compared with those of an extension."""

    vectors: Doubles
    """(Q, dim)."""
    names: tuple[object, ...] = ()
    """What each is called in the answer; numbers by default."""
    provenance: Provenance | None = None
    """Of the vectors, where it is known."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """Where they come from, as lines for people."""
    examples: pa.Table | None = None
    """Id, ``ra``, ``dec`` and ``role`` of objects of the searched catalog that they were made of."""

    @classmethod
    def of(cls, vectors: ArrayLike) -> Self:
        """Of one vector (dim,) or several (Q, dim), whose origin is the caller's to know.

        Raises
        ------
        ConfigurationError
            If they are not, or hold NaN or infinity.
        """
        array = np.asarray(vectors, np.float64)
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or not array.size:
            raise ConfigurationError(
                f"has shape {np.shape(vectors)}, neither (dim,) nor (queries, dim)",
                where="query vector",
                remedy="Give one vector, or a row for each query",
            )
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise ConfigurationError(
                "holds NaN or infinity", where=f"query vector {row}", remedy="Embed it again"
            )
        return cls(vectors=array, asked={"query": f"{len(array)} vector(s) given"})

    def check(self, vectors: VectorCatalog, *, width: int) -> None:
        """Refuse queries that mean nothing beside these vectors.

        Raises
        ------
        ConfigurationError
            If they are of another width, or by another model or setting.
        """
        if self.vectors.shape[1] != width:
            raise ConfigurationError(
                f"has shape {self.vectors.shape[1:]}, the vectors have {width} values",
                where="query vector",
                remedy="Embed the query with the model of this extension",
            )
        ours, theirs = vectors.provenance, self.provenance
        if theirs is not None and not ours.same_numbers(theirs):
            raise ConfigurationError(
                f"was made by {theirs.model} ({theirs.model_digest[:8]}), the vectors by "
                f"{ours.model} ({ours.model_digest[:8]})"
                if ours.model_digest != theirs.model_digest
                else f"was made otherwise: {'; '.join(theirs.differences(ours))}",
                where=f"query for extension {vectors.name}",
                remedy="Distances between vectors of two kinds mean nothing: embed the query as "
                "this extension was",
            )


def example(
    catalog: str | Path | VectorCatalog, like: object, *, extension: str | None = None
) -> Query:
    """The stored vector of an object, to search another catalog with.

    Raises
    ------
    ConfigurationError
        If there is no such object, or it has no vector.
    """
    vectors = (
        catalog if isinstance(catalog, VectorCatalog) else VectorCatalog.open(catalog, extension)
    )
    return Query(
        vectors=find_vectors(vectors, [like]),
        names=(like,),
        provenance=vectors.provenance,
        asked={"like": f"{like} of {vectors.primary.name}"},
    )


def find_vector(vectors: VectorCatalog, object_id: object) -> NDArray[np.float32]:
    """Vector (dim,) of one object; see `find_vectors`."""
    return find_vectors(vectors, [object_id])[0].astype(np.float32)


def find_vectors(vectors: VectorCatalog, object_ids: Sequence[object]) -> Doubles:
    """Vectors (n, dim) of objects by their ids; see `find_objects`."""
    return find_objects(vectors, object_ids)[0]


def find_objects(vectors: VectorCatalog, object_ids: Sequence[object]) -> tuple[Doubles, pa.Table]:
    """Vectors (n, dim) of objects by their ids, and their id, ``ra`` and ``dec``.

    Ids are read until all are found.

    Where the collection has an index of ids, only the partitions that it names are read.

    Raises
    ------
    ConfigurationError
        If one is unknown, or has no vector.
    """
    wanted = ids_as(object_ids, vectors)
    found = np.full((len(wanted), vectors.dim), np.nan)
    left = np.ones(len(wanted), np.bool_)
    info = vectors.release.catalog.catalog_info
    keys = [vectors.id_column, str(info.ra_column), str(info.dec_column)]
    places = np.full((len(wanted), 2), np.nan)
    for pixel in _pixels_of(vectors, wanted):
        path = vectors.release.leaf(pixel)
        with open_parquet(path) as file:
            known = file.read(columns=keys).select(keys)
            rows = pc.index_in(wanted, known.column(0).combine_chunks())
            here = left & rows.is_valid().to_numpy(zero_copy_only=False)
            if here.any():
                pages = open_vectors(path, vectors.name, file=file)
                for place in np.flatnonzero(here).tolist():
                    vector = pages.row(rows[place].as_py())
                    if vector is None:
                        raise _no_vector(vectors, wanted[place].as_py())
                    found[place] = vector
                where = rows.filter(pa.array(here))
                for axis in (0, 1):
                    places[here, axis] = known.column(axis + 1).take(where).to_numpy()
                left &= ~here
        if not left.any():
            ra, dec = places.T
            return found, pa.table({vectors.id_column: wanted, "ra": ra, "dec": dec})
    raise ConfigurationError(
        f"no object {wanted[int(np.argmax(left))].as_py()!r} with a vector",
        where=f"{vectors.primary}, extension {vectors.name}",
        remedy=f"Check the id{_such_as(vectors)}, and its status in the extension",
    )


def _such_as(vectors: VectorCatalog) -> str:
    """An id that there is, for those who have none at hand."""
    for pixel in vectors.release.pixels[:1]:
        with open_parquet(vectors.release.leaf(pixel)) as file:
            for batch in file.iter_batches(1, columns=[vectors.id_column]):
                return f" (one that is there: {batch.column(0)[0].as_py()})"
    return ""


def _no_vector(vectors: VectorCatalog, object_id: object) -> ConfigurationError:
    return ConfigurationError(
        f"object {object_id!r} has no vector: it could not be embedded",
        where=f"{vectors.primary}, extension {vectors.name}",
        remedy=f"Its column {vectors.name}_flags says why; take another object",
    )


def _pixels_of(vectors: VectorCatalog, ids: pa.Array) -> list[HealpixPixel]:
    primary = HatsRelease.open(vectors.primary) if vectors.primary.exists() else None
    indexes = (primary.collection.all_indexes if primary and primary.collection else None) or {}
    if primary is None or primary.collection is None or vectors.id_column not in indexes:
        return vectors.release.pixels
    index = hats.read_hats(primary.collection.get_index_dir_for_field(vectors.id_column))
    likely = set(index.loc_partitions(ids.to_pylist()))
    # Those of the index first, then the others: an index may be older than the catalog.
    return sorted(vectors.release.pixels, key=lambda pixel: pixel not in likely)


def find_object(vectors: VectorCatalog, ra: float, dec: float, *, radius: float) -> object:
    """Id of the object nearest to a position.

    Parameters
    ----------
    ra, dec
        Degrees.
    radius
        Arcseconds within which it must be.

    Raises
    ------
    ConfigurationError
        If the position is outside of the footprint, or no object is so near; says how far the
        nearest of the partition is.
    """
    where = f"position RA {ra:g}, Dec {dec:g}"
    cone = Selection.parse(cone=f"{ra},{dec},{radius}")
    try:
        pixels = cone.choose(vectors.release)
    except ConfigurationError as problem:
        raise ConfigurationError(
            f"is outside of the footprint of {vectors.primary}", where=where, remedy=problem.remedy
        ) from problem
    info = vectors.release.catalog.catalog_info
    nearest, distance = None, np.inf
    for pixel in pixels:
        with open_parquet(vectors.release.leaf(pixel)) as file:
            table = file.read(columns=[vectors.id_column, info.ra_column, info.dec_column])
        there = np.stack([table.column(c).to_numpy() for c in (info.ra_column, info.dec_column)])
        away = np.rad2deg(angular_separation(*np.deg2rad([ra, dec]), *np.deg2rad(there))) * 3600
        first = int(np.argmin(away)) if len(away) else 0
        if len(away) and away[first] < distance:
            nearest = table.column(vectors.id_column)[first].as_py()
            distance = float(away[first])
    if distance > radius:
        said = (
            "" if nearest is None else f"; the nearest is {nearest!r}, {distance:,.1f} arcsec away"
        )
        raise ConfigurationError(
            f"has no object within {radius:g} arcsec{said}",
            where=where,
            remedy="Give a larger radius, or the id of the object",
        )
    return nearest
