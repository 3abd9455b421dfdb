"""Where each survey says an object is: its own epoch, and the errors of its astrometry."""

from __future__ import annotations

import numpy as np

from skyvec.mock.footprints import SURVEYS
from skyvec.mock.galaxies import Floats, object_rng
from skyvec.mock.objects import Objects

EPOCH = {"legacysurvey": 2019.0, "hsc": 2017.0, "sdss": 2005.0, "desi": 2019.0, "gaia": 2016.0}
"""Julian years of the positions; the true ones of a `Sky` are those of the Legacy Survey."""
SCATTER = {"legacysurvey": 0.0, "hsc": 0.050, "sdss": 0.100, "desi": 0.010, "gaia": 0.0002}
"""Of either coordinate, arcsec. The Legacy Survey is the frame of this sky."""

_PLACE_STREAM = 32


def offsets(objects: Objects, survey: str, *, seed: int) -> Floats:
    """Arcsec east and north from the true position to the one that a survey states, (n, 2)."""
    errors = np.empty((len(objects), 2))
    stream = _PLACE_STREAM + SURVEYS.index(survey)
    for row, key in enumerate(objects.sky.key):
        object_rng(seed=seed, index=int(key), stream=stream).standard_normal(out=errors[row])
    years = EPOCH[survey] - EPOCH["legacysurvey"]
    motion = np.stack([objects.pm_ra, objects.pm_dec], axis=1) / 1000
    return np.asarray(errors * SCATTER[survey] + motion * years)


def positions(objects: Objects, survey: str, *, seed: int) -> tuple[Floats, Floats]:
    """Right ascension and declination in degrees, as a survey states them."""
    east, north = offsets(objects, survey, seed=seed).T / 3600
    sky = objects.sky
    ra = sky.ra + east / np.cos(np.radians(sky.dec))
    return np.mod(ra, 360.0), np.clip(sky.dec + north, -90.0, 90.0)
