"""Fluxes in the bands of HSC and SDSS: galaxies by template, stars and quasars by spectrum.

Fluxes are as observed, behind the dust of the Milky Way, like those of `skyvec.mock.galaxies`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import (
    BANDS,
    Floats,
    GalaxyLatents,
    GalaxyTemplates,
    Photometry,
    load_templates,
    photometry,
)
from skyvec.mock.sed import Sed

HSC_BANDS = ("g", "r", "i", "z", "y")
SDSS_BANDS = ("u", "g", "r", "i", "z")
HSC_EXTINCTION = np.array([3.240, 2.276, 1.633, 1.263, 1.075])
"""Magnitudes per E(B-V) in grizy, HSC PDR3."""
SDSS_EXTINCTION = np.array([4.239, 3.303, 2.285, 1.698, 1.263])
"""Magnitudes per E(B-V) in ugriz, Schlafly & Finkbeiner (2011)."""

_AB_ZERO_POINT = 3.631e-20  # erg / s / cm2 / Hz
_SPEED_OF_LIGHT = 2.99792458e18  # Angstrom / s
_HSC = tuple(f"hsc2017-{band}" for band in HSC_BANDS)
_SDSS = tuple(f"sdss2010-{band}" for band in SDSS_BANDS)


@dataclass(frozen=True, kw_only=True)
class SurveyBands:
    """Template fluxes over redshift, as in `GalaxyTemplates.flux`, and responses of the bands."""

    filters: tuple[str, ...]
    """Names as speclite has them; those of ``flux`` come first."""
    flux: Floats
    """Nanomaggies at 10 pc per solar mass formed, shape (redshift, band, template)."""
    wavelength: Floats
    """Angstrom, equidistant."""
    response: Floats
    """Share of photons detected, shape (band, wavelength)."""

    def of_galaxies(self, filters: tuple[str, ...]) -> GalaxyTemplates:
        """The galaxy templates with these bands in place of their own."""
        chosen = [self.filters.index(name) for name in filters]
        return replace(load_templates(), flux=self.flux[:, chosen])

    def of_spectrum(self, sed: Sed, filters: tuple[str, ...]) -> Floats:
        """Nanomaggies of a spectrum, one for each filter.

        Where the spectrum ends within a band, its last values go on.
        """
        step = self.wavelength[1] - self.wavelength[0]
        density = np.interp(self.wavelength, sed.wavelength, sed.flux)
        place = np.rint((sed.line_wavelength - self.wavelength[0]) / step).astype(np.int64)
        inside = (place >= 0) & (place < len(density))
        np.add.at(density, place[inside], sed.line_flux[inside] / step)
        response = self.response[[self.filters.index(name) for name in filters]]
        photons = (response * self.wavelength * density).sum(axis=1) * 1e-17
        reference = (response / self.wavelength).sum(axis=1) * _AB_ZERO_POINT * _SPEED_OF_LIGHT
        return np.asarray(photons / reference * 1e9)


@lru_cache(maxsize=1)
def load_bands() -> SurveyBands:
    """Read the table that ``tools/build_survey_bands.py`` made."""
    with as_file(files("skyvec.mock") / "survey_bands.npz") as path, np.load(path) as stored:
        return SurveyBands(
            filters=tuple(stored["filters"].tolist()),
            flux=stored["flux"].astype(np.float64),
            wavelength=stored["wavelength"].astype(np.float64),
            response=stored["response"].astype(np.float64),
        )


@lru_cache(maxsize=2)
def _templates(filters: tuple[str, ...]) -> GalaxyTemplates:
    return load_bands().of_galaxies(filters)


def galaxy_hsc(latents: GalaxyLatents, legacy: Photometry) -> Photometry:
    """Bulge and disc in grizy, split by stars as the Legacy Survey's photometry is."""
    templates = _templates(_HSC)
    old = np.where(templates.mass_recent < 0.1, latents.weights, 0.0)
    dust = 10 ** (-0.4 * latents.ebv[:, None] * HSC_EXTINCTION)
    total = templates.fluxes(latents.weights, latents.redshift) * dust
    bulge = templates.fluxes(old, latents.redshift) * dust * _old_stars_in_bulge(latents, legacy)
    return Photometry(bulge=bulge, disc=total - bulge)


def galaxy_sdss(latents: GalaxyLatents) -> Floats:
    """Nanomaggies in ugriz, shape (n, 5)."""
    dust = 10 ** (-0.4 * latents.ebv[:, None] * SDSS_EXTINCTION)
    return np.asarray(_templates(_SDSS).fluxes(latents.weights, latents.redshift) * dust)


def _old_stars_in_bulge(latents: GalaxyLatents, legacy: Photometry) -> Floats:
    """Share of the old stars that the bulge holds, shape (n, 1)."""
    everything = replace(latents, bulge_fraction=np.ones(len(latents)))
    r = BANDS.index("r")
    most = np.maximum(photometry(everything).bulge[:, r], 1e-30)
    return np.asarray((legacy.bulge[:, r] / most)[:, None])


def spectrum_hsc(sed: Sed) -> Floats:
    """Nanomaggies in grizy."""
    return load_bands().of_spectrum(sed, _HSC)


def spectrum_sdss(sed: Sed) -> Floats:
    """Nanomaggies in ugriz."""
    return load_bands().of_spectrum(sed, _SDSS)


def magnitudes(flux: Floats) -> Floats:
    """AB magnitudes of nanomaggies; NaN where the flux is not positive."""
    positive: NDArray[np.bool_] = flux > 0
    return np.where(positive, 22.5 - 2.5 * np.log10(np.where(positive, flux, 1.0)), np.nan)
