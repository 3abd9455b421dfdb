"""Ids and positions of one pixel of the catalog and of the rows just outside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.ids import canonical_ids
from skyvec.releases.sky import meet_ranges, near_pixel, ranges_around, valid_positions
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.survey_columns import Survey


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogKeys:
    """What the join needs of a pixel: its own rows in file order, then those of its border."""

    pixel: HealpixPixel
    rows: int
    """How many of the n entries are the pixel's own; the others belong to its neighbours."""
    ids: NDArray[np.str_]
    """Canonical ids; `skyvec.releases.ids.MISSING` where null."""
    ra: NDArray[np.float64]
    """Degrees, as in the catalog, NaN where null: may not be a place on the sky."""
    dec: NDArray[np.float64]
    """Degrees, likewise."""
    pm_ra: NDArray[np.float64] | None = None
    """Proper motion times cos(dec), mas/yr; NaN where unknown."""
    pm_dec: NDArray[np.float64] | None = None
    """Proper motion, mas/yr; NaN where unknown."""

    @property
    def digest(self) -> str:
        """sha256 of the border rows, in whichever files and order they lie."""
        border = slice(self.rows, None)
        columns = (self.ids, self.ra, self.dec, self.pm_ra, self.pm_dec)
        present = [column[border].tolist() for column in columns if column is not None]
        rows = sorted(map(repr, zip(*present, strict=True)))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def read_catalog_keys(
    release: HatsRelease, pixel: HealpixPixel, survey: Survey, *, margin_arcsec: float
) -> CatalogKeys:
    """Keys of a pixel's rows and of the rows of other pixels within the margin around it.

    Of the neighbours only the row groups are read that can hold a row of the margin.

    Parameters
    ----------
    survey
        What the catalog's columns are called; motions are optional.

    Raises
    ------
    MissingColumnError
        If there is no id or no position.
    ContractError
        If a leaf cannot be read, or ids are neither whole numbers nor text.
    """
    parts = [_read(release, pixel, survey, ranges=None)]
    rows = len(parts[0]["id"])
    if margin_arcsec > 0:
        ranges = ranges_around(pixel, margin_arcsec=margin_arcsec)
        tree = release.catalog.pixel_tree
        for order, neighbour in tree.pixels[meet_ranges(tree.to_depth29_ranges(), ranges)]:
            leaf = HealpixPixel(int(order), int(neighbour))
            if leaf != pixel:
                parts.append(_read(release, leaf, survey, ranges=ranges))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    wanted = valid_positions(whole["ra"], whole["dec"])
    wanted[:rows] = False
    places = whole["ra"][wanted], whole["dec"][wanted]
    wanted[wanted] = near_pixel(*places, pixel, margin_arcsec=margin_arcsec)
    wanted[:rows] = True
    whole = {name: column[wanted] for name, column in whole.items()}
    return CatalogKeys(
        pixel=pixel,
        rows=rows,
        ids=whole["id"],
        ra=whole["ra"],
        dec=whole["dec"],
        pm_ra=whole.get("pm_ra"),
        pm_dec=whole.get("pm_dec"),
    )


def _read(
    release: HatsRelease, pixel: HealpixPixel, survey: Survey, *, ranges: NDArray[np.int64] | None
) -> dict[str, NDArray[Any]]:
    """Key columns of a leaf under our own names; with ranges only the row groups that meet them."""
    columns = _columns(release, survey)
    leaf = release.leaf(pixel)
    try:
        with release.open_leaf(pixel) as file:
            groups = np.arange(file.metadata.num_row_groups)
            if ranges is not None:
                groups = groups[meet_ranges(_bounds(file.metadata, release), ranges)]
            table = file.read_row_groups(
                groups.tolist(), columns=list(columns.values()), use_threads=False
            )
        found = {name: table.column(theirs) for name, theirs in columns.items()}
        ids = canonical_ids(found.pop("id"))
        return {"id": ids, **{name: _numbers(column) for name, column in found.items()}}
    except (pa.ArrowException, OSError, TypeError) as problem:
        raise ContractError(
            f"has no usable ids and positions ({str(problem).splitlines()[0]})",
            where=str(leaf),
            remedy="Import or copy this pixel again, ids as integers or text, degrees as numbers",
        ) from problem


def _columns(release: HatsRelease, survey: Survey) -> dict[str, str]:
    found = set(release.schema.names)
    columns = {"id": survey.id_column, "ra": survey.ra_column, "dec": survey.dec_column}
    absent = [name for name in columns.values() if name not in found]
    if absent:
        raise MissingColumnError(
            f"no column {', '.join(map(repr, absent))}, which the join needs",
            where=str(release.path),
            remedy="Name the columns of id and position, or add them on import",
        )
    motion = (survey.pm_ra_column, survey.pm_dec_column)
    if motion[0] in found and motion[1] in found:
        columns |= {"pm_ra": str(motion[0]), "pm_dec": str(motion[1])}
    return columns


def _bounds(metadata: pq.FileMetaData, release: HatsRelease) -> NDArray[np.int64]:
    """Spatial indices (order 29) of each row group: ranges (k, 2), all the sky where not noted."""
    order = release.catalog.catalog_info.healpix_order
    shift = 2 * (SPATIAL_INDEX_ORDER - (SPATIAL_INDEX_ORDER if order is None else order))
    bounds = np.array([[0, 12 << 2 * SPATIAL_INDEX_ORDER]] * metadata.num_row_groups, np.int64)
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if release.healpix_column in names:
        place = names.index(release.healpix_column)
        for group in range(metadata.num_row_groups):
            noted = metadata.row_group(group).column(place).statistics
            if noted is not None and noted.has_min_max:
                bounds[group] = noted.min << shift, (noted.max + 1) << shift
    return bounds.reshape(-1, 2)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy())
