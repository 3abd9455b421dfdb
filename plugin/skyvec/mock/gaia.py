"""Objects as Gaia DR3 lists them, in the columns of the Multimodal Universe."""

from __future__ import annotations

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
        "bp_rp": (magnitudes["bp"] - magnitudes["rp"]).astype(np.float32),
        **_astrometry(objects, flaws.gaia_position_only, seed=seed),
        **_parameters(objects, seed=seed),
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
    }


def _parameters(objects: Objects, *, seed: int) -> dict[str, NDArray[np.generic]]:
    """Temperatures, gravities, metallicities and velocities of stars; NaN for quasars."""
    count = len(objects)
    found = {
        name: np.full(count, np.nan, np.float32)
        for name in ("teff_gspphot", "logg_gspphot", "mh_gspphot", "radial_velocity")
    }
    rows, stars = objects.latents.get(Kind.STAR, (np.empty(0, np.int64), None))
    if not isinstance(stars, StarLatents):
        return dict(found)
    for place, row in enumerate(rows):
        rng = _rng(objects, int(row), _ASTROMETRY_STREAM + 1, seed=seed)
        noise = rng.standard_normal(4)
        found["teff_gspphot"][row] = stars.teff[place] * (1 + 0.02 * noise[0])
        found["logg_gspphot"][row] = stars.logg[place] + 0.15 * noise[1]
        found["mh_gspphot"][row] = stars.feh[place] + 0.2 * noise[2]
        if objects.gaia_g[row] < RADIAL_VELOCITY_LIMIT:
            found["radial_velocity"][row] = stars.radial_velocity[place] + noise[3]
    return dict(found)


def _rng(objects: Objects, row: int, stream: int, *, seed: int) -> np.random.Generator:
    return object_rng(seed=seed, index=int(objects.sky.key[row]), stream=stream)
