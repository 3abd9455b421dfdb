"""Where each survey looks and whom it takes: areas, magnitude cuts, completeness, failures.

Areas are rectangles in the numbers of `Sky.position`. Cuts follow those of the surveys (DESI: Bright Galaxy Survey, red galaxies, quasars, Milky Way stars; SDSS: main
galaxies, red galaxies, quasars, stars; Gaia: sources with published XP spectra).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.bands import HSC_BANDS, magnitudes
from skyvec.mock.galaxies import BANDS, Floats, deredden, object_rng
from skyvec.mock.objects import Objects
from skyvec.mock.sky import Kind, Sky

SURVEYS = ("legacysurvey", "hsc", "sdss", "desi", "gaia")
HSC_LIMIT = 22.5
"""I band, AB, as in the Multimodal Universe."""
GAIA_XP_LIMIT = 17.65
"""G, Vega: fainter sources have no published XP spectrum."""
FAILED_FIBRES = 0.015
"""Share of spectra without any signal."""
CUT_STAMPS = 0.02
"""Share of cutouts with the edge of the exposures in them."""
MISSING_BANDS = 0.15
"""Share of the bands without an exposure near the border of HSC's area, and nowhere else."""
HSC_BORDER = 0.02
"""Its width, in the unit of `Sky.position`."""
NO_PHOTOMETRY = 0.01
"""Share of DESI's targets from other lists than the Legacy Survey."""
TWO_PARAMETER_SOURCES = 0.03
"""Share of Gaia's sources with a position only."""

_TARGET_STREAM, _FLAW_STREAM = 19, 20


@dataclass(frozen=True, kw_only=True)
class Area:
    """A rectangle in a footprint whose sides run from 0 to 1."""

    u: tuple[float, float] = (-np.inf, np.inf)
    v: tuple[float, float] = (-np.inf, np.inf)

    def depth(self, position: Floats) -> Floats:
        """Distance of positions (n, 2) from the nearest side; negative outside."""
        x, y = position.T
        sides = [x - self.u[0], self.u[1] - x, y - self.v[0], self.v[1] - y]
        return np.asarray(np.min(sides, axis=0))


AREAS = {
    "legacysurvey": Area(),
    "hsc": Area(u=(0.0, 0.7), v=(0.2, 0.85)),
    "sdss": Area(v=(0.0, 0.8)),
    "desi": Area(u=(0.12, np.inf)),
    "gaia": Area(),
}


def is_covered(sky: Sky, survey: str) -> NDArray[np.bool_]:
    """Whether a survey looked there, shape (n,)."""
    return np.asarray(AREAS[survey].depth(sky.position) >= 0)


def held_by(objects: Objects, *, seed: int) -> dict[str, NDArray[np.bool_]]:
    """Survey -> which of the objects its release holds."""
    sky = objects.sky
    lottery = _uniforms(sky, seed=seed, stream=_TARGET_STREAM, count=2)
    taken = {
        "legacysurvey": ~objects.is_point,  # the Multimodal Universe leaves out TYPE = PSF
        "hsc": magnitudes(objects.hsc.total)[:, HSC_BANDS.index("i")] < HSC_LIMIT,
        "sdss": lottery[:, 0] < _sdss_completeness(objects),
        "desi": lottery[:, 1] < _desi_completeness(objects),
        "gaia": objects.gaia_g < GAIA_XP_LIMIT,
    }
    return {survey: taken[survey] & is_covered(sky, survey) for survey in SURVEYS}


def _colors(objects: Objects) -> tuple[Floats, Floats, Floats]:
    """Dereddened g, r and z."""
    found = magnitudes(deredden(objects.legacy.total, objects.ebv))
    g, r, z = (found[:, BANDS.index(band)] for band in "grz")
    return g, r, z


def _sdss_completeness(objects: Objects) -> Floats:
    g, r, _ = _colors(objects)
    kind = objects.sky.kind
    main, red = r < 17.77, (r < 19.2) & (g - r > 1.3)
    galaxies = np.select([main, red], [0.92, 0.3], 0.0)
    return np.select(
        [kind == Kind.GALAXY, (kind == Kind.STAR) & (r > 14.5) & (r < 19), kind == Kind.QUASAR],
        [galaxies, 0.15, np.where(r < 19.1, 0.9, 0.0)],
        0.0,
    )


def _desi_completeness(objects: Objects) -> Floats:
    _, r, z = _colors(objects)
    kind = objects.sky.kind
    bright, faint, red = r < 19.5, r < 20.175, (z < 20.7) & (r - z > 0.9)
    galaxies = np.select([bright, faint, red], [0.85, 0.6, 0.6], 0.0)
    return np.select(
        [kind == Kind.GALAXY, (kind == Kind.STAR) & (r > 16) & (r < 19), kind == Kind.QUASAR],
        [galaxies, 0.35, np.where(r < 22.7, 0.85, 0.0)],
        0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Flaws:
    """What went wrong when n objects were observed; every array has n rows."""

    hsc_no_band: NDArray[np.bool_]
    """Bands of HSC without any exposure, shape (n, band): near the border of its area."""
    legacy_cut: Floats
    """Share of the cutout beyond the edge of the exposures, 0 for most."""
    hsc_cut: Floats
    cut_side: NDArray[np.int64]
    """0 to 3: the edge is above, below, right, left."""
    desi_failed: NDArray[np.bool_]
    """Fibres without signal."""
    sdss_failed: NDArray[np.bool_]
    desi_no_photometry: NDArray[np.bool_]
    """Targets without fluxes, -99 in the columns of DESI."""
    gaia_position_only: NDArray[np.bool_]
    """Sources without parallax and proper motion."""


def flaws_of(sky: Sky, *, seed: int) -> Flaws:
    """Draw what went wrong; any chunking of a sky gives the same."""
    lottery = _uniforms(sky, seed=seed, stream=_FLAW_STREAM, count=9 + len(HSC_BANDS))
    border = AREAS["hsc"].depth(sky.position) < HSC_BORDER
    no_band = (lottery[:, 9:] < MISSING_BANDS) & border[:, None]
    no_band[no_band.all(axis=1), HSC_BANDS.index("i")] = False
    cut = 0.05 + 0.4 * lottery[:, :2]
    return Flaws(
        hsc_no_band=no_band,
        legacy_cut=np.where(lottery[:, 2] < CUT_STAMPS, cut[:, 0], 0.0),
        hsc_cut=np.where(lottery[:, 3] < CUT_STAMPS, cut[:, 1], 0.0),
        cut_side=(4 * lottery[:, 4]).astype(np.int64),
        desi_failed=lottery[:, 5] < FAILED_FIBRES,
        sdss_failed=lottery[:, 6] < FAILED_FIBRES,
        desi_no_photometry=lottery[:, 8] < NO_PHOTOMETRY,
        gaia_position_only=lottery[:, 7] < TWO_PARAMETER_SOURCES,
    )


def outside(size: int, *, share: float, side: int) -> NDArray[np.bool_]:
    """Pixels (size, size) beyond an edge that cuts off this share of a cutout."""
    lost = np.zeros((size, size), dtype=bool)
    width = round(share * size)
    if width:
        strip = (slice(-width, None), slice(0, width))[side % 2]
        lost[(strip, slice(None)) if side < 2 else (slice(None), strip)] = True
    return lost


def _uniforms(sky: Sky, *, seed: int, stream: int, count: int) -> Floats:
    found = np.empty((len(sky), count))
    for row, key in enumerate(sky.key):
        object_rng(seed=seed, index=int(key), stream=stream).random(out=found[row])
    return found
