"""Galaxies that never were: what they are, and how bright they look.

Redshift and mass follow a mass function in comoving volume; colours are mixes of the five
kcorrect templates, taken from fits to real SDSS galaxies; sizes follow van der Wel et al. (2014).
Fluxes are *as observed*: dimmed by the dust of the Milky Way, as in the sweep files of the Legacy
Surveys, with E(B-V) beside them. :func:`deredden` undoes it.

Every number of an object depends on (seed, index) alone, so any chunking gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import as_file, files

import numpy as np
from astropy import units
from astropy.cosmology import FlatLambdaCDM
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BANDS = ("g", "r", "i", "z", "W1", "W2", "W3", "W4")
"""Order of every flux array here."""
EXTINCTION = np.array([3.214, 2.165, 1.592, 1.211, 0.184, 0.113, 0.0241, 0.00910])
"""Magnitudes per E(B-V), Legacy Surveys DR10 catalog description."""
MAGNITUDE_LIMIT = 21.0
"""Dereddened z band, AB: the cut of the Multimodal Universe."""
COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3)

_UNIFORMS, _NORMALS = 8, 14
_LATENT_STREAM = 0
_QUIESCENT_COLOR = 0.68  # rest-frame g - r that parts the two sequences of the real mixes
_LOG_MASS = np.linspace(7.5, 12.5, 201)
_QUANTILES = np.linspace(0, 1, 513)


def object_rng(*, seed: int, index: int, stream: int) -> np.random.Generator:
    """Random numbers of one object; streams of one object never overlap."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


def object_numbers(
    index: NDArray[np.int64], *, seed: int, stream: int, uniforms: int, normals: int
) -> tuple[Floats, Floats]:
    """Uniform (n, uniforms) and normal (n, normals) random numbers of n objects."""
    uniform, normal = np.empty((len(index), uniforms)), np.empty((len(index), normals))
    for row, number in enumerate(index):
        rng = object_rng(seed=seed, index=int(number), stream=stream)
        rng.random(out=uniform[row])
        rng.standard_normal(out=normal[row])
    return uniform, normal


@dataclass(frozen=True, kw_only=True)
class GalaxyTemplates:
    """Broad-band fluxes of templates over redshift, and mixes of them that real galaxies show."""

    redshift: Floats
    """Equidistant grid from 0, shape (redshift,)."""
    flux: Floats
    """Nanomaggies at 10 pc per solar mass formed, shape (redshift, band, template)."""
    mass_remaining: Floats
    """Solar masses left per solar mass formed, shape (template,)."""
    mass_recent: Floats
    """Share of the mass that formed in the last Gyr, shape (template,)."""
    mix: Floats
    """Mass formed per solar mass left, shape (galaxy, template)."""
    mix_log_mass: Floats
    """Log10 of solar masses left, shape (galaxy,)."""
    mix_redshift: Floats
    """Redshift of the galaxy that gave the mix, shape (galaxy,)."""
    provenance: str

    @cached_property
    def mix_is_quiescent(self) -> NDArray[np.bool_]:
        """Whether a mix lies on the red sequence, shape (galaxy,)."""
        g, r = (self.flux[0, band] for band in (0, 1))
        color = -2.5 * np.log10((self.mix * g).sum(axis=1) / (self.mix * r).sum(axis=1))
        return np.asarray(color > _QUIESCENT_COLOR)

    @cached_property
    def comoving_distance(self) -> Floats:
        """Megaparsec on the redshift grid."""
        return np.asarray(COSMOLOGY.comoving_distance(self.redshift).value)

    def fluxes(self, weights: Floats, redshift: Floats) -> Floats:
        """Nanomaggies at Earth, without dust, of mixes in solar masses formed.

        Shapes: weights (n, template), redshift (n,), result (n, band).
        """
        step = self.redshift[1]
        low = np.clip((redshift / step).astype(int), 0, len(self.redshift) - 2)
        part = (redshift / step - low)[:, None, None]
        table = self.flux[low] * (1 - part) + self.flux[low + 1] * part
        distance = luminosity_distance(redshift, templates=self) * 1e5  # in units of 10 pc
        # A sum, not a matrix product: BLAS may add in another order for another batch size.
        return np.asarray((table * weights[:, None, :]).sum(axis=-1) / distance[:, None] ** 2)


@lru_cache(maxsize=1)
def load_templates() -> GalaxyTemplates:
    """Read the table that ``tools/build_galaxy_templates.py`` made."""
    with as_file(files("skyvec.mock") / "galaxy_templates.npz") as path, np.load(path) as stored:
        arrays = {
            name: stored[name].astype(np.float64)
            for name in (
                *("redshift", "flux", "mass_remaining", "mass_recent"),
                *("mix", "mix_log_mass", "mix_redshift"),
            )
        }
        return GalaxyTemplates(provenance=str(stored["provenance"]), **arrays)


def luminosity_distance(redshift: Floats, *, templates: GalaxyTemplates) -> Floats:
    """Megaparsec; interpolates the comoving distance, which is smooth near zero."""
    comoving = np.interp(redshift, templates.redshift, templates.comoving_distance)
    return np.asarray(comoving * (1 + redshift))


@dataclass(frozen=True, kw_only=True)
class GalaxyLatents:
    """What n galaxies are; every array has n rows."""

    index: NDArray[np.int64]
    redshift: Floats
    log_mass: Floats
    """Log10 of solar masses in stars."""
    log_ssfr: Floats
    """Log10 of star formation per stellar mass, 1/yr, mean of the last Gyr; -13 at least."""
    weights: Floats
    """Solar masses formed by template, shape (n, template)."""
    ebv: Floats
    """Galactic E(B-V), mag."""
    bulge_fraction: Floats
    """Share of the r-band light that the bulge may take; see Photometry.bulge_fraction."""
    disc_radius: Floats
    """Half-light semi-major axis, arcsec."""
    bulge_radius: Floats
    """Half-light semi-major axis, arcsec."""
    disc_axis_ratio: Floats
    bulge_axis_ratio: Floats
    position_angle: Floats
    """Of the major axis, radians from north through east, 0 to pi."""
    seeing: Floats
    """FWHM of the PSF over its survey median, common to all bands."""
    position: Floats
    """Place in the footprint, two numbers between 0 and 1, shape (n, 2)."""

    def __len__(self) -> int:
        """Count the galaxies."""
        return len(self.index)


@dataclass(frozen=True, kw_only=True)
class Photometry:
    """Noiseless nanomaggies as observed, behind the dust of the Milky Way; shape (n, band)."""

    bulge: Floats
    disc: Floats

    @property
    def total(self) -> Floats:
        """Nanomaggies of the galaxy."""
        return self.bulge + self.disc

    @property
    def bulge_fraction(self) -> Floats:
        """Share of the r-band light in the bulge, shape (n,)."""
        r = BANDS.index("r")
        return np.asarray(self.bulge[:, r] / self.total[:, r])


def draw_latents(
    indices: Iterable[int], *, seed: int, templates: GalaxyTemplates | None = None
) -> GalaxyLatents:
    """Draw the galaxies with these indices; faint ones too, see :func:`is_selected`."""
    templates = templates or load_templates()
    index = np.fromiter(indices, dtype=np.int64)
    uniform, normal = object_numbers(
        index, seed=seed, stream=_LATENT_STREAM, uniforms=_UNIFORMS, normals=_NORMALS
    )
    redshift, log_mass = _redshift_and_mass(uniform[:, 0], uniform[:, 1])
    quiescent = uniform[:, 2] < _quiescent_fraction(log_mass, redshift)
    weights = _weights(redshift, log_mass, quiescent, normal, templates=templates)
    recent = (weights * templates.mass_recent).sum(axis=1) / 1e9
    kiloparsec = luminosity_distance(redshift, templates=templates) / (1 + redshift) ** 2
    arcsec = 1 / (kiloparsec * 1e3 * units.arcsec.to(units.rad))
    disc_kpc, bulge_kpc = _radii(redshift, log_mass, normal[:, 8], normal[:, 9])
    thickness = 0.2  # intrinsic axis ratio of a disc
    inclination = uniform[:, 3]  # cosine, flat for random directions
    fraction = np.where(quiescent, 0.65, 0.12) + 0.12 * (log_mass - 10.5) + 0.15 * normal[:, 10]
    return GalaxyLatents(
        index=index,
        redshift=redshift,
        log_mass=log_mass,
        log_ssfr=np.log10(np.maximum(recent / 10**log_mass, 1e-13)),
        weights=weights,
        ebv=galactic_ebv(uniform[:, 6:8], normal[:, 11]),
        bulge_fraction=fraction.clip(0, 1),
        disc_radius=disc_kpc * arcsec,
        bulge_radius=bulge_kpc * arcsec,
        disc_axis_ratio=np.sqrt(inclination**2 * (1 - thickness**2) + thickness**2),
        bulge_axis_ratio=0.55 + 0.45 * uniform[:, 4],
        position_angle=np.pi * uniform[:, 5],
        seeing=np.exp(0.08 * normal[:, 12]),
        position=uniform[:, 6:8],
    )


def photometry(latents: GalaxyLatents, *, templates: GalaxyTemplates | None = None) -> Photometry:
    """Fluxes of bulge and disc; the bulge takes old stars only, so discs are bluer."""
    templates = templates or load_templates()
    old = np.where(templates.mass_recent < 0.1, latents.weights, 0.0)
    total = templates.fluxes(latents.weights, latents.redshift)
    bulge = templates.fluxes(old, latents.redshift)
    r = BANDS.index("r")
    share = latents.bulge_fraction * total[:, r] / np.maximum(bulge[:, r], 1e-30)
    dust = extinction(latents.ebv)
    bulge *= share.clip(0, 1)[:, None]
    return Photometry(bulge=bulge * dust, disc=(total - bulge) * dust)


def extinction(ebv: Floats) -> Floats:
    """Share of the light that passes the dust of the Milky Way, shape (n, band)."""
    return np.asarray(10 ** (-0.4 * ebv[:, None] * EXTINCTION))


def deredden(flux: Floats, ebv: Floats) -> Floats:
    """Fluxes (n, band) as they would be without the dust of the Milky Way."""
    return np.asarray(flux / extinction(ebv))


def is_selected(latents: GalaxyLatents, fluxes: Photometry) -> NDArray[np.bool_]:
    """Whether a galaxy is brighter than the survey's limit, shape (n,)."""
    z = deredden(fluxes.total, latents.ebv)[:, BANDS.index("z")]
    return np.asarray(z > 10 ** (0.4 * (22.5 - MAGNITUDE_LIMIT)))


@lru_cache(maxsize=1)
def _population() -> tuple[Floats, Floats, Floats]:
    """Redshifts, their cumulative distribution, and log-mass quantiles at each of them.

    Masses too small to reach the magnitude limit are left out, else most draws would be lost.
    The limit uses the light per mass that only one real mix in a hundred exceeds.
    """
    templates = load_templates()
    redshift = np.linspace(0.01, 1.45, 289)
    light = np.array(
        [
            np.percentile(templates.fluxes(templates.mix, np.full(len(templates.mix), z))[:, 3], 99)
            for z in redshift
        ]
    )
    faintest = 0.4 * (22.5 - MAGNITUDE_LIMIT) - np.log10(light)
    volume = COSMOLOGY.differential_comoving_volume(redshift).value
    density = _mass_function(_LOG_MASS) * (faintest[:, None] <= _LOG_MASS)
    number = volume * density.sum(axis=1) * (1 + redshift) ** -0.6
    cumulative = np.cumsum((number[1:] + number[:-1]) / 2)
    cumulative = np.concatenate([[0.0], cumulative]) / cumulative[-1]
    mass_cumulative = np.cumsum(density, axis=1)
    quantiles = np.array(
        [np.interp(_QUANTILES, row / row[-1], _LOG_MASS) for row in mass_cumulative]
    )
    return redshift, cumulative, quantiles


def _mass_function(log_mass: Floats) -> Floats:
    """Local galaxies per Mpc^3 and dex, Baldry et al. (2012), double Schechter."""
    x = 10 ** (log_mass - 10.66)
    return np.asarray(np.exp(-x) * (3.96e-3 * x**-0.35 + 0.79e-3 * x**-1.47) * x)


def _redshift_and_mass(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    grid, cumulative, quantiles = _population()
    redshift = np.interp(first, cumulative, grid)
    row = (redshift - grid[0]) / (grid[1] - grid[0])
    column = second * (len(_QUANTILES) - 1)
    i = np.minimum(row.astype(int), len(grid) - 2)
    j = np.minimum(column.astype(int), len(_QUANTILES) - 2)
    y, x = row - i, column - j
    low = quantiles[i, j] * (1 - x) + quantiles[i, j + 1] * x
    high = quantiles[i + 1, j] * (1 - x) + quantiles[i + 1, j + 1] * x
    return redshift, np.asarray(low * (1 - y) + high * y)


def _quiescent_fraction(log_mass: Floats, redshift: Floats) -> Floats:
    """Rise with mass and with time, after Moustakas et al. (2013)."""
    return np.asarray(1 / (1 + np.exp(-(log_mass - 10.45 - 0.45 * redshift) / 0.3)))


def _weights(
    redshift: Floats,
    log_mass: Floats,
    quiescent: NDArray[np.bool_],
    normal: Floats,
    *,
    templates: GalaxyTemplates,
) -> Floats:
    """Take the mix of a real galaxy of like mass and kind, perturb it, scale it to the mass."""
    chosen = np.empty(len(log_mass), dtype=np.int64)
    for kind in (True, False):
        members = np.flatnonzero(templates.mix_is_quiescent == kind)
        members = members[np.argsort(templates.mix_log_mass[members], kind="stable")]
        wanted = log_mass + 0.25 * normal[:, 0]
        # Below the smallest real galaxies everybody would get the same mix: spread over the first.
        wanted = np.maximum(
            wanted, templates.mix_log_mass[members[len(members) // 8]] + 0.3 * normal[:, 1]
        )
        place = np.searchsorted(templates.mix_log_mass[members], wanted)
        chosen = np.where(quiescent == kind, members[place.clip(0, len(members) - 1)], chosen)
    weights = templates.mix[chosen] * np.exp(0.15 * normal[:, 2:7])
    younger = ((1 + redshift) / (1 + templates.mix_redshift[chosen])) ** 1.5
    growth = np.where(quiescent, 1.0, younger)[:, None]
    weights = weights * np.where(templates.mass_recent > 0.1, growth, 1.0)
    left = (weights * templates.mass_remaining).sum(axis=1)
    return np.asarray(weights * (10**log_mass / left)[:, None])


def _radii(
    redshift: Floats, log_mass: Floats, disc_normal: Floats, bulge_normal: Floats
) -> tuple[Floats, Floats]:
    """Half-light radii of disc and bulge in kpc, van der Wel et al. (2014), table 1."""
    mass = log_mass - np.log10(5e10)
    aged = np.log10((1 + redshift) / 1.25)
    disc = 0.86 + 0.25 * mass - 0.75 * aged + 0.16 * disc_normal
    # Small early types do not shrink further: their relation flattens below 1e10 solar masses.
    bulge = 0.60 + 0.75 * np.maximum(mass, -0.7) - 1.48 * aged + 0.10 * bulge_normal
    return np.asarray(10**disc), np.asarray(10**bulge)


def galactic_ebv(position: Floats, normal: Floats) -> Floats:
    """Smooth clouds over the footprint, median 0.045 mag, with 5% of scatter."""
    x, y = 2 * np.pi * position.T
    clouds = 0.35 * np.sin(x + 0.7) + 0.30 * np.cos(2 * y - x) + 0.15 * np.sin(5 * x + 3 * y)
    return np.asarray(0.045 * np.exp(clouds + 0.05 * normal))
