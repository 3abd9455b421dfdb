"""A part of the sky: which partitions it may touch, and which rows lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import astropy.units as u
import numpy as np
import pandas as pd
from hats.catalog import TableProperties
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.search.region_search import box_filter, cone_filter
from mocpy import MOC
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.selection import Selection
from skyvec_schemas.errors import ConfigurationError

Cone = tuple[float, float, float]
"""Right ascension and declination in degrees, radius in arcseconds."""
Box = tuple[tuple[float, float], tuple[float, float]]
"""Ranges of right ascension and of declination in degrees, as LSDB's box search takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Where cone, box and coverage map overlap; the whole sky if there is none of them."""

    cone: Cone | None = None
    box: Box | None = None
    moc: tuple[int, NDArray[np.uint64]] | None = None
    """Order and ranges of pixels of order 29, since a `MOC` cannot travel to another process."""
    moc_name: str = ""

    @classmethod
    def of(cls, *, cone: Cone | str | None, box: Box | None, moc: MOC | str | Path | None) -> Self:
        """As a user writes them; a text is that of the command line or the name of a file.

        Raises
        ------
        ConfigurationError
            If one is not understood.
        """
        if cone is not None:
            text = cone if isinstance(cone, str) else ",".join(map(str, cone))
            cone = Selection.parse(cone=text).cone
        name = "" if moc is None else "a coverage map" if isinstance(moc, MOC) else str(moc)
        map_ = _moc_of_file(Path(moc)) if isinstance(moc, str | Path) else moc
        held = None if map_ is None else (int(map_.max_order), map_.to_depth29_ranges)
        return cls(cone=cone, box=box, moc=held, moc_name=name)

    @property
    def everywhere(self) -> bool:
        """Whether it is the whole sky."""
        return self.cone is None and self.box is None and self.moc is None

    def describe(self) -> dict[str, str]:
        """As lines for people."""
        lines = {}
        if self.cone:
            lines["cone"] = "{2:g} arcsec around RA {0:g}, Dec {1:g}".format(*self.cone)
        if self.box:
            (west, east), (south, north) = self.box
            lines["box"] = f"RA {west:g} to {east:g}, Dec {south:g} to {north:g}"
        if self.moc:
            lines["moc"] = f"{self.moc_name}, {self._map().sky_fraction:.3g} of the sky"
        return lines

    def pixels(self, release: HatsRelease) -> list[HealpixPixel]:
        """Partitions of a catalog that may hold such rows, in its order.

        Raises
        ------
        ConfigurationError
            If there is none; says what the catalog covers.
        """
        chosen = set(release.pixels)
        if self.cone:
            chosen &= set(Selection(cone=self.cone).choose(release))
        if self.moc:
            chosen &= set(release.catalog.filter_by_moc(self._map()).get_healpix_pixels())
        if self.box:
            chosen &= set(self._boxed(release))
        if release.pixels and not chosen:
            raise ConfigurationError(
                "no partition of the catalog lies in this region "
                f"({'; '.join(self.describe().values())})",
                where=str(release.path),
                remedy="Ask for a part of the sky that the catalog covers",
            )
        return [pixel for pixel in release.pixels if pixel in chosen]

    def _boxed(self, release: HatsRelease) -> list[HealpixPixel]:
        try:
            ra, dec = self.box or ((), ())
            return list(release.catalog.filter_by_box(ra, dec).get_healpix_pixels())
        except (ValueError, TypeError) as problem:
            raise ConfigurationError(
                f"is no region ({problem})",
                where=f"box {self.box}",
                remedy="Give ((west, east), (south, north)) in degrees",
            ) from problem

    def rows(self, positions: pd.DataFrame, properties: TableProperties) -> NDArray[np.bool_]:
        """Which positions lie in it; edges count as LSDB counts them.

        Parameters
        ----------
        positions
            Two columns in degrees, named as the catalog's properties say.
        """
        frame = positions.set_axis(np.arange(len(positions)))
        if self.cone:
            frame = cone_filter(frame, *self.cone, properties)
        if self.box:
            frame = box_filter(frame, *self.box, properties)
        if self.moc and len(frame):
            ra, dec = (frame[c].to_numpy() for c in (properties.ra_column, properties.dec_column))
            frame = frame[self._map().contains_lonlat(ra * u.deg, dec * u.deg)]
        inside = np.zeros(len(positions), np.bool_)
        inside[frame.index.to_numpy()] = True
        return inside

    def _map(self) -> MOC:
        order, ranges = self.moc or (0, np.zeros((0, 2), np.uint64))
        return MOC.from_depth29_ranges(order, ranges)


def _moc_of_file(path: Path) -> MOC:
    Selection.parse(moc=path)  # refuses what is no coverage map
    with path.open("rb") as file:
        start = file.read(6)
    kind = "fits" if start == b"SIMPLE" else "json" if start.startswith(b"{") else "ascii"
    return MOC.load(path, format=kind)
