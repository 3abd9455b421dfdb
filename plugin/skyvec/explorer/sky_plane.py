"""The sky on a plane: all of it, or a part; equal areas, north up, east to the left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.coordinates import SkyCoord, angular_separation
from astropy.wcs import WCS
from numpy.typing import NDArray

LOCAL = 30.0
"""Degrees from the middle; objects that reach farther are drawn on the whole sky."""
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)
"""Degrees between lines of the grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of right ascension or declination."""

    xy: NDArray[np.float64]
    """(points, 2)."""
    text: str
    """Its degrees."""


@dataclass(frozen=True, kw_only=True)
class SkyPlane:
    """A projection that suits some objects; units of its plane are degrees at its middle."""

    ra: float
    """Of the middle, degrees."""
    dec: float
    radius: float
    """Degrees from the middle to the farthest object."""

    @classmethod
    def of(cls, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> SkyPlane:
        """The plane for objects at these degrees; those that are not finite count for nothing."""
        known = np.isfinite(ra) & np.isfinite(dec)
        if not known.any():
            return cls(ra=0.0, dec=0.0, radius=180.0)
        # The mean of unit vectors is the middle, whichever side of 0 h they lie.
        mean = SkyCoord(ra[known], dec[known], unit="deg").cartesian.mean()
        middle = SkyCoord(mean, frame="icrs", representation_type="cartesian").spherical
        lon, lat = float(middle.lon.deg), float(middle.lat.deg)
        there = np.deg2rad(np.stack([ra[known], dec[known]]))
        radius = float(np.rad2deg(angular_separation(*np.deg2rad([lon, lat]), *there).max()))
        if radius > LOCAL:
            return cls(ra=180.0, dec=0.0, radius=180.0)
        return cls(ra=lon, dec=lat, radius=max(radius, 0.01))

    @property
    def whole(self) -> bool:
        """Whether it is that of the whole sky (Mollweide), not of a part (Lambert)."""
        return self.radius > LOCAL

    def project(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (n, 2) on the plane."""
        # Past the edge of the whole sky by rounding, a place would be lost.
        x, y = self._wcs.wcs_world2pix(ra, dec, 1)
        return np.stack([x, y], axis=1)

    def grid(self) -> list[Line]:
        """Lines of equal right ascension and declination around the objects."""
        if self.whole:
            ras, decs = np.arange(0.0, 361, 60), np.arange(-60.0, 61, 30)
            ras[0], ras[-1] = 1e-6, 360 - 1e-6
            along_ra, along_dec = np.linspace(1e-6, 360 - 1e-6, 181), np.linspace(-90, 90, 91)
        else:
            step = next((s for s in _STEPS if s >= self.radius / 3.5), _STEPS[-1])
            decs = _round(self.dec - 2 * self.radius, self.dec + 2 * self.radius, step)
            decs = decs[np.abs(decs) < 90]
            squeeze = max(np.cos(np.deg2rad(self.dec)), 0.02)
            wide = next((s for s in _STEPS if s >= step / squeeze), _STEPS[-1])
            reach = min(2 * self.radius / squeeze, 180.0)
            ras = _round(self.ra - reach, self.ra + reach, wide)
            along_ra = np.linspace(self.ra - reach, self.ra + reach, 91)
            along_dec = np.clip(
                np.linspace(self.dec - 2 * self.radius, self.dec + 2 * self.radius, 91), -90, 90
            )
        lines = [
            Line(
                xy=self.project(np.full(len(along_dec), a), along_dec),
                text=f"{round(a, 2) % 360:g}°",
            )
            for a in ras
        ]
        lines += [
            Line(
                xy=self.project(along_ra, np.full(len(along_ra), d)), text=f"{d:+g}°" if d else "0°"
            )
            for d in decs
        ]
        return lines

    @cached_property
    def _wcs(self) -> WCS:
        wcs = WCS(naxis=2)
        code = "MOL" if self.whole else "ZEA"
        wcs.wcs.ctype = [f"RA---{code}", f"DEC--{code}"]
        wcs.wcs.crval = [self.ra, self.dec]
        wcs.wcs.crpix = [0, 0]
        wcs.wcs.cdelt = [-1, 1]
        return wcs


def _round(low: float, high: float, step: float) -> NDArray[np.float64]:
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
