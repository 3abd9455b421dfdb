"""SDSS and BOSS spectrum files: one object each, ``spec-PLATE-MJD-FIBER.fits``."""

from __future__ import annotations

import re
from pathlib import Path

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
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.survey_columns import SpectrumColumn

_SKY, _UNPLUGGED = 1 << 0, 1 << 7
"""Bits of ZWARNING: a sky fibre, and one that was not plugged in."""


def is_spectrum(name: str) -> bool:
    """Whether a file of this name holds a spectrum."""
    return name.startswith("spec-") and name.endswith(SUFFIXES)


def read_objects(path: Path) -> FileObjects:
    """The object of a file; sky fibres and unplugged ones cannot be used.

    Its position is that of the fibre: RA and DEC of the first header are the plate's.

    Raises
    ------
    ContractError
        If the file is unreadable or lacks a table or column.
    """
    with open_fits(path) as hdus:
        with naming(path):
            name = "SPECOBJ" if "SPECOBJ" in hdus else "SPALL"
        hdu = table_hdu(hdus, name, path)
        with naming(path):
            table = hdu.data[:1]
        warning = int(column_of(table, ["ZWARNING"], path)[0])
        z = float(column_of(table, ["Z"], path)[0])
        known = {column.upper() for column in table.columns.names}
        kind = str(column_of(table, ["OBJTYPE"], path)[0]).strip() if "OBJTYPE" in known else ""
        ra = column_of(table, ["PLUG_RA", "RA", "FIBER_RA"], path).astype(np.float64)
        dec = column_of(table, ["PLUG_DEC", "DEC", "FIBER_DEC"], path).astype(np.float64)
        ids = np.array([_spec_object_id(table, path)])
    reasons = {}
    if kind == "SKY" or warning & _SKY:
        reasons[0] = "a sky fibre"
    elif warning & _UNPLUGGED:
        reasons[0] = "its fibre was not plugged in"
    redshift = np.array([z if warning == 0 else np.nan])
    return FileObjects(ids=ids, ra=ra, dec=dec, z=redshift, reasons=reasons)


def _spec_object_id(table: fits.FITS_rec, path: Path) -> str:
    """SPECOBJID, packed as SDSS does where a file has none."""
    try:
        text = str(column_of(table, ["SPECOBJID"], path)[0]).strip()
    except MissingColumnError:
        text = ""
    if text.isdigit() and int(text):
        return text
    plate, mjd, fibre = (
        int(column_of(table, names, path)[0])
        for names in (["PLATE"], ["MJD"], ["FIBERID", "FIBER"])
    )
    run = str(column_of(table, ["RUN2D"], path)[0]).strip()
    version = re.fullmatch(r"v(\d+)_(\d+)_(\d+)", run)
    if version:
        major, minor, patch = map(int, version.groups())
        number = (major - 5) * 10000 + minor * 100 + patch
    elif run.isdigit():
        number = int(run)
    else:
        raise ContractError(
            f"no SPECOBJID, and RUN2D {run!r} does not tell it",
            where=str(path),
            remedy="Fetch the file of a public release",
        )
    return str(plate << 50 | fibre << 38 | (mjd - 50000) << 24 | number << 10)


def read_spectra(path: Path, rows: NDArray[np.int64], column: SpectrumColumn) -> SpectrumArrays:
    """The spectrum of a file, ``rows`` being [0]; bad where and_mask is set or ivar is nil.

    Raises
    ------
    ContractError
        If a column is absent, the flux in another unit, or the wavelengths are those in air.
    """
    with open_fits(path) as hdus:
        hdu = table_hdu(hdus, "COADD", path)
        with naming(path):
            table, header = hdu.data, hdus[0].header
        check_flux_unit(header.get("BUNIT"), column, path)
        if header.get("VACUUM") is False:
            raise ContractError(
                "its wavelengths are in air", where=str(path), remedy="Convert them to vacuum first"
            )
        flux, ivar, loglam = (
            column_of(table, [name], path).astype(np.float64) for name in ("flux", "ivar", "loglam")
        )
        masked = column_of(table, ["and_mask"], path) != 0
    with np.errstate(over="ignore"):
        wavelength = (10**loglam).astype(np.float32)
    return SpectrumArrays(
        flux=flux.astype(np.float32)[None],
        ivar=ivar.astype(np.float32)[None],
        bad=(masked | ~(ivar > LEAST_IVAR))[None],
        wavelength=wavelength[None],
    ).take(rows)
