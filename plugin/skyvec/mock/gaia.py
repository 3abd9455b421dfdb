"""Objects as Gaia DR3 lists them, in the columns of the Multimodal Universe."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.footprints import Flaws
from skyvec.mock.gaia_xp import VEGA_ZERO_POINT, observe_parallax, observe_xp
from skyvec.mock.galaxies import Floats, object_rng
from skyvec.mock.objects import Objects
from skyvec.mock.places import EPOCH, SCATTER, positions
from skyvec.mock.sky import Kind
from skyvec.mock.stars import StarLatents
from skyvec.mock.survey_ids import gaia_ids

RADIAL_VELOCITY_LIMIT = 14.0
"""G beyond which no radial velocity is published."""

_XP_STREAM, _ASTROMETRY_STREAM = 13, 14
_FULL, _POSITION_ONLY = 31, 3  # astrometric_params_solved
_FLUX_ERROR = 2e-3  # of the mean fluxes, as one share
_OBLIQUITY = np.radians(23.4392911)
_ASTROMETRIC = ("ra", "dec", "parallax", "pmra", "pmdec")
_NOT_SIMULATED = (
    *(f"{name}_gspphot" + end for name in ("ag", "azero", "distance", "ebpminrp")
      for end in ("", "_lower", "_upper")),
    *("rv_template_teff", "rv_template_logg", "rv_template_fe_h", "radial_velocity_error"),
    *("nu_eff_used_in_astrometry", "pseudocolour", "grvs_mag", "phot_bp_rp_excess_factor"),
)  # fmt: skip
"""Columns that readers of Gaia in the Multimodal Universe ask for; NaN throughout."""
_Columns = dict[str, NDArray[np.generic]]


def gaia_batch(objects: Objects, flaws: Flaws, *, seed: int) -> _Columns:
    """Columns of these stars and quasars, ids and positions first; 1.1 kB each."""
    ra, dec = positions(objects, "gaia", seed=seed)
    g = objects.gaia_g
    observed = [
        observe_xp(sed, rng=_rng(objects, row, _XP_STREAM, seed=seed), g_mag=float(g[row]))
        for row, sed in enumerate(objects.seds())
    ]
    fluxes = {
        band: np.array([getattr(one, f"{band}_flux") for one in observed])
        for band in ("g", "bp", "rp")
    }
    magnitudes = {
        band: VEGA_ZERO_POINT[band.upper()] - 2.5 * np.log10(np.maximum(flux, 1e-3))
        for band, flux in fluxes.items()
    }
    return {
        "source_id": gaia_ids(objects.sky),
        "ra": ra,
        "dec": dec,
        "ref_epoch": np.full(len(objects), EPOCH["gaia"]),
        "ra_error": np.full(len(objects), 1000 * SCATTER["gaia"], np.float32),
        "dec_error": np.full(len(objects), 1000 * SCATTER["gaia"], np.float32),
        "coeff": np.stack([one.coeff for one in observed]),
        "coeff_error": np.stack([one.coeff_error for one in observed]),
        **{f"phot_{band}_mean_flux": flux for band, flux in fluxes.items()},
        **{f"phot_{band}_mean_mag": mag.astype(np.float32) for band, mag in magnitudes.items()},
        **{
            f"{blue}_{red}": (magnitudes[blue] - magnitudes[red]).astype(np.float32)
            for blue, red in (("bp", "rp"), ("bp", "g"), ("g", "rp"))
        },
        **{
            f"phot_{band}_mean_flux_error": (_FLUX_ERROR * flux).astype(np.float32)
            for band, flux in fluxes.items()
        },
        **_ecliptic(ra, dec),
        **_astrometry(objects, flaws.gaia_position_only, seed=seed),
        **_parameters(objects, seed=seed),
        **{name: np.full(len(objects), np.nan, np.float32) for name in _NOT_SIMULATED},
    }


def _ecliptic(ra: Floats, dec: Floats) -> _Columns:
    """Degrees, for the obliquity of J2000."""
    lon, lat = np.radians(ra), np.radians(dec)
    x, y, z = np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)
    turned_y = y * np.cos(_OBLIQUITY) + z * np.sin(_OBLIQUITY)
    turned_z = z * np.cos(_OBLIQUITY) - y * np.sin(_OBLIQUITY)
    return {
        "ecl_lon": np.degrees(np.arctan2(turned_y, x)) % 360,
        "ecl_lat": np.degrees(np.arcsin(turned_z)),
    }


def _astrometry(
    objects: Objects, position_only: NDArray[np.bool_], *, seed: int
) -> dict[str, NDArray[np.generic]]:
    rows = []
    for row, parallax in enumerate(objects.parallax):
        rng = _rng(objects, row, _ASTROMETRY_STREAM, seed=seed)
        g = float(objects.gaia_g[row])
        measured, error = observe_parallax(float(parallax), rng=rng, g_mag=g)
        motion = np.array([objects.pm_ra[row], objects.pm_dec[row]])
        rows.append((measured, error, *(motion + error * rng.standard_normal(2))))
    values: Floats = np.array(rows)
    values[position_only] = np.nan
    parallax, error, pm_ra, pm_dec = values.T
    return {
        "parallax": parallax,
        "parallax_error": error.astype(np.float32),
        "pmra": pm_ra,
        "pmra_error": error.astype(np.float32),
        "pmdec": pm_dec,
        "pmdec_error": error.astype(np.float32),
        "astrometric_params_solved": np.where(position_only, _POSITION_ONLY, _FULL).astype(np.int8),
        "ruwe": np.where(position_only, np.nan, 1.0).astype(np.float32),
        **{
            f"{one}_{other}_corr": np.zeros(len(parallax), np.float32)
            for one, other in combinations(_ASTROMETRIC, 2)
        },
    }


def _parameters(objects: Objects, *, seed: int) -> dict[str, NDArray[np.generic]]:
    """Temperatures, gravities, metallicities and velocities of stars; NaN for quasars."""
    count = len(objects)
    found = {
        name: np.full(count, np.nan, np.float32)
        for name in ("teff_gspphot", "logg_gspphot", "mh_gspphot", "radial_velocity")
    }
    rows, stars = objects.latents.get(Kind.STAR, (np.empty(0, np.int64), None))
    if isinstance(stars, StarLatents):
        for place, row in enumerate(rows):
            noise = _rng(objects, int(row), _ASTROMETRY_STREAM + 1, seed=seed).standard_normal(4)
            found["teff_gspphot"][row] = stars.teff[place] * (1 + 0.02 * noise[0])
            found["logg_gspphot"][row] = stars.logg[place] + 0.15 * noise[1]
            found["mh_gspphot"][row] = stars.feh[place] + 0.2 * noise[2]
            if objects.gaia_g[row] < RADIAL_VELOCITY_LIMIT:
                found["radial_velocity"][row] = stars.radial_velocity[place] + noise[3]
    errors = {
        "teff_gspphot": 0.02 * found["teff_gspphot"],
        "logg_gspphot": np.full(count, 0.15, np.float32),
        "mh_gspphot": np.full(count, 0.2, np.float32),
    }
    bounds = {
        f"{name}_{end}": (found[name] + sign * error).astype(np.float32)
        for name, error in errors.items()
        for end, sign in (("lower", -1), ("upper", 1))
    }
    return {**found, **bounds}


def _rng(objects: Objects, row: int, stream: int, *, seed: int) -> np.random.Generator:
    return object_rng(seed=seed, index=int(objects.sky.key[row]), stream=stream)
