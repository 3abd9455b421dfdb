"""What of an object reaches the Earth at every wavelength, and how bright that is in a filter.

The tables come from ``tools/build_spectral_templates.py``. Wavelengths are Angstrom in vacuum, flux
densities 1e-17 erg/s/cm2/A, fluxes of lines 1e-17 erg/s/cm2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import BANDS, Floats

GAIA_BANDS = ("G", "BP", "RP")
AB_ZERO_POINT = 3.631e-20
"""erg / s / cm2 / Hz of magnitude zero."""
SPEED_OF_LIGHT = 299_792.458
"""km / s."""

_FILTERS = {
    **{band: f"decamDR1-{band}" for band in "griz"},
    **{band: f"wise2010-{band}" for band in ("W1", "W2", "W3", "W4")},
    **{band: f"gaiadr3-{band}" for band in GAIA_BANDS},
}


def _none() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, kw_only=True)
class Sed:
    """Light of one object at Earth, behind the dust of the Milky Way: a continuum and lines."""

    wavelength: Floats
    """Observed, ascending, shape (sample,); beyond its ends there is no light."""
    flux: Floats
    """Flux density of the continuum, shape (sample,)."""
    line_wavelength: Floats = field(default_factory=_none)
    """Observed centres of the lines, shape (line,)."""
    line_sigma: Floats = field(default_factory=_none)
    """Widths of the lines by the motion of the gas, Angstrom."""
    line_flux: Floats = field(default_factory=_none)
    """Flux of each line."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One band as weights of a sum over wavelengths."""

    wavelength: Floats
    response: Floats
    weight: Floats
    """Nanomaggies per flux density."""
    per_line: float
    """Nanomaggies per flux of a line, per Angstrom and response."""


@dataclass(frozen=True, kw_only=True)
class SpectralTables:
    """Templates of galaxies and stars, dust, filters, night sky and Gaia's bases."""

    galaxy_wavelength: Floats
    """Rest frame, shape (sample,)."""
    galaxy_fine: slice
    """Where the samples are ``galaxy_step`` apart in log wavelength."""
    galaxy_step: float
    galaxy_continuum: Floats
    """erg/s/cm2/A at 10 pc per solar mass formed, shape (template, sample)."""
    galaxy_halpha_nii: Floats
    """H-alpha and both [N II], erg/s/cm2 at 10 pc per solar mass formed, shape (template,)."""
    star_wavelength: Floats
    star_flux: NDArray[np.float32]
    """erg/s/cm2/A at 10 pc of one solar luminosity, shape (node, metallicity, sample)."""
    dwarf_teff: Floats
    """Kelvin of the first nodes."""
    giant_teff: Floats
    """Kelvin of the other nodes."""
    star_feh: Floats
    dust_log_wavelength: Floats
    dust_extinction: Floats
    """Magnitudes per E(B-V)."""
    filters: dict[str, Filter]
    """By band: those of the Legacy Surveys and of Gaia."""
    sky: dict[str, Floats]
    """Lines of the night sky on the grid of each spectrograph, flux density per square arcsec."""
    xp_wavelength: Floats
    xp_inverse: Floats
    """Gaia XP coefficients (e-/s) per W/m2/nm at each wavelength, shape (110, wavelength)."""
    xp_design: Floats
    """W/m2/nm at each wavelength per coefficient, shape (110, wavelength)."""
    provenance: str


@lru_cache(maxsize=1)
def load_tables() -> SpectralTables:
    """Read the tables; once per process."""
    with (
        as_file(files("skyvec.mock") / "spectral_templates.npz") as path,
        np.load(path) as stored,
    ):
        wavelength = stored["galaxy_wavelength"]
        step = np.diff(np.log(wavelength))
        fine = np.flatnonzero(np.abs(step - np.median(step)) < 1e-9)
        scale = stored["star_scale"][..., None].astype(np.float32)
        return SpectralTables(
            galaxy_wavelength=wavelength,
            galaxy_fine=slice(int(fine[0]), int(fine[-1]) + 2),
            galaxy_step=float(np.median(step)),
            galaxy_continuum=stored["galaxy_continuum"].astype(np.float64),
            galaxy_halpha_nii=stored["galaxy_halpha_nii"],
            star_wavelength=stored["star_wavelength"],
            star_flux=stored["star_flux"].astype(np.float32) * scale,
            dwarf_teff=stored["dwarf_teff"],
            giant_teff=stored["giant_teff"],
            star_feh=stored["star_feh"],
            dust_log_wavelength=np.log(stored["dust_wavelength"]),
            dust_extinction=stored["dust_extinction"],
            filters=_filters(stored),
            sky={kind: stored[f"sky_{kind}"].astype(np.float64) for kind in ("desi", "sdss")},
            xp_wavelength=stored["xp_wavelength"],
            xp_inverse=stored["xp_inverse"],
            xp_design=stored["xp_design"],
            provenance=str(stored["provenance"]),
        )


def transmission(wavelength: Floats, ebv: float) -> Floats:
    """Share of the light that passes the dust of the Milky Way.

    Fitzpatrick (1999) at R_V = 3.1, scaled as by Schlafly & Finkbeiner (2011).
    """
    tables = load_tables()
    magnitudes = np.interp(np.log(wavelength), tables.dust_log_wavelength, tables.dust_extinction)
    return np.exp(-0.4 * np.log(10) * ebv * magnitudes)


def band_fluxes(sed: Sed, bands: tuple[str, ...] = BANDS) -> Floats:
    """Nanomaggies through filters of the Legacy Surveys or of Gaia, shape (band,)."""
    filters = load_tables().filters
    return np.array([_band_flux(sed, filters[band]) for band in bands])


def planck(wavelength: Floats | float, kelvin: float) -> Floats:
    """Shape of a black body's spectrum per Angstrom, arbitrary unit."""
    wavelength = np.asarray(wavelength, dtype=np.float64)
    exponent = np.minimum(1.438777e8 / (wavelength * kelvin), 600)  # 1e-260: as good as nothing
    return wavelength**-5.0 / np.expm1(exponent)


def _band_flux(sed: Sed, band: Filter) -> float:
    continuum = np.interp(band.wavelength, sed.wavelength, sed.flux, left=0, right=0)
    total = float((continuum * band.weight).sum())
    if len(sed.line_wavelength):
        response = np.interp(sed.line_wavelength, band.wavelength, band.response, left=0, right=0)
        total += band.per_line * float((sed.line_flux * sed.line_wavelength * response).sum())
    return total


def _filters(stored: np.lib.npyio.NpzFile) -> dict[str, Filter]:
    ends = np.cumsum(stored["filter_length"])
    curves = {
        str(name): (
            stored["filter_wavelength"][end - length : end],
            stored["filter_response"][end - length : end].astype(np.float64),
        )
        for name, length, end in zip(
            stored["filter_name"], stored["filter_length"], ends, strict=True
        )
    }
    return {band: _filter(*curves[name]) for band, name in _FILTERS.items()}


def _filter(wavelength: Floats, response: Floats) -> Filter:
    # Finer than the curves need: the narrow features of the spectra shall not fall between.
    grid = np.exp(np.arange(np.log(wavelength[0]), np.log(wavelength[-1]), 4e-4))
    wavelength, response = grid, np.interp(grid, wavelength, response)
    step = np.gradient(wavelength)
    reference = AB_ZERO_POINT * SPEED_OF_LIGHT * 1e13 * (response / wavelength * step).sum()
    per_line = 1e-17 * 1e9 / reference
    return Filter(
        wavelength=wavelength,
        response=response,
        weight=per_line * response * wavelength * step,
        per_line=per_line,
    )
