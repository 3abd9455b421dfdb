"""Where the objects of an answer lie in a catalog: by position to the file, by id to the row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import Leaf
from skyvec.releases.sky import valid_positions
from skyvec_schemas.errors import ConfigurationError, MissingColumnError

_ROWS = 1 << 16
"""Ids read at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Objects that one HEALPix pixel of a catalog holds."""

    pixel: HealpixPixel
    rows: NDArray[np.int64]
    """Of the pixel's files, ascending."""
    places: NDArray[np.int64]
    """Which object each row is, as a row of what was asked for."""


def find_rows(release: HatsRelease, objects: pa.Table, id_column: str) -> Iterator[Found]:
    """Rows of some objects, of whose pixels the id column alone is read.

    Parameters
    ----------
    objects
        Unique ids, ``ra`` and ``dec`` in degrees. One that is not at its position is not found.

    Raises
    ------
    MissingColumnError
        If the catalog has no such id column.
    ConfigurationError
        If its ids are of another type.
    """
    names = release.schema.names
    if id_column not in names:
        raise MissingColumnError(
            f"no column {id_column!r}",
            where=str(release.path),
            remedy=f"It has {', '.join(names)}",
        )
    wanted = _ids(objects.column(id_column), release, id_column)
    for pixel, members in _pixels(release, objects):
        subset = wanted.take(pa.array(members))
        rows, places = [], []
        with Leaf.open(release.files(pixel)) as leaf:
            for first, batch in leaf.batches([id_column], rows=_ROWS):
                own = batch.column(0)
                hits = pc.index_in(own, value_set=subset.cast(own.type))
                there = np.flatnonzero(hits.is_valid().to_numpy(zero_copy_only=False))
                rows.append(first + there)
                places.append(members[hits.take(pa.array(there)).to_numpy()])
        if rows:
            yield Found(pixel=pixel, rows=np.concatenate(rows), places=np.concatenate(places))


def unique_objects(table: pa.Table, id_column: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """Each object once, and for every row of the table which of them it is."""
    ids = table.column(id_column).combine_chunks()
    distinct = pc.unique(ids)
    which = pc.index_in(ids, value_set=distinct).to_numpy().astype(np.int64)
    _, first = np.unique(which, return_index=True)
    return table.select([id_column, "ra", "dec"]).take(pa.array(first)), which


def _ids(column: pa.ChunkedArray, release: HatsRelease, name: str) -> pa.Array:
    kind = release.schema.field(name).type
    try:
        return column.cast(kind).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as problem:
        raise ConfigurationError(
            f"ids are {kind}, those of the answer {column.type}",
            where=str(release.path),
            remedy="Give the catalog that the answer was asked of",
        ) from problem


def _pixels(
    release: HatsRelease, objects: pa.Table
) -> Iterator[tuple[HealpixPixel, NDArray[np.int64]]]:
    """Pixels at the objects' positions, and which objects lie in each."""
    ra, dec = (objects.column(c).to_numpy().astype(np.float64) for c in ("ra", "dec"))
    valid = np.flatnonzero(valid_positions(ra, dec))
    index = compute_spatial_index(ra[valid], dec[valid])
    known = set(release.pixels)
    for order in sorted({pixel.order for pixel in known}):
        cells = spatial_index_to_healpix(index, order)
        for cell in np.unique(cells):
            if (pixel := HealpixPixel(order, int(cell))) in known:
                yield pixel, valid[cells == cell]
