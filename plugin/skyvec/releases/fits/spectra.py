"""Spectra from the files of the surveys' pipelines: DESI coadds, SDSS and BOSS spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import radec2pix
from numpy.typing import NDArray

from skyvec.releases.fits import desi, sdss
from skyvec.releases.fits.arrays import FileObjects, SpectrumArrays, stack_spectra
from skyvec.releases.fits.files import fingerprint, fits_files, naming
from skyvec.releases.ids import canonical_ids
from skyvec.releases.observing import observe_labels, observe_spectra
from skyvec.releases.sky import near_pixel, pixels_around, valid_positions
from skyvec.releases.source import Quarantined, Reading, SourceObjects
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import SpectrumColumn, Survey

_CELLS = 6
"""Order of the cells (0.9 degrees) by which objects are sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumFormat:
    """How one pipeline stores spectra; all wavelengths are in vacuum."""

    names: str
    """File names, for people."""
    is_ours: Callable[[str], bool]
    """Whether a file of this name holds spectra."""
    objects: Callable[[Path], FileObjects]
    """Ids, positions, redshifts, and what is wrong with whom."""
    spectra: Callable[[Path, NDArray[np.int64], SpectrumColumn], SpectrumArrays]
    """Spectra of ascending rows."""


FORMATS: Mapping[str, SpectrumFormat] = MappingProxyType(
    {
        "tok_spectrum_desi": SpectrumFormat(
            names="coadd-*.fits",
            is_ours=desi.is_coadd,
            objects=desi.read_objects,
            spectra=desi.read_spectra,
        ),
        "tok_spectrum_sdss": SpectrumFormat(
            names="spec-*.fits",
            is_ours=sdss.is_spectrum,
            objects=sdss.read_objects,
            spectra=sdss.read_spectra,
        ),
    }
)
"""By token key of the survey's spectra."""


@dataclass(frozen=True, kw_only=True)
class FitsSpectra:
    """Spectrum files of one survey under a folder; a `Source`.

    Labels are redshifts, NaN where the pipeline warns of them or none was fitted.
    """

    survey: Survey
    paths: tuple[Path, ...]
    beside: tuple[tuple[Path, ...], ...]
    """Other files that each one was indexed from."""
    stamps: tuple[tuple[int, int], ...]
    """Size and time of modification of each file when it was indexed."""
    starts: NDArray[np.int64]
    """First object of each file in the arrays below, and how many there are."""
    ids: NDArray[Any]
    """Of all objects, as in the files and in their order."""
    ra: NDArray[np.float64]
    """Degrees; of an object without a place those of the first one in its file that has one."""
    dec: NDArray[np.float64]
    z: NDArray[np.float64]
    reasons: Mapping[int, str]
    """Object that cannot be used -> why."""
    cells: NDArray[np.int64]
    """HEALPix cells of the objects, ascending."""
    by_cell: NDArray[np.int64]
    """The object of each of them."""

    @classmethod
    def open(cls, path: str | Path, survey: Survey) -> FitsSpectra:
        """Index every spectrum file under a folder (or one file) by the objects that it holds.

        Raises
        ------
        ConfigurationError
            If there is no such folder, or it is not known how the survey stores spectra.
        ContractError
            If there is no such file, or one cannot be read.
        """
        form = _format_of(survey)
        paths = [file for name, file in fits_files(path) if form.is_ours(Path(name).name)]
        if not paths:
            raise ContractError(
                f"no {form.names} in it or below",
                where=str(path),
                remedy=f"Give the folder of the {survey.name} spectra",
            )
        stamps = tuple(_stamp(file) for file in paths)
        parts = [form.objects(file) for file in paths]
        starts = np.concatenate([[0], np.cumsum([len(part.ids) for part in parts])])
        reasons: dict[int, str] = {}
        places = [_places(part) for part in parts]
        for start, part, (_, _, lost) in zip(starts.tolist(), parts, places, strict=False):
            reasons |= {start + row: reason for row, reason in part.reasons.items()}
            for row in lost.tolist():
                reasons.setdefault(
                    start + row, f"its position is ({part.ra[row]}, {part.dec[row]})"
                )
        ra, dec = (np.concatenate([place[axis] for place in places]) for axis in (0, 1))
        cells = np.full(len(ra), -1)
        valid = valid_positions(ra, dec)
        cells[valid] = radec2pix(_CELLS, ra[valid], dec[valid])
        by_cell = np.argsort(cells, kind="stable")
        return cls(
            survey=survey,
            paths=tuple(paths),
            beside=tuple(part.beside for part in parts),
            stamps=stamps,
            starts=starts,
            ids=np.concatenate([part.ids for part in parts]),
            ra=ra,
            dec=dec,
            z=np.concatenate([part.z for part in parts]),
            reasons=reasons,
            cells=cells[by_cell],
            by_cell=by_cell,
        )

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """Every object of the release that cannot be used."""
        return self._quarantined(np.array(sorted(self.reasons), np.int64))

    def objects(self, pixel: HealpixPixel, *, margin_arcsec: float) -> SourceObjects:
        """Ids and positions in and around a pixel, in file order; sky fibres and the like apart."""
        near = self._near(pixel, margin_arcsec)
        unusable = np.isin(near, np.fromiter(self.reasons, np.int64, len(self.reasons)))
        chosen, refused = near[~unusable], near[unusable]
        # Without the margin, so that no object is quarantined in two pixels.
        own = near_pixel(self.ra[refused], self.dec[refused], pixel, margin_arcsec=0)
        file = self._file(chosen)
        return SourceObjects(
            ids=canonical_ids(self.ids[chosen]),
            ra=self.ra[chosen] % 360,
            dec=self.dec[chosen],
            file=file.astype(np.int32),
            row=chosen - self.starts[file],
            quarantined=self._quarantined(refused[own]),
        )

    def read(
        self, objects: SourceObjects, wanted: NDArray[np.int64], *, rows: int
    ) -> Iterator[Reading]:
        """Spectra of ``wanted``, file by file and row by row, at most ``rows`` at a time.

        Raises
        ------
        ContractError
            If a file is gone, changed since `open`, or is not in the survey's units.
        """
        form, column = _format_of(self.survey), _column_of(self.survey)
        order = np.lexsort((objects.row[wanted], objects.file[wanted]))
        index: list[NDArray[np.int64]] = []
        parts: list[SpectrumArrays] = []
        start = 0
        while start < len(order):
            file = objects.file[wanted[order[start]]]
            room = rows - sum(map(len, index))
            chunk = order[start : start + room]
            chunk = chunk[objects.file[wanted[chunk]] == file]
            path = self.paths[file]
            self._check_unchanged(int(file))
            numbers = objects.row[wanted[chunk]]
            unique, back = np.unique(numbers, return_inverse=True)
            parts.append(form.spectra(path, unique, column).take(back))
            index.append(chunk)
            start += len(chunk)
            if start == len(order) or sum(map(len, index)) == rows:
                yield self._reading(objects, wanted, np.concatenate(index), parts)
                index, parts = [], []

    def _reading(
        self,
        objects: SourceObjects,
        wanted: NDArray[np.int64],
        index: NDArray[np.int64],
        parts: list[SpectrumArrays],
    ) -> Reading:
        column = _column_of(self.survey)
        arrays = stack_spectra(parts)
        mask = ~arrays.bad if column.mask_is_good else arrays.bad
        spectra, flags = observe_spectra(arrays.flux, arrays.ivar, mask, arrays.wavelength, column)
        chosen = wanted[index]
        z = self.z[self.starts[objects.file[chosen]] + objects.row[chosen]]
        return Reading(
            index=index,
            observations={column.token_key: spectra},
            flags=flags,
            labels=observe_labels({"Z": z}, self.survey),
        )

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """Names, sizes and digests of the files with objects in and around the pixel."""
        files = np.unique(self._file(self._near(pixel, margin_arcsec)))
        paths = {path for file in files.tolist() for path in (self.paths[file], *self.beside[file])}
        return {path.name: fingerprint(path) for path in sorted(paths)}

    def _file(self, objects: NDArray[np.int64]) -> NDArray[np.int64]:
        """File of each object."""
        return np.searchsorted(self.starts, objects, side="right") - 1

    def _near(self, pixel: HealpixPixel, margin_arcsec: float) -> NDArray[np.int64]:
        """Objects in and around a pixel, in file order."""
        cells = pixels_around(pixel, order=_CELLS, margin_arcsec=margin_arcsec)
        first = np.searchsorted(self.cells, cells)
        last = np.searchsorted(self.cells, cells, side="right")
        runs = [self.by_cell[a:b] for a, b in zip(first, last, strict=True) if b > a]
        found = np.sort(np.concatenate(runs)) if runs else np.empty(0, np.int64)
        near = near_pixel(self.ra[found], self.dec[found], pixel, margin_arcsec=margin_arcsec)
        return found[near]

    def _quarantined(self, objects: NDArray[np.int64]) -> tuple[Quarantined, ...]:
        names, files = canonical_ids(self.ids[objects]), self._file(objects)
        return tuple(
            Quarantined(
                file=str(self.paths[file]),
                row=int(place - self.starts[file]),
                object_id=str(name),
                reason=self.reasons[place],
            )
            for place, name, file in zip(objects.tolist(), names, files.tolist(), strict=True)
        )

    def _check_unchanged(self, file: int) -> None:
        if _stamp(self.paths[file]) != self.stamps[file]:
            raise ContractError(
                "changed since it was indexed",
                where=str(self.paths[file]),
                remedy="Open the folder again when nothing writes to it",
            )


def _places(
    part: FileObjects,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Positions of the objects of a file, those without one put with the first, and who these are."""
    valid = valid_positions(part.ra, part.dec)
    ra, dec = part.ra.copy(), part.dec.copy()
    first = int(np.argmax(valid)) if valid.any() else None
    ra[~valid] = np.nan if first is None else ra[first]
    dec[~valid] = np.nan if first is None else dec[first]
    return ra, dec, np.flatnonzero(~valid)


def _stamp(path: Path) -> tuple[int, int]:
    with naming(path):
        status = path.stat()
        return status.st_size, status.st_mtime_ns


def _column_of(survey: Survey) -> SpectrumColumn:
    if survey.spectrum is None:
        raise ConfigurationError(
            "it has no spectra", where=f"survey {survey.name}", remedy="Choose a survey of spectra"
        )
    return survey.spectrum


def _format_of(survey: Survey) -> SpectrumFormat:
    form = FORMATS.get(_column_of(survey).token_key)
    if form is None:
        raise ConfigurationError(
            "it is not known how it stores spectra in FITS",
            where=f"survey {survey.name}",
            remedy=f"Known are {', '.join(FORMATS)}",
        )
    return form
