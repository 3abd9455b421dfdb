"""Which pixels and objects lie in or near a HEALPix pixel (nested ordering)."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import order2mindist, radec2pix
from hats.pixel_math.pixel_margins import get_margin
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from numpy.typing import NDArray

_FINEST_BORDER = 10
"""Cells of a border are at most this many orders finer than its pixel: 4,096 cells are quick."""


def valid_positions(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where (ra, dec) in degrees is a place on the sky: finite, 0 <= ra <= 360, |dec| <= 90."""
    with np.errstate(invalid="ignore"):
        return np.asarray((ra >= 0) & (ra <= 360) & (np.abs(dec) <= 90))


def unit_vectors(
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    *,
    pm_ra: NDArray[np.float64] | None = None,
    pm_dec: NDArray[np.float64] | None = None,
    years: float = 0,
) -> NDArray[np.float64]:
    """Positions (degrees) as unit vectors (n, 3), NaN where invalid, moved by proper motions.

    Motion (mas/yr) is uniform along the tangent in space, as in the Hipparcos catalogue (ESA
    SP-1200, vol. 1, 1.5.5), with parallax and radial velocity neglected: which for the
    nearest star is 0.8 arcsec. Where the motion is unknown the position stays.
    """
    valid = valid_positions(ra, dec)
    lon = np.radians(np.where(valid, ra, np.nan) % 360)
    lat = np.radians(np.where(valid, dec, np.nan))
    sin_lon, cos_lon, sin_lat, cos_lat = np.sin(lon), np.cos(lon), np.sin(lat), np.cos(lat)
    place = np.stack([cos_lat * cos_lon, cos_lat * sin_lon, sin_lat], axis=1)
    if pm_ra is None or pm_dec is None or not years:
        return place
    known = np.isfinite(pm_ra) & np.isfinite(pm_dec)
    east, north = (np.radians(np.where(known, pm, 0) * years / 3.6e6) for pm in (pm_ra, pm_dec))
    place[:, 0] -= east * sin_lon + north * sin_lat * cos_lon
    place[:, 1] += east * cos_lon - north * sin_lat * sin_lon
    place[:, 2] += north * cos_lat
    length = np.sqrt(place[:, 0] ** 2 + place[:, 1] ** 2 + place[:, 2] ** 2)
    return np.asarray(place / np.where(known, length, 1)[:, None])


def near_pixel(
    ra: NDArray[np.float64], dec: NDArray[np.float64], pixel: HealpixPixel, *, margin_arcsec: float
) -> NDArray[np.bool_]:
    """Whether valid positions (degrees) lie in a pixel or within the margin of its border.

    Some further away are included: the border is a ring of cells at least as wide as the margin.
    """
    index = radec2pix(SPATIAL_INDEX_ORDER, ra, dec)
    return in_ranges(index, ranges_around(pixel, margin_arcsec=margin_arcsec))


def in_ranges(index: NDArray[np.int64], ranges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each value lies in one of the half-open, ascending, disjoint ranges (k, 2)."""
    before = np.searchsorted(ranges[:, 0], index, side="right") - 1
    return np.asarray((before >= 0) & (index < ranges[before, 1]))


def meet_ranges(intervals: NDArray[np.int64], ranges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each half-open interval (n, 2) overlaps one of the ascending ranges (k, 2)."""
    following = np.searchsorted(ranges[:, 1], intervals[:, 0], side="right")
    starts = np.append(ranges[:, 0], np.iinfo(np.int64).max)
    return np.asarray(starts[following] < intervals[:, 1])


def pixels_around(pixel: HealpixPixel, *, order: int, margin_arcsec: float) -> list[int]:
    """Pixels of one order that overlap a pixel or its margin, in ascending order."""
    shift = 2 * (SPATIAL_INDEX_ORDER - order)
    ranges = ranges_around(pixel, margin_arcsec=margin_arcsec)
    first, last = ranges[:, 0] >> shift, (ranges[:, 1] - 1) >> shift
    pixels = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
    return [int(pixel) for pixel in np.unique(np.concatenate(pixels))]


def ranges_around(pixel: HealpixPixel, *, margin_arcsec: float) -> NDArray[np.int64]:
    """Spatial indices (order 29) of a pixel and its margin: disjoint ranges [start, stop), (k, 2).

    Raises
    ------
    ValueError
        If the margin is wider than a pixel of order 0.
    """
    if not margin_arcsec > 0:
        return _ranges(np.array([pixel.pixel]), pixel.order)
    finest = min(pixel.order + _FINEST_BORDER, SPATIAL_INDEX_ORDER)
    cells = max((o for o in range(finest + 1) if _width(o) >= margin_arcsec), default=-1)
    if cells < 0:
        raise ValueError(f"a margin of {margin_arcsec} arcsec is wider than a pixel of order 0")
    return _pixel_and_ring(pixel.order, pixel.pixel, cells)


@lru_cache(maxsize=256)
def _pixel_and_ring(order: int, pixel: int, cells: int) -> NDArray[np.int64]:
    """A pixel and the cells of order ``cells`` that touch it from outside.

    Cells wider than the pixel are those around the cell that the pixel lies in.
    """
    if cells < order:
        order, pixel = cells, pixel >> 2 * (order - cells)
    own = _ranges(np.array([pixel]), order)
    ring = _ranges(np.array(get_margin(order, pixel, cells - order), dtype=np.int64), cells)
    ranges = np.concatenate([own, ring])
    ranges = ranges[np.argsort(ranges[:, 0])]
    gap = np.flatnonzero(ranges[1:, 0] > ranges[:-1, 1])
    joined = np.stack([ranges[np.r_[0, gap + 1], 0], ranges[np.r_[gap, len(ranges) - 1], 1]], 1)
    joined.setflags(write=False)
    return joined


def _ranges(pixels: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    return np.stack([pixels, pixels + 1], axis=1) << 2 * (SPATIAL_INDEX_ORDER - order)


@cache
def _width(order: int) -> float:
    """Lower limit of the width of a cell, in arcsec; the true minimum is 8% more, at the poles."""
    return float(order2mindist(order)) * 60
