"""Raw samples of FITS: headers of survey images, spectra of DESI and SDSS files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, WcsError
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray

from skyvec.releases.lint.raw_sample import COUNTED_FILES, RawFile, RawRelease, extrapolate, spread
from skyvec_schemas.errors import ContractError, SkyvecError

_FAILURES = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError)
_ZERO_POINTS = ("MAGZERO", "MAGZPT", "MAGZP")
_SPECTRA = ("coadd-", "spec-", "spectra-")
_ARMS = ("BRZ", "B", "R", "Z")


def sample_fits_images(path: str, *, files: int = 3) -> RawRelease:
    """Headers of images spread over a folder: pixel scale, unit, zero point, size.

    Raises
    ------
    ContractError
        If there is no FITS file, or none that can be read.
    """
    places = sorted(Path(path).rglob("*.fits*"))
    images = [p for p in places if not p.name.startswith(_SPECTRA)]
    return _sampled(path, images, files, _image_headers)


def sample_fits_spectra(path: str, *, rows: int = 64, files: int = 3) -> RawRelease:
    """First spectra of DESI coadds (each arm a file of its own) and SDSS ``spec-*`` files.

    Raises
    ------
    ContractError
        If there is no such file, or none that can be read.
    """
    places = sorted(p for p in Path(path).rglob("*.fits*") if p.name.startswith(_SPECTRA))
    share = -(-rows // max(1, min(files, len(places))))
    if places and places[0].name.startswith("spec-"):
        files = min(rows, COUNTED_FILES)  # one object in each
        share = 1
    return _sampled(path, places, files, lambda place: _spectra(place, share))


def _sampled(path: str, places: list[Path], files: int, read: Any) -> RawRelease:  # noqa: ANN401
    if not places:
        raise ContractError(
            "no FITS file that fits the format",
            where=path,
            remedy="Give the folder that holds them, or another format in a sources file",
        )
    sizes = [place.stat().st_size for place in places]
    sampled: list[RawFile] = []
    counted: dict[int, int] = {}
    problems: list[SkyvecError] = []
    for at in spread(len(places), files):
        try:
            parts = read(places[at])
        except SkyvecError as problem:
            problems.append(problem)
            continue
        sampled += parts
        counted[at] = parts[0].rows if parts else 0
    if not counted:
        raise problems[0]
    return RawRelease(
        files=tuple(sampled),
        rows=extrapolate(sizes, counted),
        bytes=sum(sizes),
        file_count=len(places),
        exact=len(counted) == len(places),
        largest=max(counted.values()),
        problems=tuple(problems),
    )


def _image_headers(place: Path) -> list[RawFile]:
    def headers(found: fits.HDUList) -> list[RawFile]:
        images = [hdu for hdu in found if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2]
        if not images:
            return []
        header = images[0].header
        facts: dict[str, float | str] = {
            "side": float(min(header["NAXIS1"], header["NAXIS2"])),
            "unit": str(header.get("BUNIT", "")).strip(),
        }
        wcs = WCS(header).celestial
        if wcs.has_celestial:
            facts["scale"] = float(np.mean(proj_plane_pixel_scales(wcs)) * 3600)
        for name in _ZERO_POINTS:
            if isinstance(value := header.get(name, found[0].header.get(name)), int | float):
                facts["zero_point"] = float(value)
                break
        return [RawFile(path=str(place), rows=0, columns=(), keys={}, arrays={}, facts=facts)]

    return _read(place, headers)


def _spectra(place: Path, rows: int) -> list[RawFile]:
    def spectra(found: fits.HDUList) -> list[RawFile]:
        if place.name.startswith("spec-"):
            return [_sdss(place, found)]
        return _desi(place, found, rows)

    return _read(place, spectra)


def _sdss(place: Path, found: fits.HDUList) -> RawFile:
    """One object; ``loglam`` is log10 of Angstrom by definition, so it is undone here."""
    table = found["COADD"].data if "COADD" in found else found[1].data
    names = {name.lower(): name for name in table.names}
    parts = {
        "spectrum.flux": _native(table[names["flux"]]),
        "spectrum.ivar": _native(table[names["ivar"]]),
        "spectrum.mask": _native(table[names["and_mask"]]) != 0,
        "spectrum.lambda": 10 ** _native(table[names["loglam"]]).astype(np.float64),
    }
    header = found[0].header
    keys = {
        name: np.array([header[word]])
        for name, word in (("ra", "PLUG_RA"), ("dec", "PLUG_DEC"))
        if word in header
    }
    return RawFile(
        path=str(place),
        rows=1,
        columns=tuple(table.names),
        keys=keys,
        arrays={logical: (values,) for logical, values in parts.items()},
    )


def _desi(place: Path, found: fits.HDUList, rows: int) -> list[RawFile]:
    table = found["FIBERMAP"].data
    keys = {
        logical: _native(table[name])
        for logical, name in (("id", "TARGETID"), ("ra", "TARGET_RA"), ("dec", "TARGET_DEC"))
        if name in table.names
    }
    return [
        RawFile(
            path=f"{place}[{arm}]",
            rows=len(table),
            columns=tuple(hdu.name for hdu in found),
            keys=keys,
            arrays=_arm(found, arm, rows),
        )
        for arm in _ARMS
        if f"{arm}_FLUX" in found
    ]


def _arm(found: fits.HDUList, arm: str, rows: int) -> Mapping[str, tuple[NDArray[Any], ...]]:
    wave = _native(found[f"{arm}_WAVELENGTH"].data)
    parts = {
        logical: _native(found[f"{arm}_{name}"].data[:rows])
        for logical, name in (("spectrum.flux", "FLUX"), ("spectrum.ivar", "IVAR"))
    }
    if f"{arm}_MASK" in found:
        parts["spectrum.mask"] = _native(found[f"{arm}_MASK"].data[:rows]) != 0
    arrays = {logical: tuple(values) for logical, values in parts.items()}
    return arrays | {"spectrum.lambda": (wave,) * len(arrays["spectrum.flux"])}


def _native(values: Any) -> NDArray[Any]:  # noqa: ANN401 - astropy's own array types
    found = np.asarray(values)
    return found.astype(found.dtype.newbyteorder("="))


def _read(place: Path, look: Any) -> list[RawFile]:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(place, memmap=True) as found:
                files: list[RawFile] = look(found)
        except (*_FAILURES, fits.VerifyError, WcsError) as problem:
            what = str(problem).strip().splitlines()
            raise ContractError(
                f"cannot be read as FITS ({what[0][:80] if what else type(problem).__name__})",
                where=str(place),
                remedy="Fetch this file again",
            ) from problem
    return files
