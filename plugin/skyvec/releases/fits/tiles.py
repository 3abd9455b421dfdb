"""Which tile of an imaging survey holds a position, and at which pixel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.coordinates import FK5, ICRS
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyvec.releases.fits.files import image_hdu, naming, open_fits
from skyvec.releases.fits.names import Tile
from skyvec.releases.sky import valid_positions
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import ImageColumn

MAX_SCALE_DIFFERENCE = 0.05
"""Relative difference of pixel scales beyond which a codec sees another image."""

_WCS_KEYWORD = re.compile(
    r"^(WCSAXES|EQUINOX|RADESYS|LONPOLE|LATPOLE|(CTYPE|CUNIT|CRPIX|CRVAL|CDELT|CROTA)[12]"
    r"|(CD|PC)[12]_[12]|PV[12]_\d+|[AB]P?_(ORDER|DMAX|\d+_\d+))$"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where n positions lie on the tiles."""

    tile: NDArray[np.int64]
    """Index of the tile, -1 off all of them."""
    x: NDArray[np.float64]
    """Column on the tile, 0 at the centre of its first pixel; NaN off all tiles."""
    y: NDArray[np.float64]
    """Row on the tile."""


@dataclass(frozen=True, kw_only=True)
class TileIndex:
    """Footprints of the tiles, from the header of one band each."""

    tiles: tuple[Tile, ...]
    hdu: str | None
    """Name of the image's HDU."""
    centres: NDArray[np.float64]
    """Unit vectors (n, 3)."""
    radii: NDArray[np.float64]
    """Chords (n,) from the centre to the farthest point of the tile."""

    @classmethod
    def build(cls, tiles: tuple[Tile, ...], image: ImageColumn, *, hdu: str | None) -> TileIndex:
        """Read one header for each tile.

        Raises
        ------
        ContractError
            If a header has no sky coordinates or another pixel scale than the survey declares.
        """
        centres, radii = np.empty((len(tiles), 3)), np.empty(len(tiles))
        for number, tile in enumerate(tiles):
            wcs = read_wcs(tile.reference, hdu)
            _check_scale(wcs, image, tile.reference)
            centres[number], radii[number] = _bounds(wcs)
        return cls(tiles=tiles, hdu=hdu, centres=centres, radii=radii)

    def near(self, centre: NDArray[np.float64], chord: float) -> NDArray[np.int64]:
        """Tiles that may overlap a circle around a unit vector."""
        distance = np.linalg.norm(self.centres - centre, axis=1)
        return np.flatnonzero(distance <= self.radii + chord)

    def locate(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> Places:
        """For each position (degrees) the tile that holds it farthest from the tile's edge.

        Positions that are no place on the sky are off all tiles. Of two tiles with equal right
        the first is taken.
        """
        tile = np.full(len(ra), -1)
        x, y, depth = np.full(len(ra), np.nan), np.full(len(ra), np.nan), np.zeros(len(ra))
        usable = np.flatnonzero(valid_positions(ra, dec))
        if len(usable) and len(self.tiles):
            vectors = unit_vectors(ra[usable], dec[usable])
            middle = vectors.mean(axis=0)
            candidates = self.near(middle, float(np.linalg.norm(vectors - middle, axis=1).max()))
            members = cKDTree(vectors).query_ball_point(
                self.centres[candidates], self.radii[candidates]
            )
            for number, inside in zip(candidates.tolist(), members, strict=True):
                if not inside:
                    continue
                here = usable[np.sort(inside)]
                wcs = read_wcs(self.tiles[number].reference, self.hdu)
                column, row = to_pixels(wcs, ra[here], dec[here])
                width, height = wcs.pixel_shape
                margin = np.minimum.reduce(
                    [column + 0.5, width - 0.5 - column, row + 0.5, height - 0.5 - row]
                )
                better = margin > depth[here] + 1e-6  # NaN, beyond the projection, is not better
                chosen = here[better]
                tile[chosen], depth[chosen] = number, margin[better]
                x[chosen], y[chosen] = column[better], row[better]
        return Places(tile=tile, x=x, y=y)


def unit_vectors(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (n,) in degrees as unit vectors (n, 3)."""
    longitude, latitude = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude),
         np.sin(latitude)], axis=-1,
    )  # fmt: skip


def to_pixels(
    wcs: WCS, ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Column and row (0 at the centre of the first pixel) of positions in degrees."""
    column, row = wcs.all_world2pix(ra, dec, 0, ra_dec_order=True, quiet=True)
    return column, row


def read_wcs(path: Path, hdu: str | None) -> WCS:
    """Sky coordinates of an image file as `wcs_of` gives them; read again when it has changed."""
    with naming(path):
        return _read_wcs(path, hdu, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _read_wcs(path: Path, hdu: str | None, _modified: int) -> WCS:
    with open_fits(path, headers_only=True) as hdus:
        return wcs_of(image_hdu(hdus, hdu, path).header, path)


def wcs_of(header: fits.Header, path: Path) -> WCS:
    """Sky coordinates from a header, of a compressed image too; ``pixel_shape`` is set.

    Raises
    ------
    ContractError
        If they are not right ascension and declination (ICRS, or FK5 of J2000).
    """
    with naming(path):
        # A fraction of the header is parsed in a thirtieth of the time.
        wcs = WCS(fits.Header([c for c in header.cards if _WCS_KEYWORD.match(c.keyword)]))
        axes = ("ZNAXIS1", "ZNAXIS2") if header.get("ZIMAGE") else ("NAXIS1", "NAXIS2")
        wcs.pixel_shape = (header[axes[0]], header[axes[1]])
        frame = wcs_to_celestial_frame(wcs) if wcs.has_celestial and wcs.naxis == 2 else None
        if not (
            isinstance(frame, ICRS) or (isinstance(frame, FK5) and frame.equinox.jyear == 2000)
        ):
            raise ContractError(
                "its header has no right ascension and declination (J2000)",
                where=str(path),
                remedy="Only images with a celestial WCS in ICRS or FK5 can be cut",
            )
        return wcs


def _check_scale(wcs: WCS, image: ImageColumn, path: Path) -> None:
    with naming(path):
        scales = proj_plane_pixel_scales(wcs) * 3600
    if not (np.abs(scales / image.pixel_scale - 1) <= MAX_SCALE_DIFFERENCE).all():
        raise ContractError(
            f"pixels of {scales[0]:.3f} x {scales[1]:.3f} arcsec where the survey has "
            f"{image.pixel_scale:.3f}",
            where=str(path),
            remedy="Choose the right survey, or resample the images first",
        )


def _bounds(wcs: WCS) -> tuple[NDArray[np.float64], float]:
    """A circle that holds the tile: its centre as a unit vector and the chord to its border."""
    width, height = wcs.pixel_shape
    across, up = (
        np.array([-0.5, (width - 1) / 2, width - 0.5]),
        np.array([-0.5, (height - 1) / 2, height - 0.5]),
    )
    column, row = (axis.ravel() for axis in np.meshgrid(across, up))
    vectors = unit_vectors(*wcs.all_pix2world(column, row, 0, ra_dec_order=True))
    chord = float(np.linalg.norm(vectors - vectors[4], axis=1).max())
    # A tile that reaches beyond its projection may hold anything.
    return vectors[4], chord * 1.01 if np.isfinite(chord) else 2.0
