"""What Gaia measures of an object: BP/RP coefficients, mean fluxes and parallax.

The coefficients come from the flux by a ridge inversion of GaiaXPy's bases (v375wi), with a prior
that falls as a power of the order; of real sources it gives the coefficients back within a few of
their errors. Errors are photon noise, a floor and a share of the flux, all but flat in the order
and uncorrelated, where those of Gaia are correlated. The flux is blurred by 4 nm (one sigma) before
the inversion, as the prisms do to it, else fine structure would fill the high orders: one width for
all wavelengths, where the prisms' grows to the red.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import Floats
from skyvec.mock.sed import GAIA_BANDS, Sed, band_fluxes, load_tables

COEFFICIENTS = 55
"""Of each prism."""
AB_ZERO_POINT = {"G": 25.8010446445, "BP": 25.3539555559, "RP": 25.1039837393}
"""Gaia DR3: AB magnitude of 1 e-/s."""
VEGA_ZERO_POINT = {"G": 25.6873668671, "BP": 25.3385422158, "RP": 24.7478955012}
"""Gaia DR3: magnitude, as its catalog states it, of 1 e-/s."""

_BLUR = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
_BLUR /= _BLUR.sum()
_WATT = 1e-19  # W/m2/nm of 1e-17 erg/s/cm2/A
# Errors of the coefficients: e-/s, share of the photon noise, share of the flux; set on DR3.
_FLOOR, _PHOTONS, _SHARE = 0.25, 0.007, 3.2e-5
# The same for the mean fluxes in G, BP and RP.
_MEAN_FLOOR, _MEAN_PHOTONS = np.array([0.4, 2.0, 2.0]), np.array([0.035, 0.15, 0.13])
_MEAN_SHARE = np.array([6e-4, 2e-3, 1.6e-3])
# Median errors of DR3 parallaxes, Lindegren et al. (2021).
_PARALLAX_G = np.array([6.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0, 21.0])
_PARALLAX_LOG_ERROR = np.log10([0.018, 0.025, 0.040, 0.067, 0.12, 0.22, 0.50, 1.3])


@dataclass(frozen=True, kw_only=True)
class XpObservation:
    """Mean spectrum and mean fluxes of one source."""

    coeff: NDArray[np.float32]
    """First those of BP, then those of RP, e-/s, shape (110,)."""
    coeff_error: NDArray[np.float32]
    """One sigma, shape (110,)."""
    g_flux: float
    """e-/s."""
    bp_flux: float
    """e-/s."""
    rp_flux: float
    """e-/s."""


def observe_xp(sed: Sed, *, rng: np.random.Generator, g_mag: float) -> XpObservation:
    """Observe an object of magnitude ``g_mag`` (Gaia G), which sets its errors."""
    truth = mean_fluxes(sed)
    relative = g_flux_of(g_mag) / truth[0]
    error = coefficient_errors(bp_flux=truth[1] * relative, rp_flux=truth[2] * relative)
    coeff = coefficients(sed) + error * rng.standard_normal(len(error))
    noise = rng.standard_normal(len(GAIA_BANDS))
    expected = np.maximum(truth, 0) * relative
    sigma = np.sqrt(_MEAN_FLOOR**2 + _MEAN_PHOTONS**2 * expected + (_MEAN_SHARE * expected) ** 2)
    g_flux, bp_flux, rp_flux = (float(value) for value in truth + sigma * noise)
    return XpObservation(
        coeff=coeff.astype(np.float32),
        coeff_error=error.astype(np.float32),
        g_flux=g_flux,
        bp_flux=bp_flux,
        rp_flux=rp_flux,
    )


def observe_parallax(
    parallax_mas: float, *, rng: np.random.Generator, g_mag: float
) -> tuple[float, float]:
    """Parallax with its error, and the error, mas; it may come out negative."""
    error = float(10 ** np.interp(g_mag, _PARALLAX_G, _PARALLAX_LOG_ERROR))
    return parallax_mas + error * float(rng.standard_normal()), error


def g_magnitude(sed: Sed) -> float:
    """Gaia G as its catalog states it."""
    return float(VEGA_ZERO_POINT["G"] - 2.5 * np.log10(mean_fluxes(sed)[0]))


def g_flux_of(g_mag: float) -> float:
    """e-/s of a Gaia G magnitude."""
    return float(10 ** (0.4 * (VEGA_ZERO_POINT["G"] - g_mag)))


def mean_fluxes(sed: Sed) -> Floats:
    """Noiseless e-/s in G, BP and RP."""
    nanomaggies = band_fluxes(sed, GAIA_BANDS)
    zero_points = np.array([AB_ZERO_POINT[band] for band in GAIA_BANDS])
    return nanomaggies * 10 ** (0.4 * (zero_points - 22.5))


def coefficients(sed: Sed) -> Floats:
    """Noiseless coefficients, e-/s, shape (110,)."""
    padded = np.pad(sampled(sed), len(_BLUR) // 2, mode="edge")
    return invert(np.convolve(padded, _BLUR, mode="valid"))


def invert(flux: Floats) -> Floats:
    """Coefficients of a flux in W/m2/nm, every 2 nm, that Gaia's bases can follow."""
    # A sum, not a matrix product: BLAS may add in another order elsewhere.
    return (load_tables().xp_inverse * flux).sum(axis=1)


def sampled(sed: Sed) -> Floats:
    """Mean flux density in W/m2/nm around each wavelength of the bases (every 2 nm)."""
    grid = load_tables().xp_wavelength
    step = float(grid[1] - grid[0])
    edges = np.append(grid - step / 2, grid[-1] + step / 2)
    near = slice(
        max(int(np.searchsorted(sed.wavelength, edges[0])) - 1, 0),
        int(np.searchsorted(sed.wavelength, edges[-1])) + 1,
    )
    wavelength, flux = sed.wavelength[near], sed.flux[near]
    area = np.cumsum((flux[1:] + flux[:-1]) / 2 * np.diff(wavelength))
    mean = np.diff(np.interp(edges, wavelength, np.concatenate([[0.0], area]))) / step
    inside = (sed.line_wavelength > edges[0]) & (sed.line_wavelength < edges[-1])
    place = np.searchsorted(edges, sed.line_wavelength[inside]) - 1
    np.add.at(mean, place, sed.line_flux[inside] / step)
    return mean * _WATT


def coefficient_errors(*, bp_flux: float, rp_flux: float) -> Floats:
    """One sigma of the coefficients, e-/s, shape (110,)."""
    order = np.arange(COEFFICIENTS)
    # The last orders are shrunk: half the error from order 40 on, a tenth at the end.
    shape = np.interp(order, [0, 38, 48, 54], [1.0, 1.0, 0.5, 0.1])
    return np.concatenate(
        [
            np.sqrt(_FLOOR**2 + _PHOTONS**2 * flux + (_SHARE * flux) ** 2) * shape
            for flux in (max(bp_flux, 0.0), max(rp_flux, 0.0))
        ]
    )
