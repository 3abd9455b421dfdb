"""Whether the positions in a ``healpix=P`` folder belong there, and if not, what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from cdshealpix import to_ring
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import radec2pix
from numpy.typing import NDArray

from skyvec.releases.mmu.layout import ORDER
from skyvec.releases.sky import near_pixel, valid_positions

Degrees = NDArray[np.float64]
Which = NDArray[np.bool_]

MAX_SHARE = 0.01
"""Share of rows in a wrong folder that is taken for single faults; above, the file is wrong."""
_ROUNDING_ARCSEC = 1.0
"""Float32 positions are off by 0.1 arcsec, so a row may lie this far outside."""
_ORDERS = (3, 5, 6, 2, 1, 0, 7, 8)


def in_folder(ra: Degrees, dec: Degrees, folder: int) -> Which:
    """Whether a position (degrees) is one on the sky and in the folder's pixel."""
    valid = valid_positions(ra, dec)
    inside = np.zeros(len(ra), np.bool_)
    inside[valid] = radec2pix(ORDER, ra[valid], dec[valid]) == folder
    if (rest := valid & ~inside).any():  # listing the border is dear, and seldom needed
        pixel = HealpixPixel(ORDER, folder)
        inside[rest] = near_pixel(ra[rest], dec[rest], pixel, margin_arcsec=_ROUNDING_ARCSEC)
    return inside


def what_went_wrong(ra: Degrees, dec: Degrees, inside: Which, folder: int) -> str | None:
    """Why so many rows lie outside their folder; None if it is but single ones.

    Rows whose position is NaN do not count.
    """
    finite = np.isfinite(ra) & np.isfinite(dec)
    ra, dec, inside = ra[finite], dec[finite], inside[finite]
    outside = int((~inside).sum())
    allowed = max(1, int(MAX_SHARE * len(ra)))
    if outside <= allowed and inside.any():
        return None
    share = f"{outside} of {len(ra)} rows lie outside the folder healpix={folder}"
    for explanation, fits in _explanations(ra, dec, folder):
        if len(ra) and int((~fits).sum()) <= int(MAX_SHARE * len(ra)):
            return f"{share}: {explanation}"
    elsewhere = valid_positions(ra, dec) & ~inside
    if int(elsewhere.sum()) <= allowed:
        return None
    pixels = Counter(radec2pix(ORDER, ra[elsewhere], dec[elsewhere]).tolist())
    often, times = pixels.most_common(1)[0]
    return f"{share}, {times} of them in that of healpix={often}"


def _explanations(ra: Degrees, dec: Degrees, folder: int) -> Iterator[tuple[str, Which]]:
    """What may be wrong, and which rows it would put into the folder."""
    yield "ra and dec are swapped", in_folder(dec, ra, folder)
    degrees = np.degrees(ra) % 360, np.degrees(dec)
    yield "the positions are in radians", in_folder(*degrees, folder)
    valid = valid_positions(ra, dec)
    for order in (ORDER, *_ORDERS):
        pixels = np.full(len(ra), -1, np.int64)
        pixels[valid] = radec2pix(order, ra[valid], dec[valid])
        rings = pixels.copy()
        rings[valid] = to_ring(pixels[valid], order).astype(np.int64)
        yield f"it is numbered in RING ordering of NSIDE {2**order}, not nested", rings == folder
        yield f"it is numbered at NSIDE {2**order}, not {2**ORDER}", pixels == folder
