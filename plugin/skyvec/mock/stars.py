"""Stars that never were: what they are, how far, how fast, and their light.

Two branches, main sequence and giants, of three populations (thin disc, thick disc, halo) with
their metallicities and motions. Luminosity follows from temperature, gravity and mass; distance
from it and the magnitude; parallax and proper motion from the distance. Spectra are MILES stars,
regressed on (Teff, [Fe/H]) along each branch, continued to the red by MaStar and to the blue by
STELIB, and beyond 3300 to 10,300 Angstrom by Planck's law: W1 to W4 of cool stars may be off by
some tenths of a magnitude. Their resolution is 2.5 Angstrom, coarser than DESI's.

Not simulated: binaries, variability, rotation, white dwarfs, the alpha elements, distances within
the dust (every star lies behind all of it).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import Floats, galactic_ebv, object_numbers
from skyvec.mock.sed import SPEED_OF_LIGHT, Sed, band_fluxes, load_tables, planck, transmission

G_ZERO_POINT = 25.8010446445
"""Gaia DR3, AB magnitude of 1 e-/s."""
G_VEGA = 25.6873668671 - G_ZERO_POINT
"""Gaia's magnitudes minus AB."""

_STREAM = 110
_UNIFORMS, _NORMALS = 8, 8
_BRIGHTEST, _FAINTEST, _SLOPE = 11.0, 19.5, 0.22  # counts per magnitude rise as 10^(slope G)
# Thin disc, thick disc, halo: share, mean and scatter of [Fe/H], hottest dwarf.
_SHARE_BRIGHT, _SHARE_FAINT = np.array([0.80, 0.17, 0.03]), np.array([0.25, 0.38, 0.37])
_FEH = np.array([-0.08, -0.60, -1.45])
_FEH_SCATTER = np.array([0.20, 0.25, 0.40])
_HOTTEST = np.array([11_500.0, 6500.0, 6600.0])
_VELOCITY_SCATTER = np.array([[35.0, 25, 20], [65, 45, 40], [140, 105, 95]])  # U, V, W km/s
_LAG = np.array([15.0, 50.0, 220.0])  # behind the local rotation
_SUN = np.array([11.1, 12.24, 7.25])  # its own motion, Schönrich et al. (2010)
_GIANT_SHARE, _GIANT_FADING = 0.35, 0.12  # at the brightest; as 10^(-fading G) from there
_KM_S_PER_MAS_KPC = 4.74047
_DUST_PROBE = 0.05


@dataclass(frozen=True, kw_only=True)
class StarLatents:
    """What n stars are; every array has n rows."""

    index: NDArray[np.int64]
    teff: Floats
    """Kelvin."""
    logg: Floats
    """Log10 of cm/s2."""
    feh: Floats
    is_giant: NDArray[np.bool_]
    log_luminosity: Floats
    """Log10 of solar luminosities."""
    log_distance: Floats
    """Log10 of parsec."""
    parallax_mas: Floats
    pm_ra: Floats
    """Proper motion in right ascension times cos(dec), mas/yr."""
    pm_dec: Floats
    """mas/yr."""
    radial_velocity: Floats
    """km/s."""
    magnitude: Floats
    """Gaia G (Vega), behind the dust of the Milky Way."""
    ebv: Floats
    """Galactic E(B-V), mag."""
    position: Floats
    """Place in the footprint, two numbers between 0 and 1, shape (n, 2)."""

    def __len__(self) -> int:
        """Count the stars."""
        return len(self.index)


def draw_stars(indices: Iterable[int], *, seed: int) -> StarLatents:
    """Draw the stars with these indices, between 11 and 19.5 in Gaia G."""
    index = np.fromiter(indices, dtype=np.int64)
    uniform, normal = object_numbers(
        index, seed=seed, stream=_STREAM, uniforms=_UNIFORMS, normals=_NORMALS
    )
    faint = _SLOPE * np.log(10) * (_FAINTEST - _BRIGHTEST)
    magnitude = _FAINTEST + np.log(uniform[:, 3] * (1 - np.exp(-faint)) + np.exp(-faint)) / (
        _SLOPE * np.log(10)
    )
    population = _population(uniform[:, 0], magnitude)
    feh = (_FEH[population] + _FEH_SCATTER[population] * normal[:, 0]).clip(-1.8, 0.4)
    giant = uniform[:, 1] < _GIANT_SHARE * 10 ** (-_GIANT_FADING * (magnitude - _BRIGHTEST))
    teff = np.where(
        giant,
        _giant_teff(uniform[:, 2], feh),
        _dwarf_teff(uniform[:, 2], _HOTTEST[population]),
    )
    logg = surface_gravity(teff, giant)
    log_luminosity = _log_luminosity(teff, logg, giant) + 0.04 * normal[:, 1]
    position = uniform[:, 4:6]
    ebv = galactic_ebv(position, normal[:, 2])
    log_distance = 1 + 0.2 * (magnitude - _absolute_g(teff, feh, giant, ebv) + 2.5 * log_luminosity)
    motion = normal[:, 3:6] * _VELOCITY_SCATTER[population] - _SUN
    motion[:, 1] -= _LAG[population]
    velocity = _rotated(motion, uniform[:, 6:8])
    per_mas = _KM_S_PER_MAS_KPC * 10 ** (log_distance - 3)
    return StarLatents(
        index=index,
        teff=teff,
        logg=logg,
        feh=feh,
        is_giant=giant,
        log_luminosity=log_luminosity,
        log_distance=log_distance,
        parallax_mas=10 ** (3 - log_distance),
        pm_ra=velocity[:, 0] / per_mas,
        pm_dec=velocity[:, 1] / per_mas,
        radial_velocity=velocity[:, 2],
        magnitude=magnitude,
        ebv=ebv,
        position=position,
    )


def photometry(latents: StarLatents) -> Floats:
    """Noiseless nanomaggies as observed, in the order of ``galaxies.BANDS``, shape (n, 8)."""
    return np.array([band_fluxes(sed) for sed in seds(latents)]).reshape(-1, 8)


def seds(latents: StarLatents) -> list[Sed]:
    """Spectrum of every row as it reaches the Earth, with the dust of the Milky Way."""
    return [_sed(latents, row=row) for row in range(len(latents))]


def surface_gravity(teff: Floats, giant: NDArray[np.bool_]) -> Floats:
    """Log g along the main sequence and the giant branch: where the templates were made."""
    dwarf = np.interp(teff, [3000, 4000, 5000, 5800, 6500, 8000], [5, 4.7, 4.55, 4.44, 4.2, 4.1])
    return np.where(giant, np.interp(teff, [3600, 4000, 4800, 5400], [0.6, 1.4, 2.6, 3.2]), dwarf)


def _sed(latents: StarLatents, *, row: int) -> Sed:
    tables = load_tables()
    flux = np.zeros(len(tables.star_wavelength))
    for node, metal, weight in _corners(
        float(latents.teff[row]), float(latents.feh[row]), giant=bool(latents.is_giant[row])
    ):
        flux += weight * tables.star_flux[node, metal]
    wavelength, flux = _continued(flux, float(latents.teff[row]))
    shifted = wavelength * (1 + float(latents.radial_velocity[row]) / SPEED_OF_LIGHT)
    brightness = 10 ** (latents.log_luminosity[row] - 2 * (latents.log_distance[row] - 1) + 17)
    return Sed(
        wavelength=shifted,
        flux=flux * brightness * transmission(shifted, float(latents.ebv[row])),
    )


def _corners(teff: float, feh: float, *, giant: bool) -> list[tuple[int, int, float]]:
    """Template nodes around a star, with weights that sum to one."""
    tables = load_tables()
    nodes = tables.giant_teff if giant else tables.dwarf_teff
    first = len(tables.dwarf_teff) if giant else 0
    i, x = _between(np.log(nodes), np.log(teff))
    j, y = _between(tables.star_feh, feh)
    return [
        (first + i, j, (1 - x) * (1 - y)),
        (first + i + 1, j, x * (1 - y)),
        (first + i, j + 1, (1 - x) * y),
        (first + i + 1, j + 1, x * y),
    ]


def _between(nodes: Floats, value: float) -> tuple[int, float]:
    place = int(np.clip(np.searchsorted(nodes, value) - 1, 0, len(nodes) - 2))
    part = (value - nodes[place]) / (nodes[place + 1] - nodes[place])
    return place, float(np.clip(part, 0, 1))


def _continued(flux: Floats, teff: float) -> tuple[Floats, Floats]:
    """Add Planck's law on both sides of the templates."""
    wavelength = load_tables().star_wavelength
    blue = np.geomspace(2000, wavelength[0], 30)[:-1]
    red = np.geomspace(wavelength[-1], 300_000, 240)[1:]
    first, last = slice(0, 100), slice(-150, None)
    head = planck(blue, teff) * (flux[first] / planck(wavelength[first], teff)).mean()
    tail = planck(red, teff) * (flux[last] / planck(wavelength[last], teff)).mean()
    return np.concatenate([blue, wavelength, red]), np.concatenate([head, flux, tail])


@lru_cache(maxsize=1)
def _node_magnitudes() -> Floats:
    """Gaia flux of one solar luminosity at 10 pc, bare and behind dust: (node, metal, 2)."""
    tables = load_tables()
    teff = np.concatenate([tables.dwarf_teff, tables.giant_teff])
    result = np.empty((len(teff), len(tables.star_feh), 2))
    for node, metal in np.ndindex(result.shape[:2]):
        wavelength, flux = _continued(
            tables.star_flux[node, metal].astype(float), float(teff[node])
        )
        for column, ebv in enumerate((0.0, _DUST_PROBE)):
            sed = Sed(wavelength=wavelength, flux=flux * 1e17 * transmission(wavelength, ebv))
            result[node, metal, column] = band_fluxes(sed, ("G",))[0]
    return result


def _absolute_g(teff: Floats, feh: Floats, giant: NDArray[np.bool_], ebv: Floats) -> Floats:
    """Gaia G of one solar luminosity at 10 pc, behind the dust in front of each star."""
    table = _node_magnitudes()
    flux = np.zeros((len(teff), 2))
    for row in range(len(teff)):
        corners = _corners(float(teff[row]), float(feh[row]), giant=bool(giant[row]))
        for node, metal, weight in corners:
            flux[row] += weight * table[node, metal]
    bare, dusty = (22.5 - 2.5 * np.log10(flux)).T
    return bare + (dusty - bare) * ebv / _DUST_PROBE + G_VEGA


def _log_luminosity(teff: Floats, logg: Floats, giant: NDArray[np.bool_]) -> Floats:
    """L = M T^4 / g in solar units."""
    mass = np.where(giant, 1.1, (teff / 5772) ** 2.0)
    return np.log10(mass) + 4 * np.log10(teff / 5772) - (logg - 4.438)


def _population(uniform: Floats, magnitude: Floats) -> NDArray[np.int64]:
    """Thin disc, thick disc or halo: the fainter, the farther from the plane."""
    part = ((magnitude - 13) / (_FAINTEST - 13)).clip(0, 1)[:, None]
    share = _SHARE_BRIGHT * (1 - part) + _SHARE_FAINT * part
    return (uniform[:, None] > np.cumsum(share, axis=1)[:, :2]).sum(axis=1)


def _dwarf_teff(uniform: Floats, hottest: Floats) -> Floats:
    """Magnitude-limited counts: few M dwarfs, many F and G, few A, none past the turn-off."""
    teff = np.array([3150, 3600, 4200, 4800, 5400, 5900, 6300, 6600, 7500, 9000, 11_500.0])
    share = np.array([0, 0.06, 0.15, 0.28, 0.46, 0.68, 0.86, 0.93, 0.975, 0.993, 1.0])
    return np.interp(uniform * np.interp(hottest, teff, share), share, teff)


def _giant_teff(uniform: Floats, feh: Floats) -> Floats:
    """Mostly around the red clump; metal-poor giants are hotter."""
    teff = np.interp(uniform, [0, 0.1, 0.35, 0.8, 1.0], [3800, 4150, 4550, 4950, 5300])
    return np.clip(teff - 120 * np.minimum(feh, 0), 3800, 5300)


def _rotated(motion: Floats, uniform: Floats) -> Floats:
    """Turn (U, V, W) to (along ra, along dec, radial), seen in a direction of its own."""
    sine = 2 * uniform[:, 0] - 1
    cosine = np.sqrt(1 - sine**2)
    angle = 2 * np.pi * uniform[:, 1]
    sin_a, cos_a = np.sin(angle), np.cos(angle)
    u, v, w = motion.T
    forward = cos_a * u + sin_a * v
    return np.stack(
        [-sin_a * u + cos_a * v, cosine * w - sine * forward, cosine * forward + sine * w], axis=1
    )
