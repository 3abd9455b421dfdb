"""Emission lines of the ionised gas of galaxies: how bright, where, how wide.

H-alpha with [N II] follows the young stars of the templates; [N II], [O III] and [O II] follow the
oxygen abundance that goes with the mass, the Balmer decrement the dust that goes with it. Galaxies
that form no stars show the weak lines of a LI(N)ER. Active nuclei are not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyvec.mock.galaxies import Floats, GalaxyLatents
from skyvec.mock.sed import SPEED_OF_LIGHT

_BALMER = {3971.198: 0.159, 4102.892: 0.259, 4341.692: 0.468, 4862.692: 1.0, 6564.632: 2.86}
"""Wavelength in vacuum: flux over that of H-beta, case B at 10,000 K."""
_QUENCHED = -11.2  # log10 of sSFR, 1/yr, below which old stars do the ionising


@dataclass(frozen=True, kw_only=True)
class Nebula:
    """Lines of one galaxy in its rest frame, shape (line,) each."""

    wavelength: Floats
    """Vacuum, Angstrom."""
    relative: Floats
    """Flux over that of H-alpha and both [N II] together, behind the galaxy's own dust."""
    scatter: float
    """Factor by which this galaxy's gas is brighter than its stars let expect."""
    sigma: float
    """Velocity dispersion of the gas, km/s."""


def nebula(latents: GalaxyLatents, *, row: int) -> Nebula:
    """Lines of one galaxy; their scatter depends on its seed and index alone."""
    # Its place is drawn for (seed, index): its bits are a key that the latents carry along.
    key = np.ascontiguousarray(latents.position[row]).view(np.uint64)
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(7)
    mass = float(latents.log_mass[row])
    oxygen = oxygen_abundance(mass) + 0.08 * normal[0]
    if latents.log_ssfr[row] > _QUENCHED:
        nitrogen = 10 ** np.clip((oxygen - 8.90) / 0.57 + 0.05 * normal[1], -1.8, -0.25)
        oxygen_3 = 10 ** (_main_sequence(float(np.log10(nitrogen))) + 0.08 * normal[2])
        oxygen_2 = np.clip(16.73 - 1.75 * (oxygen + 0.25), 0.3, 2.0) * 10 ** (0.05 * normal[3])
        sulphur_2, neutral = 0.35 * 10 ** (0.06 * normal[4]), 0.03
    else:
        nitrogen, oxygen_3 = 10 ** (0.05 + 0.1 * normal[1]), 10 ** (0.25 + 0.12 * normal[2])
        oxygen_2, sulphur_2, neutral = 2.5 * 10 ** (0.1 * normal[3]), 0.8, 0.2
    doublet = 1.35 + 0.08 * normal[5]  # [O II] 3729 over 3727, and alike in [S II]: thin gas
    lines = {
        wavelength: ratio / _BALMER[6564.632] for wavelength, ratio in _BALMER.items()
    } | _forbidden(
        nitrogen=float(nitrogen),
        oxygen_3=float(oxygen_3) / _BALMER[6564.632],
        oxygen_2=float(oxygen_2),
        sulphur_2=float(sulphur_2),
        neutral=neutral,
        doublet=float(doublet),
    )
    wavelength = np.array(sorted(lines))
    flux = np.array([lines[key] for key in sorted(lines)])
    # A of Cardelli et al. (1989) falls like this between [O II] and [S III].
    reddening = attenuation(mass) * ((wavelength / 6564.632) ** -1.2 - 1)
    flux *= 10 ** (-0.4 * reddening)
    red = (wavelength > 6545) & (wavelength < 6590)
    return Nebula(
        wavelength=wavelength,
        relative=flux / flux[red].sum(),
        scatter=float(10 ** (0.08 * normal[6])),
        sigma=gas_dispersion(latents, row=row),
    )


def oxygen_abundance(log_mass: float) -> float:
    """12 + log(O/H) of the gas, Curti et al. (2020)."""
    return float(8.793 - 0.28 / 1.2 * np.log10(1 + 10 ** (-1.2 * (log_mass - 10.02))))


def attenuation(log_mass: float) -> float:
    """Magnitudes at H-alpha by dust of the galaxy, Garn & Best (2010)."""
    x = np.clip(log_mass - 10, -1.5, 1.5)
    return float(np.clip(0.91 + 0.77 * x + 0.11 * x**2 - 0.09 * x**3, 0.05, None))


def gas_dispersion(latents: GalaxyLatents, *, row: int) -> float:
    """km/s: rotation seen at its inclination, and the turbulence of the gas."""
    rotation = 10 ** (2.0 + 0.25 * (float(latents.log_mass[row]) - 10))
    inclined = np.sqrt(max(1 - float(latents.disc_axis_ratio[row]) ** 2, 0.0) / 0.96)
    return float(np.hypot(25.0, 0.5 * rotation * inclined))


def width(sigma: float, wavelength: Floats) -> Floats:
    """Angstrom of a velocity dispersion in km/s."""
    return sigma / SPEED_OF_LIGHT * wavelength


def _main_sequence(log_nitrogen: float) -> float:
    """Log [O III] 5008 over H-beta of star-forming galaxies, Kewley et al. (2013)."""
    return float(np.clip(0.61 / (log_nitrogen + 0.08) + 1.1, -1.0, 0.85))


def _forbidden(
    *,
    nitrogen: float,
    oxygen_3: float,
    oxygen_2: float,
    sulphur_2: float,
    neutral: float,
    doublet: float,
) -> dict[float, float]:
    """Wavelength in vacuum: flux over H-alpha, without dust."""
    return {
        3727.092: oxygen_2 / (1 + doublet),
        3729.875: oxygen_2 * doublet / (1 + doublet),
        3869.86: 0.08 * oxygen_3 + 0.01,
        4960.295: oxygen_3 / 2.98,
        5008.240: oxygen_3,
        5877.25: 0.04,
        6302.046: neutral,
        6549.85: nitrogen / 3.05,
        6585.27: nitrogen,
        6718.29: sulphur_2 * doublet / (1 + doublet),
        6732.67: sulphur_2 / (1 + doublet),
        7137.77: 0.03,
        9071.1: 0.10,
        9533.2: 0.25,
    }
