"""Spectra of galaxies, and what the spectrographs of DESI and SDSS record of any object.

Galaxies: the continua of kcorrect that give the catalog its fluxes, sharpened between 3500 and
8950 Angstrom (rest frame) by populations of MIUSCAT (2.5 Angstrom), broadened by the motion of the
stars; emission lines as narrow as the gas makes them. Shortward of 3500 Angstrom the continuum
keeps the 258 km/s samples of kcorrect: absorption lines in the ultraviolet, seen beyond z = 0.8,
are blurred. Every spectrum is scaled, smoothly, to the griz fluxes of the catalog.

Spectrographs: Poisson noise of object and sky, read noise, cosmic rays and bad columns. The sky is
the line list of desispec over a flat continuum; the throughputs are set so that the errors agree
with released spectra (dark fields of the DESI EDR, within a tenth; SDSS plates of 45 minutes,
which differ among themselves by more). Not simulated: residuals of the sky and of the flux
calibration, correlations between samples, errors of the inverse variance, differences between
fibres. Continua are not blurred further by the spectrograph, only lines are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import (
    BANDS,
    Floats,
    GalaxyLatents,
    Photometry,
    load_templates,
    luminosity_distance,
    photometry,
)
from skyvec.mock.nebular import nebula, width
from skyvec.mock.sed import SPEED_OF_LIGHT, Sed, band_fluxes, load_tables, transmission

Kind = Literal["desi", "sdss"]

FIBRE_DIAMETER = {"desi": 1.5, "sdss": 3.0}
"""Arcsec."""

_GRIZ = BANDS[:4]
# Of griz, and from where on there is nothing to mend.
_SCALE_WAVELENGTH = np.array([4800.0, 6420.0, 7820.0, 9170.0, 14_000.0])
# Per square arcsec, moonless; the lines of the list are those of a somewhat brighter night.
_SKY_CONTINUUM, _SKY_LINES = 0.45, 0.7
_HALF_LIGHT_PER_SCALE = 1.67834699  # of an exponential disc
_FIBRE_ACCEPTANCE = {"desi": 0.55, "sdss": 0.7}
# From the top of the atmosphere to the detector, without the loss at the fibre.
_DESI_THROUGHPUT = (
    *((3600.0, 0.026), (3700.0, 0.06), (3900.0, 0.11), (4200.0, 0.165), (4600.0, 0.23)),
    *((5000.0, 0.275), (5500.0, 0.275), (5700.0, 0.25), (5800.0, 0.28), (6300.0, 0.35)),
    *((7000.0, 0.41), (7450.0, 0.36), (7600.0, 0.34), (8000.0, 0.45), (8500.0, 0.51)),
    *((9000.0, 0.46), (9300.0, 0.32), (9600.0, 0.24), (9824.0, 0.20)),
)
_DESI_LSF = (
    *((3600.0, 0.97), (4600.0, 0.93), (5750.0, 0.88), (5850.0, 0.86), (6700.0, 0.80)),
    *((7550.0, 0.76), (7650.0, 0.86), (8700.0, 0.84), (9824.0, 0.82)),
)
_SDSS_THROUGHPUT = (
    *((3780.0, 0.02), (4000.0, 0.05), (4500.0, 0.095), (5200.0, 0.105), (5800.0, 0.085)),
    *((6000.0, 0.09), (6600.0, 0.105), (7500.0, 0.09), (8300.0, 0.06), (9240.0, 0.035)),
)
_SDSS_LSF = (
    *((3780.0, 1.25), (4500.0, 1.07), (5300.0, 0.90), (5900.0, 0.80), (6050.0, 1.00)),
    *((6700.0, 0.90), (7500.0, 0.80), (8500.0, 0.74), (9240.0, 0.69)),
)
_COSMIC_RAYS = 6.0  # in a spectrum
_BAD_COLUMN_CHANCE = 0.06


@dataclass(frozen=True, kw_only=True)
class SpectrumObservation:
    """One observed spectrum, every array of shape (sample,)."""

    flux: NDArray[np.float32]
    """1e-17 erg/s/cm2/A; without meaning where masked."""
    ivar: NDArray[np.float32]
    """Inverse variance of the flux; 0 where masked."""
    mask: NDArray[np.bool_]
    """True where bad."""
    wavelength: NDArray[np.float32]
    """Angstrom in vacuum."""
    lsf_sigma: NDArray[np.float32]
    """Line spread of the spectrograph, samples."""


@dataclass(frozen=True, kw_only=True)
class _Spectrograph:
    """A spectrograph behind its telescope, on its grid of wavelengths."""

    wavelength: Floats
    pixel: Floats
    """Angstrom per sample."""
    lsf: Floats
    """One sigma, samples."""
    electrons: Floats
    """Per sample and flux density of a point source, in a nominal exposure."""
    background: Floats
    """Variance of sky and read-out, electrons."""


def galaxy_seds(latents: GalaxyLatents) -> list[Sed]:
    """Spectrum of every row as it reaches the Earth, with the dust of the Milky Way.

    Its light through the filters is that of :func:`skyvec.mock.galaxies.photometry`.
    """
    fluxes = photometry(latents)
    return [_galaxy_sed(latents, fluxes, row=row) for row in range(len(latents))]


def fibre_fractions(
    latents: GalaxyLatents, fluxes: Photometry, kind: Kind, *, fwhm: float = 1.1
) -> Floats:
    """Share of the light of each galaxy that its spectrum states, shape (n,).

    The light in a fibre on its centre, over what the fibre takes of a star: spectra are calibrated
    on stars. In the r band; the colour in the fibre is that of the whole galaxy. Bulge and disc
    are taken as round, of equal area, and blurred by a seeing of ``fwhm`` arcsec.
    """
    blur = 0.6 * fwhm * latents.seeing
    share = fluxes.bulge_fraction
    inside = np.zeros(len(latents))
    for weight, size, ratio in (
        (share, latents.bulge_radius, latents.bulge_axis_ratio),
        (1 - share, latents.disc_radius, latents.disc_axis_ratio),
    ):
        inside += weight * _enclosed(kind, np.hypot(size * np.sqrt(ratio), blur))
    return inside / _enclosed(kind, blur)


def _enclosed(kind: Kind, half_light: Floats) -> Floats:
    """Share of an exponential disc within the fibre."""
    scaled = _HALF_LIGHT_PER_SCALE * FIBRE_DIAMETER[kind] / 2 / half_light
    return 1 - (1 + scaled) * np.exp(-scaled)


def observe_spectrum(
    kind: Kind,
    sed: Sed,
    *,
    rng: np.random.Generator,
    fibre_fraction: float,
    exposure: float = 1.0,
) -> SpectrumObservation:
    """Observe an object through a fibre.

    Parameters
    ----------
    kind
        ``desi``: 7781 samples of 0.8 Angstrom. ``sdss``: 3810 to 3860 samples of 1e-4 in log10.
    rng
        Of this object alone; see :func:`skyvec.mock.galaxies.object_rng`.
    fibre_fraction
        Share of the light that the spectrum states; 1 for a point source, whose loss at the fibre
        a flux calibration makes good.
    exposure
        Effective time over 1000 s (DESI) or 2700 s (SDSS); the inverse variance grows with it.
    """
    device = _spectrograph(kind)
    used = _samples(kind, device, rng)
    wavelength, electrons = device.wavelength[used], device.electrons[used]
    model = _model(sed, device, used) * fibre_fraction
    count = np.maximum(model, 0) * electrons + device.background[used]
    sigma = np.sqrt(count / exposure) / electrons
    noise = rng.standard_normal(len(wavelength), dtype=np.float32)
    flux = model + noise * sigma
    bad = _bad_samples(rng, flux, sigma)
    ivar = sigma**-2
    ivar[bad] = 0
    return SpectrumObservation(
        flux=flux.astype(np.float32),
        ivar=ivar.astype(np.float32),
        mask=bad,
        wavelength=wavelength.astype(np.float32),
        lsf_sigma=device.lsf[used].astype(np.float32),
    )


def _galaxy_sed(latents: GalaxyLatents, fluxes: Photometry, *, row: int) -> Sed:
    tables = load_tables()
    redshift = latents.redshift[row : row + 1]
    distance = float(luminosity_distance(redshift, templates=load_templates())[0]) * 1e5
    stretch = 1 + float(redshift[0])
    weights = latents.weights[row] * (1e17 / distance**2)
    gas = nebula(latents, row=row)
    # Sums, not matrix products: BLAS may add in another order elsewhere.
    continuum = (weights[:, None] * tables.galaxy_continuum).sum(axis=0)
    continuum[tables.galaxy_fine] = _broadened(
        continuum[tables.galaxy_fine], stellar_dispersion(float(latents.log_mass[row]))
    )
    halpha_nii = float((weights * np.maximum(tables.galaxy_halpha_nii, 0)).sum())
    wavelength = tables.galaxy_wavelength * stretch
    lines = gas.wavelength * stretch
    ebv = float(latents.ebv[row])
    sed = Sed(
        wavelength=wavelength,
        flux=continuum / stretch * transmission(wavelength, ebv),
        line_wavelength=lines,
        line_sigma=width(gas.sigma, lines),
        line_flux=gas.relative * gas.scatter * halpha_nii * transmission(lines, ebv),
    )
    return _scaled(sed, fluxes.total[row, : len(_GRIZ)])


def stellar_dispersion(log_mass: float) -> float:
    """Velocity dispersion of the stars within the fibre, km/s, after Zahid et al. (2016)."""
    return float(np.clip(10 ** (2.07 + 0.30 * (log_mass - 10.26)), 30, 350))


def _broadened(flux: Floats, sigma: float) -> Floats:
    """Blur samples of equal steps in log wavelength by ``sigma`` km/s."""
    pixels = sigma / SPEED_OF_LIGHT / load_tables().galaxy_step
    reach = int(np.ceil(3.5 * pixels))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / pixels) ** 2)
    padded = np.pad(flux, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def _scaled(sed: Sed, wanted: Floats) -> Sed:
    """Multiply by a smooth function so that the light in griz is what the catalog says."""
    ratio = np.append(wanted / band_fluxes(sed, _GRIZ), 1.0)
    factor = np.interp(sed.wavelength, _SCALE_WAVELENGTH, ratio)
    return Sed(
        wavelength=sed.wavelength,
        flux=sed.flux * factor,
        line_wavelength=sed.line_wavelength,
        line_sigma=sed.line_sigma,
        line_flux=sed.line_flux * np.interp(sed.line_wavelength, _SCALE_WAVELENGTH, ratio),
    )


def _model(sed: Sed, device: _Spectrograph, used: slice) -> Floats:
    """Noiseless spectrum at the spectrograph's resolution."""
    wavelength, pixel, lsf = device.wavelength[used], device.pixel[used], device.lsf[used]
    model = np.interp(wavelength, sed.wavelength, sed.flux, left=0, right=0)
    for center, sigma, flux in zip(sed.line_wavelength, sed.line_sigma, sed.line_flux, strict=True):
        place = int(np.searchsorted(wavelength, center))
        if not 0 < place < len(wavelength) or flux == 0:
            continue
        step = pixel[place]
        # Motion of the gas, line spread, and the width of the sample itself.
        total = np.sqrt(sigma**2 + (lsf[place] ** 2 + 1 / 12) * step**2)
        reach = int(6 * total / step) + 2
        near = slice(max(place - reach, 0), place + reach)
        profile = np.exp(-0.5 * ((wavelength[near] - center) / total) ** 2)
        model[near] += flux / (total * np.sqrt(2 * np.pi)) * profile
    return model


def _samples(kind: Kind, device: _Spectrograph, rng: np.random.Generator) -> slice:
    """All samples of DESI; SDSS begins and ends a little differently from fibre to fibre."""
    if kind == "desi":
        return slice(0, len(device.wavelength))
    first, lost = rng.integers(0, 25, size=2)
    return slice(int(first), len(device.wavelength) - int(lost))


def _bad_samples(rng: np.random.Generator, flux: Floats, sigma: Floats) -> NDArray[np.bool_]:
    """Mark cosmic rays and bad columns, and spoil their flux in place."""
    bad = np.zeros(len(flux), dtype=bool)
    events = rng.poisson(_COSMIC_RAYS)
    starts = rng.integers(0, len(flux), size=events)
    ends = starts + rng.integers(1, 4, size=events)
    for start, end, height in zip(starts, ends, rng.exponential(30.0, size=events), strict=True):
        flux[start:end] += height * sigma[start:end]
        bad[start:end] = True
    if rng.random() < _BAD_COLUMN_CHANCE:
        start = int(rng.integers(0, len(flux) - 60))
        column = slice(start, start + int(rng.integers(10, 60)))
        flux[column] = 0
        bad[column] = True
    return bad


@lru_cache(maxsize=2)
def _spectrograph(kind: Kind) -> _Spectrograph:
    if kind == "desi":
        wavelength = 3600 + 0.8 * np.arange(7781, dtype=np.float64)
        pixel = np.full(len(wavelength), 0.8)
        lsf = _curve(wavelength, _DESI_LSF)
        throughput = _curve(wavelength, _DESI_THROUGHPUT)
        area, time, read_noise = 8.66e4, 1000.0, 7.0
    else:
        wavelength = np.power(10, 3.5785 + 1e-4 * np.arange(3880), dtype=np.float64)
        pixel = wavelength * 1e-4 * np.log(10)
        lsf = _curve(wavelength, _SDSS_LSF)
        throughput = _curve(wavelength, _SDSS_THROUGHPUT)
        area, time, read_noise = 3.58e4, 2700.0, 9.0
    photons = area * time * wavelength * 5.034e7 * pixel * 1e-17
    fibre = np.pi * (FIBRE_DIAMETER[kind] / 2) ** 2
    sky = (_SKY_CONTINUUM + _SKY_LINES * load_tables().sky[kind]) * fibre
    # A point source loses light at the fibre, the sky does not.
    electrons = photons * throughput * _FIBRE_ACCEPTANCE[kind]
    return _Spectrograph(
        wavelength=wavelength,
        pixel=pixel,
        lsf=lsf,
        electrons=electrons,
        background=photons * throughput * sky + read_noise**2,
    )


def _curve(wavelength: Floats, nodes: tuple[tuple[float, float], ...]) -> Floats:
    at, value = np.array(nodes).T
    return np.interp(wavelength, at, value)
