"""Debug small, run big: which HATS pixels of a catalog a run looks at.

A quantum is a whole HATS pixel, so a selection never cuts rows: what a small run did, a later and
larger one finds done.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.region_to_moc import pixel_list_to_moc
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from mocpy import MOC

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import first_line
from skyvec_schemas.errors import ConfigurationError, ContractError

HALF_TURN = 180 * 3600
"""The largest radius of a cone, arcseconds."""
SLACK = 0.001
"""Arcseconds added to a cone, so that rounding never loses a row on its edge."""
_SKY_DEGREES2 = 129600 / math.pi
_NAMED = 6
"""Pixels that an error lists."""
_PIXELS = re.compile(r"(?:Norder=)?(\d{1,2})[/ ](?:Npix=)?(\d{1,19})(?:-(\d{1,19}))?", re.ASCII)

_CONE_REMEDY = (
    "Give right ascension and declination in degrees and a radius in arcseconds, "
    "e.g. --cone 150.1,2.2,600"
)
_PIXELS_REMEDY = "Give Norder/Npix, separated by commas, e.g. --pixels 5/1234,5/100-120"
_MOC_REMEDY = "Give a file with a spatial MOC as FITS, ASCII or JSON"


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRange:
    """HEALPix pixels of one order, in the nested scheme; raises ValueError for unknown ones."""

    order: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.order <= SPATIAL_INDEX_ORDER:
            raise ValueError(f"HEALPix orders go from 0 to {SPATIAL_INDEX_ORDER}")
        if not 0 <= self.first <= self.last < 12 * 4**self.order:
            raise ValueError(f"order {self.order} has the pixels 0 to {12 * 4**self.order - 1}")

    def __str__(self) -> str:
        last = "" if self.first == self.last else f"-{self.last}"
        return f"{self.order}/{self.first}{last}"

    def moc(self) -> MOC:
        """Their coverage."""
        shift = 2 * (SPATIAL_INDEX_ORDER - self.order)
        ends = [[self.first << shift, (self.last + 1) << shift]]
        return MOC.from_depth29_ranges(self.order, np.array(ends, np.uint64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Whole HATS pixels that meet every condition given; all of them if there is none."""

    cone: tuple[float, float, float] | None = None
    """Right ascension and declination in degrees, radius in arcseconds."""
    moc: Path | None = None
    """File of a multi-order coverage map."""
    pixels: tuple[PixelRange, ...] = ()
    """A pixel coarser than the catalog's means all inside it; a finer one that which holds it."""
    limit: int | None = None
    """Rows: pixels in the catalog's order until there are at least as many."""

    @classmethod
    def parse(
        cls,
        *,
        cone: str | None = None,
        moc: str | Path | None = None,
        pixels: str | None = None,
        limit: str | int | None = None,
    ) -> Self:
        """Selection of the options of a command line, each as its user wrote it.

        Raises
        ------
        ConfigurationError
            If one is not understood; names option, text and remedy.
        """
        return cls(
            cone=None if cone is None else _cone(cone),
            moc=None if moc is None else _moc_file(moc),
            pixels=() if pixels is None else _pixel_ranges(pixels),
            limit=None if limit is None else _limit(limit),
        )

    @property
    def everything(self) -> bool:
        """Whether nothing was chosen, so that every pixel is."""
        return self == Selection()

    def describe(self) -> str:
        """What was chosen, in one line; empty if nothing was."""
        said = []
        if self.cone:
            ra, dec, radius = self.cone
            said.append(f"cone of {radius:g} arcsec around RA {ra:g}, Dec {dec:g}")
        if self.moc:
            said.append(f"MOC {self.moc}")
        if self.pixels:
            said.append(f"pixels {_few(map(str, self.pixels), len(self.pixels))}")
        if self.limit:
            said.append(f"at least {self.limit:,} rows")
        return "; ".join(said)

    def choose(self, release: HatsRelease) -> list[HealpixPixel]:
        """Pixels of a catalog that are meant, in its order.

        Raises
        ------
        ConfigurationError
            If there is none; says what the catalog covers.
        """
        chosen = set(release.pixels)
        if self.cone:
            ra, dec, radius = self.cone
            near = release.catalog.filter_by_cone(ra, dec, min(radius + SLACK, HALF_TURN))
            chosen &= set(near.get_healpix_pixels())
        if self.moc:
            chosen &= _overlapping(release, _read_moc(self.moc))
        if self.pixels:
            chosen &= set().union(*(_known(pixels, release) for pixels in self.pixels))
        if release.pixels and not chosen:
            raise ConfigurationError(
                f"no HATS pixel of the catalog lies in the selection ({self.describe()})",
                where=str(release.path),
                remedy=f"Select from what it covers: {_coverage(release)}",
            )
        return self._limited(release, [pixel for pixel in release.pixels if pixel in chosen])

    def _limited(self, release: HatsRelease, pixels: list[HealpixPixel]) -> list[HealpixPixel]:
        if self.limit is None:
            return pixels
        rows = 0
        for count, pixel in enumerate(pixels, start=1):
            rows += _rows(release, pixel)
            if rows >= self.limit:
                return pixels[:count]
        return pixels


def _cone(text: str) -> tuple[float, float, float]:
    try:
        ra, dec, radius = (float(part) for part in text.split(","))
    except ValueError as problem:
        raise _refused("--cone", text, "not three numbers", _CONE_REMEDY) from problem
    if not 0 <= ra <= 360:
        raise _refused("--cone", text, "right ascension is not within 0 to 360", _CONE_REMEDY)
    if not -90 <= dec <= 90:
        raise _refused("--cone", text, "declination is not within -90 to 90", _CONE_REMEDY)
    if not 0 < radius <= HALF_TURN:
        raise _refused(
            "--cone", text, f"the radius is not above 0 and at most {HALF_TURN}", _CONE_REMEDY
        )
    return ra, dec, radius


def _moc_file(text: str | Path) -> Path:
    if "://" in str(text):
        raise _refused("--moc", text, "a MOC is read from a local file only", _MOC_REMEDY)
    _read_moc(Path(text))
    return Path(text)


def _read_moc(path: Path) -> MOC:
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start == b"SIMPLE":
            moc = MOC.load(path, format="fits")
        elif start.startswith(b"{"):
            moc = _moc_of_json(path)
        else:
            moc = MOC.load(path, format="ascii")
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        what = f"cannot be read ({first_line(problem)})"
        raise _refused("--moc", path, what, _MOC_REMEDY) from problem
    # mocpy takes some texts, e.g. 3/5-2 or 30/1, for coverages that no sky has.
    ends = moc.to_depth29_ranges.ravel()
    if not len(ends) or (ends[1:] <= ends[:-1]).any() or ends[-1] > 12 * 4**SPATIAL_INDEX_ORDER:
        raise _refused("--moc", path, "covers nothing of the sky", _MOC_REMEDY)
    return moc


def _moc_of_json(path: Path) -> MOC:
    """Checked here, since mocpy folds a pixel beyond its order onto another one in silence."""
    cells = json.loads(path.read_text())
    for order, pixels in cells.items():
        for pixel in pixels:
            PixelRange(order=int(order), first=pixel, last=pixel)
    return MOC.from_json(cells)


def _pixel_ranges(text: str) -> tuple[PixelRange, ...]:
    found = []
    for part in text.split(","):
        match = _PIXELS.fullmatch(part.strip())
        if match is None:
            raise _refused("--pixels", text, f"{part.strip()!r} is no pixel", _PIXELS_REMEDY)
        order, first, last = (int(number) for number in match.groups(default=match[2]))
        try:
            found.append(PixelRange(order=order, first=first, last=last))
        except ValueError as problem:
            what = f"{part.strip()!r} does not exist: {problem}"
            raise _refused("--pixels", text, what, _PIXELS_REMEDY) from problem
    return tuple(found)


def _limit(text: str | int) -> int:
    try:
        rows = int(text)
    except ValueError:
        rows = 0
    if rows < 1:
        remedy = "Give a number of rows, e.g. --limit 1000"
        raise _refused("--limit", text, "not a whole number above 0", remedy)
    return rows


def _refused(option: str, text: object, what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(what, where=f"{option} {text}", remedy=remedy)


def _overlapping(release: HatsRelease, moc: MOC) -> set[HealpixPixel]:
    return set(release.catalog.filter_by_moc(moc).get_healpix_pixels())


def _known(pixels: PixelRange, release: HatsRelease) -> set[HealpixPixel]:
    """Pixels of the catalog in a range; a range without any is a slip, whatever else is chosen."""
    found = _overlapping(release, pixels.moc())
    if not found:
        raise _refused(
            "--pixels",
            pixels,
            f"{release.path} has no such HATS pixel",
            f"Select from what it covers: {_coverage(release)}",
        )
    return found


def _rows(release: HatsRelease, pixel: HealpixPixel) -> int:
    """Rows by the footers of one pixel; none if they cannot be read, as its quantum will report."""
    try:
        return release.rows([pixel])
    except ContractError:
        return 0


def _coverage(release: HatsRelease) -> str:
    moc = pixel_list_to_moc(release.pixels)
    center = moc.barycenter()
    reach = moc.largest_distance_from_coo_to_vertices(center).to_value("deg")
    names = (f"{pixel.order}/{pixel.pixel}" for pixel in release.pixels)
    return (
        f"{moc.sky_fraction * _SKY_DEGREES2:,.0f} square degrees within {math.ceil(reach)} degrees "
        f"of RA {center.ra.deg:.1f}, Dec {center.dec.deg:.1f}; "
        f"pixels {_few(names, len(release.pixels))}"
    )


def _few(names: Iterable[str], count: int) -> str:
    others = f" and {count - _NAMED:,} more" if count > _NAMED else ""
    return ", ".join(islice(names, _NAMED)) + others
