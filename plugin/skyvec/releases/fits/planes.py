"""The image planes of one tile: stamps of flux in the survey's unit, and which pixels are good."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from skyvec.releases.fits.files import image_hdu, naming, open_fits
from skyvec.releases.fits.names import ImageFiles, Tile, hdu_name
from skyvec.releases.fits.tiles import read_wcs, to_pixels, wcs_of
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import ImageColumn

MAX_ZERO_POINT_DIFFERENCE = 1e-3
"""Magnitudes by which two statements of one zero point may differ."""
MAX_GRID_OFFSET = 0.05
"""Pixels by which the grids of two bands may differ."""

_UNIT_ZERO_POINT = {
    "nanomaggy": 22.5, "nanomaggies": 22.5, "nmgy": 22.5, "nanomaggie": 22.5,
    "maggy": 0.0, "maggies": 0.0, "njy": 31.4, "ujy": 23.9, "jy": 8.9,
}  # fmt: skip
"""AB magnitude of one unit of flux, by BUNIT (lower case); AB is 8.90 at 1 Jy."""
_COUNTS = {"adu", "count", "counts", "ct", "dn", "electron", "electrons"}
_ZERO_POINT_KEYWORDS = ("MAGZERO", "MAGZPT", "MAGZP")


@dataclass(frozen=True, slots=True)
class Plane:
    """One image, read in sections."""

    path: Path
    hdu: fits.hdu.base.ExtensionHDU

    def section(self, rows: slice, columns: slice) -> NDArray[Any]:
        """Pixels of a box that lies within the image."""
        with naming(self.path):
            if self.path.suffix == ".gz":
                # A gzip stream cannot be entered in its middle, so the plane is unpacked once.
                return np.asarray(self.hdu.data[rows, columns])
            if isinstance(self.hdu, fits.CompImageHDU):
                return np.asarray(self.hdu.section[rows, columns])
            # Whole rows are one read, and their parts one for each row: ten times as long.
            return np.asarray(self.hdu.section[rows])[:, columns]


@dataclass(frozen=True, kw_only=True, slots=True)
class TilePlanes:
    """The open files of one tile, checked against each other and the survey."""

    image: tuple[Plane, ...]
    """Flux, one for each band."""
    scale: tuple[float, ...]
    """What brings a band to the survey's unit."""
    invvar: tuple[Plane, ...]
    """Empty where not declared, like those below."""
    variance: tuple[Plane, ...]
    mask: tuple[Plane, ...]
    bad: tuple[int, ...]
    """Bits of each mask that mark bad pixels."""
    shape: tuple[int, int]
    """Rows and columns."""

    @classmethod
    def open(
        cls, tile: Tile, image: ImageColumn, files: ImageFiles, *, stack: ExitStack
    ) -> TilePlanes:
        """Open every file of a tile, each once; the stack closes them.

        Raises
        ------
        ContractError
            If one is unreadable, on another grid than the first band, or in another unit.
        """
        opened: dict[Path, fits.HDUList] = {}
        planes: dict[str, tuple[Plane, ...]] = {}
        for kind, paths in tile.planes.items():
            hdu = hdu_name(files.patterns[kind])
            for path in paths:
                if path not in opened:
                    opened[path] = stack.enter_context(open_fits(path))
            planes[kind] = tuple(Plane(p, image_hdu(opened[p], hdu, p)) for p in paths)
        shape = planes["image"][0].hdu.shape
        for group in planes.values():
            for plane in group:
                _check_shape(plane, shape, tile.reference)
        _check_grids(planes["image"], read_wcs(tile.reference, hdu_name(files.image)))
        scales = [_unit_scale(plane, opened[plane.path], image) for plane in planes["image"]]
        masks = planes.get("mask", ())
        return cls(
            image=planes["image"],
            scale=tuple(scales),
            invvar=planes.get("invvar", ()),
            variance=planes.get("variance", ()),
            mask=masks,
            bad=tuple(_bad_bits(plane, files) for plane in masks),
            shape=(shape[0], shape[1]),
        )

    def cut(
        self,
        top: NDArray[np.int64],
        left: NDArray[np.int64],
        *,
        flux: NDArray[np.float32],
        good: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Fill k stamps from one box around them all.

        Parameters
        ----------
        top, left
            First row and column of each stamp; may lie outside the image.
        flux, good
            (k, band, size, size), overwritten; flux is 0 beyond the image.

        Returns
        -------
        NDArray
            Which of the k stamps reach beyond the image.
        """
        size = flux.shape[-1]
        box = _Box.around(top, left, size=size, shape=self.shape)
        unmasked: NDArray[np.bool_] | None = None
        for band, plane in enumerate(self.image):
            flux[:, band] = box.stamps(plane)
            if self.scale[band] != 1:
                flux[:, band] *= np.float32(self.scale[band])
            seen = np.isfinite(flux[:, band])
            if self.invvar:
                with np.errstate(invalid="ignore"):
                    seen &= box.stamps(self.invvar[band]) > 0
            if self.variance:
                variance = box.stamps(self.variance[band])
                with np.errstate(invalid="ignore"):
                    seen &= np.isfinite(variance) & (variance > 0)
            if self.mask:
                if unmasked is None or self.mask[band].path != self.mask[0].path:
                    bits = box.stamps(self.mask[band]).astype(np.int64)
                    unmasked = (bits & self.bad[band]) == 0
                seen &= unmasked
            good[:, band] = seen
        height, width = self.shape
        beyond = (top < 0) | (left < 0) | (top + size > height) | (left + size > width)
        if beyond.any():
            good[beyond] &= _inside(top[beyond], left[beyond], size=size, shape=self.shape)[:, None]
        return np.asarray(beyond)


@dataclass(frozen=True, slots=True)
class _Box:
    """A box around stamps, whose pixels within the image are read at once."""

    rows: slice
    """What of the image is read."""
    columns: slice
    padding: tuple[tuple[int, int], tuple[int, int]]
    """Rows and columns of the box before and after the image."""
    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    """First row and column of each stamp in the box."""
    size: int

    @classmethod
    def around(
        cls,
        top: NDArray[np.int64],
        left: NDArray[np.int64],
        *,
        size: int,
        shape: tuple[int, int],
    ) -> _Box:
        """The least box that holds the stamps."""
        spans, padding = [], []
        for starts, length in ((top, shape[0]), (left, shape[1])):
            first, last = int(starts.min()), int(starts.max()) + size
            spans.append(slice(max(first, 0), min(last, length)))
            padding.append((max(-first, 0), max(last - length, 0)))
        return cls(
            rows=spans[0],
            columns=spans[1],
            padding=(padding[0], padding[1]),
            places=(top - int(top.min()), left - int(left.min())),
            size=size,
        )

    def stamps(self, plane: Plane) -> NDArray[Any]:
        """Stamps (k, size, size) of one plane, 0 beyond the image."""
        pixels = plane.section(self.rows, self.columns)
        if any(map(any, self.padding)):
            pixels = np.pad(pixels, self.padding)
        return sliding_window_view(pixels, (self.size, self.size))[self.places]


def _inside(
    top: NDArray[np.int64], left: NDArray[np.int64], *, size: int, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which pixels of stamps (k, size, size) lie on the image."""
    rows, columns = (
        ((starts[:, None] + np.arange(size)) >= 0) & ((starts[:, None] + np.arange(size)) < length)
        for starts, length in ((top, shape[0]), (left, shape[1]))
    )
    return np.asarray(rows[:, :, None] & columns[:, None, :])


def _check_shape(plane: Plane, shape: tuple[int, ...], reference: Path) -> None:
    if plane.hdu.shape != shape:
        raise ContractError(
            f"{plane.hdu.shape[1]} x {plane.hdu.shape[0]} pixels where {reference.name} has "
            f"{shape[1]} x {shape[0]}",
            where=str(plane.path),
            remedy="All planes of a tile must share one grid: fetch this file again",
        )


def _check_grids(bands: tuple[Plane, ...], located: WCS) -> None:
    """Refuse bands whose pixels see other places than those by which positions were located."""
    for plane in bands:
        offset = _offset(located, wcs_of(plane.hdu.header, plane.path))
        if not offset <= MAX_GRID_OFFSET:
            raise ContractError(
                f"its grid is {offset:.2f} pixels off that of {bands[0].path.name}",
                where=str(plane.path),
                remedy="Resample the bands to one grid first; skyvec never resamples",
            )


def _offset(first: WCS, other: WCS) -> float:
    """Largest offset in pixels between two grids of one shape, at the corners."""
    width, height = first.pixel_shape
    column = np.array([0.0, width - 1.0, 0.0, width - 1.0])
    row = np.array([0.0, 0.0, height - 1.0, height - 1.0])
    ra, dec = first.all_pix2world(column, row, 0, ra_dec_order=True)
    x, y = to_pixels(other, ra, dec)
    return float(np.hypot(x - column, y - row).max())


def _bad_bits(plane: Plane, files: ImageFiles) -> int:
    bits = [int(plane.hdu.header.get(f"MP_{name}", bit)) for name, bit in files.bad_bits.items()]
    return sum(1 << bit for bit in set(bits))


def _unit_scale(plane: Plane, hdus: fits.HDUList, image: ImageColumn) -> float:
    """Factor from the file's unit to the survey's; the declared zero point where a file has none.

    Raises
    ------
    ContractError
        If BUNIT is unknown, or contradicts the header's zero point or the survey's unit.
    """
    headers = (plane.hdu.header, hdus[0].header)
    unit = next((str(h["BUNIT"]).strip() for h in headers if h.get("BUNIT")), "")
    by_unit = _UNIT_ZERO_POINT.get(unit.lower())
    by_keyword = _zero_point(headers)
    problem = None
    if unit and by_unit is None and unit.lower() not in _COUNTS:
        problem = f"BUNIT is {unit!r}, no unit of flux that is known here"
    elif by_unit is not None and by_keyword is not None:
        if abs(by_unit - by_keyword) > MAX_ZERO_POINT_DIFFERENCE:
            problem = f"BUNIT {unit!r} means zero point {by_unit}, its keyword {by_keyword:.3f}"
    elif unit and by_unit is None and by_keyword is None and "count" not in image.unit:
        problem = f"BUNIT is {unit!r} without a zero point where the survey has {image.unit}"
    if problem:
        raise ContractError(
            problem,
            where=str(plane.path),
            remedy="Mend the header (BUNIT, MAGZERO or FLUXMAG0), or choose the right survey",
        )
    zero_point = next((z for z in (by_unit, by_keyword) if z is not None), image.zero_point)
    if abs(zero_point - image.zero_point) <= MAX_ZERO_POINT_DIFFERENCE:
        return 1.0
    return float(10 ** (0.4 * (image.zero_point - zero_point)))


def _zero_point(headers: tuple[fits.Header, ...]) -> float | None:
    """AB magnitude of one unit by the headers' keywords."""
    for header in headers:
        for keyword in _ZERO_POINT_KEYWORDS:
            if keyword in header:
                return float(header[keyword])
        if "FLUXMAG0" in header:
            return float(2.5 * np.log10(header["FLUXMAG0"]))
    return None
