"""Quasars that never were: a broken power law, hot dust, Balmer continuum, lines, iron, forest.

Slopes and dust after Temple et al. (2021), line fluxes and widths after Vanden Berk et al. (2001),
both with scatter; iron as blends of its strongest multiplets; absorption by hydrogen between the
galaxies as the mean of Madau (1995), so the forest is grey, not made of lines. Not simulated: the
host galaxy, broad absorption lines, variability, velocity shifts between lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import Floats, galactic_ebv, object_numbers
from skyvec.mock.nebular import width
from skyvec.mock.sed import Sed, band_fluxes, planck, transmission

_STREAM = 120
_UNIFORMS, _NORMALS = 4, 8
_BREAK = 3880.0
# f_nu rises as nu to this power beyond the break: the disc with the host galaxy under it.
_RED_SLOPE = 0.0
_BALMER_EDGE, _BALMER_KELVIN, _BALMER_AT_3000 = 3646.0, 15_000.0, 0.10
_DUST_KELVIN, _DUST_AT_2_MICRON = 1243.0, 1.6  # flux of the hot dust over that of the disc
# Wavelength in vacuum, equivalent width and one sigma of the broad lines, Angstrom.
_BROAD = np.array(
    [
        *((1033.8, 9.8, 7.8), (1215.67, 80.0, 19.5), (1240.1, 12.0, 12.0), (1305.5, 1.7, 5.4)),
        *((1335.3, 0.6, 3.9), (1398.3, 8.1, 14.2), (1549.1, 23.8, 14.3), (1640.4, 3.0, 12.0)),
        *((1663.5, 0.5, 5.3), (1750.3, 0.4, 5.0), (1857.4, 0.8, 6.0), (1908.7, 21.2, 23.6)),
        *((2326.4, 2.0, 22.0), (2798.8, 32.3, 35.0), (4102.9, 5.1, 18.6), (4341.7, 12.6, 20.3)),
        *((4862.7, 46.2, 40.4), (5877.3, 4.9, 23.5), (6564.6, 194.5, 47.4), (10_833.0, 36.0, 75.0)),
        *((12_821.6, 15.0, 80.0), (18_756.0, 30.0, 120.0)),
    ]
)
# The same for iron: blends of its multiplets, ultraviolet and optical.
_IRON = np.array(
    [
        *((2380.0, 6.0, 60.0), (2480.0, 12.0, 80.0), (2600.0, 6.0, 60.0), (3200.0, 4.0, 90.0)),
        *((4515.0, 5.0, 30.0), (4570.0, 9.0, 35.0), (4629.0, 5.0, 30.0), (5190.0, 6.0, 35.0)),
        *((5275.0, 6.0, 35.0), (5330.0, 5.0, 35.0)),
    ]
)
_NARROW = np.array(
    [
        *((3426.8, 1.2), (3728.5, 1.6), (3869.9, 1.4), (4364.4, 0.5), (4960.3, 4.4)),
        *((5008.2, 13.2), (6549.9, 0.7), (6585.3, 2.1), (6718.3, 0.8), (6732.7, 0.8)),
    ]
)
_LYMAN = ((1215.67, 0.0036), (1025.72, 1.7e-3), (972.54, 1.2e-3), (949.74, 9.3e-4))
_LYMAN_LIMIT = 911.75


@dataclass(frozen=True, kw_only=True)
class QuasarLatents:
    """What n quasars are; every array has n rows."""

    index: NDArray[np.int64]
    redshift: Floats
    magnitude: Floats
    """AB in r, without the dust of the Milky Way."""
    slope: Floats
    """Of f_nu over nu, shortward of 3880 Angstrom."""
    line_strength: Floats
    """Equivalent widths over those of the composite."""
    line_width: Floats
    """Widths of the broad lines over those of the composite."""
    narrow_strength: Floats
    """Equivalent widths of the narrow lines over those of the composite."""
    iron_strength: Floats
    ebv: Floats
    """Galactic E(B-V), mag."""
    position: Floats
    """Place in the footprint, two numbers between 0 and 1, shape (n, 2)."""

    def __len__(self) -> int:
        """Count the quasars."""
        return len(self.index)


def draw_quasars(indices: Iterable[int], *, seed: int) -> QuasarLatents:
    """Draw the quasars with these indices, redshift 0.1 to 4, r between 16.5 and 22.5."""
    index = np.fromiter(indices, dtype=np.int64)
    uniform, normal = object_numbers(
        index, seed=seed, stream=_STREAM, uniforms=_UNIFORMS, normals=_NORMALS
    )
    redshift = _quantile(
        uniform[:, 0],
        [0.1, 0.5, 1.0, 1.5, 1.8, 2.2, 2.6, 3.0, 3.5, 4.0],
        [0.05, 0.30, 0.65, 1.0, 1.0, 0.75, 0.45, 0.22, 0.08, 0.02],
    )
    magnitude = _quantile(
        uniform[:, 1],
        [16.5, 18.0, 19.0, 20.0, 21.0, 22.0, 22.5],
        [0.01, 0.08, 0.3, 0.65, 1, 1, 0.6],
    )
    # Baldwin effect: the more luminous, the weaker the lines.
    luminous = (20.5 - magnitude) + 2.5 * (redshift - 1.6)
    return QuasarLatents(
        index=index,
        redshift=redshift,
        magnitude=magnitude,
        slope=-0.40 + 0.22 * normal[:, 0],
        line_strength=10 ** (0.14 * normal[:, 1] - 0.04 * luminous.clip(-3, 3)),
        line_width=10 ** (0.12 * normal[:, 2]),
        narrow_strength=10 ** (0.30 * normal[:, 3]),
        iron_strength=10 ** (0.20 * normal[:, 4]),
        ebv=galactic_ebv(uniform[:, 2:4], normal[:, 5]),
        position=uniform[:, 2:4],
    )


def photometry(latents: QuasarLatents) -> Floats:
    """Noiseless nanomaggies as observed, in the order of ``galaxies.BANDS``, shape (n, 8)."""
    return np.array([band_fluxes(sed) for sed in seds(latents)]).reshape(-1, 8)


def seds(latents: QuasarLatents) -> list[Sed]:
    """Spectrum of every row as it reaches the Earth, with the dust of the Milky Way."""
    return [_sed(latents, row=row) for row in range(len(latents))]


def igm_transmission(wavelength: Floats, redshift: float) -> Floats:
    """Mean share of the light that passes the hydrogen before a source, Madau (1995).

    ``wavelength`` ascends.
    """
    source = 1 + redshift
    passes = np.ones_like(wavelength)
    blue = wavelength[: np.searchsorted(wavelength, _LYMAN[0][0] * source)]
    tau = np.zeros_like(blue)
    for line, strength in _LYMAN:
        below = slice(0, np.searchsorted(blue, line * source))
        tau[below] += strength * (blue[below] / line) ** 3.46
    ionising = slice(0, np.searchsorted(blue, _LYMAN_LIMIT * source))
    limit = np.maximum(blue[ionising] / _LYMAN_LIMIT, 1.0)
    tau[ionising] += np.maximum(
        0.25 * limit**3 * (source**0.46 - limit**0.46)
        + 9.4 * limit**1.5 * (source**0.18 - limit**0.18)
        - 0.7 * limit**3 * (limit**-1.32 - source**-1.32)
        - 0.023 * (source**1.68 - limit**1.68),
        0,
    )
    passes[: len(blue)] = np.exp(-tau)
    return passes


def _sed(latents: QuasarLatents, *, row: int) -> Sed:
    rest = _rest_wavelength()
    redshift = float(latents.redshift[row])
    continuum = _continuum(rest, float(latents.slope[row]))
    flux = continuum * (1 + _broad_lines(rest, latents, row=row))
    wavelength, lines = rest * (1 + redshift), _NARROW[:, 0] * (1 + redshift)
    passes = igm_transmission(wavelength, redshift)
    at_lines = np.interp(_NARROW[:, 0], rest, continuum)
    equivalent = _NARROW[:, 1] * latents.narrow_strength[row] * (1 + redshift)
    bare = Sed(
        wavelength=wavelength,
        flux=flux * passes,
        line_wavelength=lines,
        line_sigma=width(220.0 * float(latents.line_width[row]), lines),
        line_flux=at_lines * equivalent,
    )
    wanted = 10 ** (0.4 * (22.5 - latents.magnitude[row]))
    factor = wanted / band_fluxes(bare, ("r",))[0]
    ebv = float(latents.ebv[row])
    return Sed(
        wavelength=wavelength,
        flux=bare.flux * factor * transmission(wavelength, ebv),
        line_wavelength=lines,
        line_sigma=bare.line_sigma,
        line_flux=bare.line_flux * factor * transmission(lines, ebv),
    )


@lru_cache(maxsize=1)
def _rest_wavelength() -> Floats:
    """150 km/s samples where there are lines, coarse ones beyond."""
    return np.concatenate(
        [np.exp(np.arange(np.log(650), np.log(20_000), 5e-4)), np.geomspace(20_000, 300_000, 400)]
    )


def _continuum(rest: Floats, slope: float) -> Floats:
    """f_lambda; that of the accretion disc is one at the break."""
    x = rest / _BREAK
    disc = np.where(x < 1, x ** (-2 - slope), x ** (-2 - _RED_SLOPE))
    # Flatter in the far ultraviolet.
    return disc * np.minimum(rest / 1200, 1.0) + _additions()


@lru_cache(maxsize=1)
def _additions() -> Floats:
    """Balmer continuum (Grandi 1982) and hot dust."""
    rest = _rest_wavelength()
    opaque = -np.expm1(-((rest / _BALMER_EDGE) ** 3))
    balmer = planck(rest, _BALMER_KELVIN) / planck(3000.0, _BALMER_KELVIN) * opaque / 0.427
    # The high Balmer lines pile up before the edge and make it soft.
    soft = np.exp(-0.5 * ((rest - _BALMER_EDGE) / 120.0) ** 2)
    at_edge = float(np.interp(_BALMER_EDGE, rest, balmer))
    balmer = np.where(rest < _BALMER_EDGE, balmer, at_edge * soft)
    disc_at_2_micron = (20_000.0 / _BREAK) ** (-2 - _RED_SLOPE)
    dust = planck(rest, _DUST_KELVIN) / planck(20_000.0, _DUST_KELVIN)
    return _BALMER_AT_3000 * balmer + _DUST_AT_2_MICRON * disc_at_2_micron * dust


def _broad_lines(rest: Floats, latents: QuasarLatents, *, row: int) -> Floats:
    """Excess over the continuum."""
    excess = np.zeros_like(rest)
    first, step = np.log(rest[0]), np.log(rest[1] / rest[0])
    for lines, strength in ((_BROAD, latents.line_strength), (_IRON, latents.iron_strength)):
        for center, equivalent, sigma in lines:
            spread = sigma * latents.line_width[row]
            place = int((np.log(center) - first) / step)
            reach = int(6 * spread / center / step) + 2
            near = slice(max(place - reach, 0), place + reach)
            offset = ((rest[near] - center) / spread) ** 2
            # A core on wings, as the broad lines of quasars are.
            profile = np.exp(-2.0 * offset) + np.exp(-0.25 * offset) / np.sqrt(8)
            excess[near] += equivalent * strength[row] / (spread * np.sqrt(2 * np.pi)) * profile
    return excess


def _quantile(uniform: Floats, at: list[float], density: list[float]) -> Floats:
    """Draw from a density that is linear between nodes."""
    grid = np.linspace(at[0], at[-1], 513)
    height = np.interp(grid, at, density)
    total = np.concatenate([[0.0], np.cumsum((height[1:] + height[:-1]) / 2)])
    return np.interp(uniform * total[-1], total, grid)
