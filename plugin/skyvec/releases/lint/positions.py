"""Checks on positions and sky tiling: units, swapped columns, ring or nested, index or position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cdshealpix.nested
import cdshealpix.ring
import numpy as np
from astropy.coordinates import Latitude, Longitude
from hats.pixel_math.healpix_shim import radec2pix
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from numpy.typing import NDArray

from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.raw_sample import RawFile
from skyvec.releases.lint.subject import Subject, floats, share
from skyvec.releases.sky import valid_positions

Floats = NDArray[np.float64]

MIN_ROWS = 5
"""Positions from which a share says more than chance."""
MOST = 0.9
_MAX_INDEX_OFFSET = 1.0  # arcsec: float32 positions are off by 0.1


def positions(subject: Subject) -> Iterator[Finding]:
    """Positions off the sky, in another unit, swapped, or not in their own HEALPix pixel."""
    for file in subject.files:
        if not {"ra", "dec"} <= set(file.keys) or not len(file.keys["ra"]):
            continue
        ra, dec = floats(file.keys["ra"]), floats(file.keys["dec"])
        if file.keys["ra"].dtype.itemsize == 4 and file.keys["ra"].dtype.kind == "f":
            yield subject.finding(
                "note", "positions", "positions are float32, exact to about 0.1 arcsec only",
                where=file, remedy="Choose a radius of 0.3 arcsec or more",
            )  # fmt: skip
        misread = _misread(file, ra, dec)
        if misread:
            what, remedy, fraction = misread
            yield subject.finding(
                "error", "positions", what, where=file, remedy=remedy,
                evidence={"fits": fraction, "rows": len(ra)},
            )  # fmt: skip
            continue
        valid = valid_positions(ra, dec)
        if not valid.all():
            row = int(np.flatnonzero(~valid)[0])
            negative = int(((ra < 0) & (ra >= -180)).sum())
            yield subject.finding(
                "error" if not valid.any() or valid.mean() < 0.5 else "warning", "positions",
                f"{int((~valid).sum()):,} of {len(ra):,} are no place on the sky, "
                f"e.g. ra = {ra[row]:g}, dec = {dec[row]:g}",
                where=file, column=f"row {row}",
                remedy="RA runs from 0 to 360: add 360 to negative ones" if negative
                else "These objects are set aside; mend them in the release",
                evidence={"invalid": int((~valid).sum()), "negative_ra": negative, "of": len(ra)},
            )  # fmt: skip
        if file.pixel and valid.any():
            outside = int(
                (_index(file.pixel.order, ra[valid], dec[valid]) != file.pixel.pixel).sum()
            )
            if outside:
                yield subject.finding(
                    "warning" if outside > (1 - MOST) * valid.sum() else "note", "positions",
                    f"{outside:,} of {int(valid.sum()):,} objects lie outside the pixel of their file",
                    where=file, remedy="Their position is believed, not the folder",
                    evidence={"outside": share(outside, int(valid.sum()))},
                )  # fmt: skip


def _misread(file: RawFile, ra: Floats, dec: Floats) -> tuple[str, str, float] | None:
    """How else to read positions or pixel number so that they agree; None where they do."""
    if file.pixel is None or len(ra) < MIN_ROWS:
        return None
    order, pixel = file.pixel.order, file.pixel.pixel

    def fits(lon: Floats, lat: Floats) -> float:
        valid = valid_positions(lon, lat)
        inside = _index(order, lon[valid], lat[valid]) == pixel
        return share(int(inside.sum()), len(lon))

    if fits(ra, dec) >= 0.5:
        return None
    name = f"pixel {pixel} of order {order}"
    radians = f"positions are radians: only so do they lie in {name}"
    readings = {
        "swapped": (dec, ra, f"ra and dec are swapped: only so do they lie in {name}",
                    "Map the columns the other way round"),
        "radians": (np.degrees(ra), np.degrees(dec), radians, "Store degrees"),
        "hours": (15 * ra, dec, f"right ascension is in hours: only so does it lie in {name}",
                  "Store degrees: hours times 15"),
        "negative": (np.mod(ra, 360), dec, "right ascension runs from -180 to 180",
                     "Store 0 to 360: add 360 to negative ones"),
    }  # fmt: skip
    for lon, lat, what, remedy in readings.values():
        if (fraction := fits(lon, lat)) >= MOST:
            return what, remedy, fraction
    valid = valid_positions(ra, dec)
    if valid.sum() < MIN_ROWS:
        return None
    for other in range(2, 11):
        for ordering, index in (("ring", _ring), ("nested", _index)):
            fraction = share(int((index(other, ra[valid], dec[valid]) == pixel).sum()), len(ra))
            if fraction >= MOST:
                what = (
                    f"pixel numbers are {ordering.upper()} of NSIDE {2**other}, expected is NESTED "
                    f"of NSIDE {2**order}"
                )
                return what, "Rename the folders by the nested pixel of their objects", fraction
    return None


def _index(order: int, ra: Floats, dec: Floats) -> NDArray[np.int64]:
    return np.asarray(radec2pix(order, ra, dec), np.int64)


def _ring(order: int, ra: Floats, dec: Floats) -> NDArray[np.int64]:
    found = cdshealpix.ring.lonlat_to_healpix(
        Longitude(ra, unit="deg"), Latitude(dec, unit="deg"), 2**order
    )
    return np.asarray(found, np.int64)


def pixel_columns(subject: Subject) -> Iterator[Finding]:
    """Pixel columns that contradict the positions."""
    for file in subject.files:
        if not {"ra", "dec"} <= set(file.keys):
            continue
        ra, dec = floats(file.keys["ra"]), floats(file.keys["dec"])
        valid = valid_positions(ra, dec)
        ra, dec = ra[valid], dec[valid]
        if len(ra) and (index := file.keys.get("healpix_29")) is not None:
            yield from _spatial_index(subject, file, index[valid], ra, dec)
        column = file.keys.get("healpix")
        if file.pixel is None or column is None or len(ra) < MIN_ROWS:
            continue
        stated = floats(column)[valid]
        wrong = share(int((stated != _index(file.pixel.order, ra, dec)).sum()), len(ra))
        if wrong > 0.01 and (stated >= 0).all():
            ring = share(int((stated == _ring(file.pixel.order, ra, dec)).sum()), len(ra))
            yield subject.finding(
                "warning", "ordering",
                f"column 'healpix' is not the nested pixel of the position in {wrong:.0%} of rows"
                + ("; it is the RING pixel" if ring >= MOST else ""),
                where=file, column="healpix", remedy="Not used: pixels are computed from positions",
                evidence={"differ": wrong, "ring": ring},
            )  # fmt: skip


def _spatial_index(
    subject: Subject, file: RawFile, index: NDArray[Any], ra: Floats, dec: Floats
) -> Iterator[Finding]:
    if index.dtype.kind not in "iu":
        return
    lon, lat = cdshealpix.nested.healpix_to_lonlat(index.astype(np.uint64), SPATIAL_INDEX_ORDER)
    along = (lon.deg - ra + 180) % 360 - 180
    offset = 3600 * np.hypot(along * np.cos(np.radians(dec)), lat.deg - dec)
    wrong = int((offset > _MAX_INDEX_OFFSET).sum())
    if wrong:
        yield subject.finding(
            "error" if wrong > 0.5 * len(ra) else "warning", "ordering",
            f"the spatial index lies up to {offset.max():.3g} arcsec from ra and dec "
            f"in {wrong:,} of {len(ra):,} rows",
            where=file, column="_healpix_29",
            remedy="Positions were changed after the import: import again",
            evidence={"rows": wrong, "median_arcsec": round(float(np.median(offset)), 3)},
        )  # fmt: skip


POSITION_CHECKS = (positions, pixel_columns)
