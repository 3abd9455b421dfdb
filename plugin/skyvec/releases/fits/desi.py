"""DESI coadd files: three arms of a spectrograph brought to one spectrum for each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skyvec.releases.fits.arrays import (
    LEAST_IVAR,
    FileObjects,
    SpectrumArrays,
    check_flux_unit,
    column_of,
)
from skyvec.releases.fits.files import SUFFIXES, naming, open_fits, table_hdu
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import SpectrumColumn

GRID = 3600.0 + 0.8 * np.arange(7781)
"""Wavelengths of a DESI spectrum, 3600 to 9824 Angstrom in vacuum; the arms lie on it."""

_MAX_OFFSET = 1e-2
"""Angstrom by which an arm may be off the grid."""
_WIDEST_GAP = 8
"""Unwanted rows that are read rather than skipped."""


def is_coadd(name: str) -> bool:
    """Whether a file of this name holds coadded spectra."""
    return name.startswith("coadd-") and name.endswith(SUFFIXES)


def read_objects(path: Path) -> FileObjects:
    """Targets of a coadd file, with redshifts from the redrock file beside it if there is one.

    Sky fibres, and fibres whose status is not 0, cannot be used.

    Raises
    ------
    ContractError
        If a file is unreadable or lacks a table or column.
    """
    with open_fits(path) as hdus:
        hdu = table_hdu(hdus, "FIBERMAP", path)
        with naming(path):
            table = hdu.data
        ids = column_of(table, ["TARGETID"], path)
        ra, dec = (
            column_of(table, [name], path).astype(np.float64)
            for name in ("TARGET_RA", "TARGET_DEC")
        )
        kind = np.char.strip(column_of(table, ["OBJTYPE"], path).astype(np.str_))
        status = column_of(table, ["COADD_FIBERSTATUS", "FIBERSTATUS"], path)
    reasons = {}
    for row in np.flatnonzero((kind != "TGT") | (status != 0)).tolist():
        what = f"OBJTYPE is {str(kind[row])!r}, not a target" if kind[row] != "TGT" else ""
        fibre = f"COADD_FIBERSTATUS is {status[row]}" if status[row] else ""
        reasons[row] = "; ".join(filter(None, (what, fibre)))
    z = np.full(len(ids), np.nan)
    beside = _redrock(path)
    if beside:
        z = _redshifts(beside, ids)
    return FileObjects(
        ids=ids, ra=ra, dec=dec, z=z, reasons=reasons, beside=(beside,) if beside else ()
    )


def _redrock(path: Path) -> Path | None:
    stem = path.name.removeprefix("coadd-").split(".fits")[0]
    places = (path.with_name(f"redrock-{stem}{suffix}") for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _redshifts(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Redshifts of these targets, NaN for those that are not in the file or have ZWARN set."""
    with open_fits(path) as hdus:
        hdu = table_hdu(hdus, "REDSHIFTS", path)
        with naming(path):
            table = hdu.data
        fitted = column_of(table, ["TARGETID"], path)
        warned = column_of(table, ["ZWARN"], path) != 0
        z = column_of(table, ["Z"], path).astype(np.float64)
    z[warned] = np.nan
    if not len(fitted):
        return np.full(len(ids), np.nan)
    order = np.argsort(fitted, kind="stable")
    place = order[np.minimum(np.searchsorted(fitted, ids, sorter=order), len(fitted) - 1)]
    return np.where(fitted[place] == ids, z[place], np.nan)


def read_spectra(path: Path, rows: NDArray[np.int64], column: SpectrumColumn) -> SpectrumArrays:
    """Spectra of ascending rows on `GRID`, the arms averaged by inverse variance where they overlap.

    A sample is bad where no arm has an unmasked one; its flux and inverse variance are 0 there.

    Raises
    ------
    ContractError
        If an arm is off the grid, in another unit, or of another shape than it should be.
    """
    flux, ivar = (np.zeros((len(rows), len(GRID)), np.float32) for _ in range(2))
    reach = 0
    with open_fits(path) as hdus:
        with naming(path):
            names = [h.name for h in hdus if h.name.endswith("_WAVELENGTH")]
        if not names:
            raise ContractError(
                "no HDU ..._WAVELENGTH", where=str(path), remedy="Fetch a DESI coadd file"
            )
        arms = {name.removesuffix("_WAVELENGTH"): _place(hdus, name, path) for name in names}
        for arm, place in sorted(arms.items(), key=lambda item: item[1].start):
            arm_flux, arm_ivar = _arm(hdus, arm, place.stop - place.start, rows, column, path)
            shared = max(0, min(reach, place.stop) - place.start)
            alone = slice(place.start + shared, place.stop)
            flux[:, alone], ivar[:, alone] = arm_flux[:, shared:], arm_ivar[:, shared:]
            both = slice(place.start, place.start + shared)
            flux[:, both], ivar[:, both] = _average(
                flux[:, both], ivar[:, both], arm_flux[:, :shared], arm_ivar[:, :shared]
            )
            reach = max(reach, place.stop)
    return SpectrumArrays(
        flux=flux,
        ivar=ivar,
        bad=ivar == 0,
        wavelength=np.broadcast_to(GRID.astype(np.float32), flux.shape),
    )


def _arm(
    hdus: fits.HDUList,
    arm: str,
    width: int,
    rows: NDArray[np.int64],
    column: SpectrumColumn,
    path: Path,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flux and inverse variance of an arm, both 0 where a sample must not be used."""
    hdu = table_hdu(hdus, f"{arm}_FLUX", path)
    check_flux_unit(hdu.header.get("BUNIT"), column, path)
    flux = _rows(hdu, rows, width, path).astype(np.float32)
    ivar = _rows(table_hdu(hdus, f"{arm}_IVAR", path), rows, width, path).astype(np.float32)
    bad = ~(np.isfinite(flux) & (ivar > LEAST_IVAR))
    if f"{arm}_MASK" in hdus:
        bad |= _rows(table_hdu(hdus, f"{arm}_MASK", path), rows, width, path) != 0
    flux[bad], ivar[bad] = 0, 0
    return flux, ivar


def _average(
    first: NDArray[np.float32],
    first_ivar: NDArray[np.float32],
    second: NDArray[np.float32],
    second_ivar: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean weighted by inverse variance and the sum of these, 0 where neither has any."""
    # In float64, where one has no weight, (flux * ivar) / ivar is the other's flux to the last bit.
    weights = first_ivar.astype(np.float64), second_ivar.astype(np.float64)
    total = weights[0] + weights[1]
    return (first * weights[0] + second * weights[1]) / np.where(total == 0, 1, total), total


def _place(hdus: fits.HDUList, name: str, path: Path) -> slice:
    """Where the wavelengths of an arm lie on the grid."""
    hdu = table_hdu(hdus, name, path)
    with naming(path):
        wave = np.asarray(hdu.data, np.float64)
    unit = str(hdu.header.get("BUNIT", "Angstrom")).strip().lower()
    frame = str(hdu.header.get("AIRORVAC", "vac")).strip().lower()
    first = round(float(wave[0] - GRID[0]) / 0.8) if wave.ndim == 1 and len(wave) else -1
    place = slice(first, first + wave.size)
    fits_grid = (
        first >= 0
        and place.stop <= len(GRID)
        and bool((np.abs(wave - GRID[place]) <= _MAX_OFFSET).all())
    )
    if fits_grid and unit.startswith("angstrom") and frame == "vac":
        return place
    raise ContractError(
        f"{name} ({unit}, {frame}) is off the grid of DESI, 3600 to 9824 Angstrom by 0.8 in vacuum",
        where=str(path),
        remedy="Fetch a coadd file of a public release",
    )


def _rows(
    hdu: fits.hdu.base.ExtensionHDU, rows: NDArray[np.int64], width: int, path: Path
) -> NDArray[Any]:
    """Ascending rows of an image (row, wavelength), read in runs."""
    if len(hdu.shape) != 2 or hdu.shape[1] != width or hdu.shape[0] <= rows[-1]:
        raise ContractError(
            f"{hdu.name} has shape {hdu.shape}, not (targets, {width})",
            where=str(path),
            remedy="Fetch this file again",
        )
    cuts = np.flatnonzero(np.diff(rows) > _WIDEST_GAP) + 1
    runs = np.split(rows, cuts)
    with naming(path):
        return np.concatenate([hdu.section[run[0] : run[-1] + 1][run - run[0]] for run in runs])
