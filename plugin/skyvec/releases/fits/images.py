"""Cutouts around positions from a folder of survey images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cdshealpix.nested as healpix
import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.fits.files import fingerprint
from skyvec.releases.fits.names import IMAGE_FILES, ImageFiles, find_tiles, hdu_name
from skyvec.releases.fits.planes import TilePlanes
from skyvec.releases.fits.tiles import TileIndex, unit_vectors
from skyvec.releases.observing import no_images, observe_images
from skyvec.releases.sky import valid_positions
from skyvec.releases.source import Reading
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import ImageColumn, Survey

_TALLEST = 1024
"""Rows of a tile that are in memory at a time, beside those of one stamp."""


@dataclass(frozen=True, kw_only=True)
class FitsImages:
    """Images of a survey, one file for each band of a tile; a `PositionSource`.

    A stamp is centred on the pixel nearest to its position, which becomes column and row
    ``window // 2``; nothing is resampled. It comes from the one tile that holds the position
    farthest from its edge; what lies beyond that tile is masked.
    """

    survey: Survey
    files: ImageFiles
    window: int
    """Side of a stamp in pixels."""
    index: TileIndex

    @classmethod
    def open(
        cls, path: str | Path, survey: Survey, *, window: int = 96, files: ImageFiles | None = None
    ) -> FitsImages:
        """Find the tiles under a folder and read where they lie (one header each).

        Parameters
        ----------
        files
            How the images are named; `IMAGE_FILES` knows ``legacysurvey`` and ``hsc``.

        Raises
        ------
        ConfigurationError
            If there is no such folder, or the survey has no images or no known file names.
        ContractError
            If a tile lacks a file, or one is unreadable or of another pixel scale.
        """
        image = _image_of(survey)
        files = files or IMAGE_FILES.get(survey.name)
        if files is None:
            raise ConfigurationError(
                f"it is not known how {survey.name} names its images",
                where=str(path),
                remedy=f"Declare it: ImageFiles(image=...); known are {', '.join(IMAGE_FILES)}",
            )
        tiles = find_tiles(path, image, files)
        index = TileIndex.build(tiles, image, hdu=hdu_name(files.image))
        return cls(survey=survey, files=files, window=window, index=index)

    def read_at(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64], *, rows: int
    ) -> Iterator[Reading]:
        """Stamps around positions (n,) in degrees, tile by tile from the first row to the last.

        Flags: ``image_missing`` off all tiles and where no pixel was observed (with
        ``position_invalid`` if it is no place on the sky), ``image_padded`` where a stamp
        reaches beyond its tile, and those of `observe_images`.

        Raises
        ------
        ContractError
            If a file cannot be read, its bands lie on different grids, or its unit is another.
        """
        places = self.index.locate(ra, dec)
        valid = valid_positions(ra, dec)
        absent = np.flatnonzero(places.tile < 0)
        for start in range(0, len(absent), rows):
            yield self._missing(absent[start : start + rows], valid)
        left = np.floor(np.nan_to_num(places.x) + 0.5).astype(np.int64) - self.window // 2
        top = np.floor(np.nan_to_num(places.y) + 0.5).astype(np.int64) - self.window // 2
        batch = _Batch(_image_of(self.survey), rows=rows, window=self.window)
        for number in np.unique(places.tile[places.tile >= 0]).tolist():
            members = np.flatnonzero(places.tile == number)
            with ExitStack() as stack:
                tile = self.index.tiles[number]
                planes = TilePlanes.open(tile, batch.image, self.files, stack=stack)
                for box in boxes(top[members], left[members], window=self.window, most=rows):
                    chosen = members[box]
                    if batch.filled + len(chosen) > rows:
                        yield batch.reading()
                    into = batch.take(chosen)
                    batch.padded[into] = planes.cut(
                        top[chosen], left[chosen], flux=batch.flux[into], good=batch.good[into]
                    )
        if batch.filled:
            yield batch.reading()

    def _missing(self, index: NDArray[np.int64], valid: NDArray[np.bool_]) -> Reading:
        image = _image_of(self.survey)
        flags = np.full(len(index), Flag.IMAGE_MISSING, np.int32)
        flags[~valid[index]] |= Flag.POSITION_INVALID
        absent = no_images(len(index), image, size=self.window)
        return Reading(index=index, observations={image.token_key: absent}, flags=flags)

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """Names, sizes and digests of the files of every tile that may overlap the pixel."""
        centre, chord = _circle(pixel)
        tiles = self.index.near(centre, chord + np.deg2rad(margin_arcsec / 3600))
        paths = {
            path
            for number in tiles.tolist()
            for group in self.index.tiles[number].planes.values()
            for path in group
        }
        return {path.name: fingerprint(path) for path in sorted(paths)}


def boxes(
    top: NDArray[np.int64], left: NDArray[np.int64], *, window: int, most: int
) -> Iterator[NDArray[np.int64]]:
    """Groups of stamps that are worth reading at once, as places in the arrays; from top to bottom.

    Stamps of a group overlap in a chain, so that a box around them holds little else where they
    are many, and a lone stamp is a box of its own. No group has more than ``most`` stamps.
    """
    by_row = np.argsort(top, kind="stable")
    for band in _runs(top[by_row], window, longest=_TALLEST, most=most):
        across = by_row[band]
        by_column = across[np.argsort(left[across], kind="stable")]
        for run in _runs(left[by_column], window, longest=None, most=most):
            yield by_column[run]


def _runs(
    starts: NDArray[np.int64], window: int, *, longest: int | None, most: int
) -> Iterator[slice]:
    """Cut ascending windows where there is a gap, and where a run grows too long."""
    first = 0
    values = starts.tolist()
    for place in range(1, len(values) + 1):
        if (
            place == len(values)
            or values[place] > values[place - 1] + window
            or (longest is not None and values[place] - values[first] > longest)
            or place - first == most
        ):
            yield slice(first, place)
            first = place


class _Batch:
    """Stamps collected from several tiles until there are enough for one reading."""

    def __init__(self, image: ImageColumn, *, rows: int, window: int) -> None:
        self.image = image
        self.shape = (rows, len(image.bands), window, window)
        self._renew()

    def _renew(self) -> None:
        # New arrays each time: the readings given out are views of the old ones.
        self.filled = 0
        self.flux = np.empty(self.shape, np.float32)
        self.good = np.empty(self.shape, np.bool_)
        self.padded = np.zeros(self.shape[0], np.bool_)
        self.index = np.empty(self.shape[0], np.int64)

    def take(self, index: NDArray[np.int64]) -> slice:
        """Room for these positions."""
        into = slice(self.filled, self.filled + len(index))
        self.index[into] = index
        self.filled += len(index)
        return into

    def reading(self) -> Reading:
        """What was collected; the batch is empty afterwards."""
        full = slice(self.filled)
        good = self.good[full]
        images, flags = observe_images(
            self.flux[full], good if self.image.mask_is_good else ~good, self.image,
            size=self.shape[-1],
        )  # fmt: skip
        flags[self.padded[full]] |= Flag.IMAGE_PADDED
        flags[~good.reshape(len(good), -1).any(axis=1)] = Flag.IMAGE_MISSING
        result = Reading(
            index=self.index[full],
            observations={self.image.token_key: images},
            flags=flags,
        )
        self._renew()
        return result


def _image_of(survey: Survey) -> ImageColumn:
    if survey.image is None:
        raise ConfigurationError(
            "it has no images", where=f"survey {survey.name}", remedy="Choose a survey of images"
        )
    return survey.image


def _circle(pixel: HealpixPixel) -> tuple[NDArray[np.float64], float]:
    """Centre of a pixel as a unit vector, and a chord that reaches around it."""
    numbers = np.array([pixel.pixel], np.uint64)
    ra, dec = healpix.healpix_to_lonlat(numbers, pixel.order)
    corner_ra, corner_dec = healpix.vertices(numbers, pixel.order)
    centre = unit_vectors(np.asarray(ra.deg), np.asarray(dec.deg))[0]
    corners = unit_vectors(np.asarray(corner_ra.deg)[0], np.asarray(corner_dec.deg)[0])
    return centre, float(np.linalg.norm(corners - centre, axis=1).max()) * 1.05
