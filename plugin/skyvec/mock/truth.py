"""The truth beside the mock surveys: what every object is, who holds it, what happened to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.mock.bands import HSC_BANDS, SDSS_BANDS
from skyvec.mock.footprints import flaws_of, held_by
from skyvec.mock.galaxies import BANDS, GalaxyLatents
from skyvec.mock.objects import Objects, describe
from skyvec.mock.quasars import QuasarLatents
from skyvec.mock.sky import Change, Fate, Kind, Sky
from skyvec.mock.stars import StarLatents
from skyvec.mock.survey_ids import desi_ids, gaia_ids, hsc_ids, legacy_ids, object_ids, sdss_ids
from skyvec.releases.ids import canonical_ids

TRUTH_FILE = "objects.parquet"
CHUNK = 4096

_SHAPES = ("bulge_radius", "disc_radius", "bulge_axis_ratio", "disc_axis_ratio", "position_angle")
_MOTIONS = ("pm_ra", "pm_dec", "parallax")
_STAR = ("teff", "logg", "feh", "radial_velocity")


def write_truth(path: Path, sky: Sky, *, seed: int, release: int, surveys: tuple[str, ...]) -> int:
    """Write one Parquet file with a row for every object, the withdrawn included.

    Parameters
    ----------
    surveys
        Those that were written: the others hold nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    try:
        for first in range(0, len(sky), CHUNK):
            part = sky[first : first + CHUNK]
            table = truth_table(part, seed=seed, release=release, surveys=surveys)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer:
            writer.close()
    return len(sky)


def truth_table(sky: Sky, *, seed: int, release: int, surveys: tuple[str, ...]) -> pa.Table:
    """Truth of these objects, in their order.

    Fluxes are noiseless nanomaggies behind the dust of the Milky Way. Galaxies are a bulge
    (de Vaucouleurs, Sersic index 4) and a disc (exponential, Sersic index 1) with one position
    angle, radians from north through east; radii are half-light semi-major axes in arcsec.
    """
    objects = describe(sky, seed=seed)
    columns: dict[str, pa.Array] = {
        "object_id": pa.array(object_ids(sky.key, seed=seed)),
        "kind": _names(Kind, sky.kind),
        "ra": pa.array(sky.ra),
        "dec": pa.array(sky.dec),
        "redshift": _number(objects.redshift),
        "log_mass": _number(objects.log_mass),
        "log_ssfr": _number(objects.log_ssfr),
        "bulge_fraction": _number(
            np.where(objects.is_point, np.nan, objects.legacy.bulge_fraction)
        ),
        **{name: _number(getattr(objects, name)) for name in _SHAPES},
        "ebv": _number(objects.ebv),
        **{name: _number(getattr(objects, name)) for name in _MOTIONS},
        **_of_kinds(objects),
        **_fluxes(objects),
        **_holdings(objects, seed=seed, surveys=surveys),
        **_flaws(sky, seed=seed),
        "first_release": pa.array(np.where(sky.fate == Fate.ADDED, release, 1).astype(np.int32)),
        "fate": _names(Fate, sky.fate),
        "change": _names(Change, sky.change),
    }
    return pa.table(columns)


def _number(values: NDArray[np.generic]) -> pa.Array:
    """Numbers, null where there is none."""
    return pa.array(values, from_pandas=True)


def _names(words: type[Kind | Fate | Change], values: NDArray[np.int8]) -> pa.Array:
    return pa.array([words(int(value)).name.lower() for value in values])


def _of_kinds(objects: Objects) -> dict[str, pa.Array]:
    """What only galaxies, stars or quasars have."""
    count = len(objects)
    found = {name: np.full(count, np.nan) for name in (*_STAR, "quasar_slope")}
    weights: list[list[float] | None] = [None] * count
    for rows, latents in objects.latents.values():
        if isinstance(latents, StarLatents):
            for name in _STAR:
                found[name][rows] = getattr(latents, name)
        elif isinstance(latents, QuasarLatents):
            found["quasar_slope"][rows] = latents.slope
        elif isinstance(latents, GalaxyLatents):
            for row, masses in zip(rows, latents.weights, strict=True):
                weights[row] = masses.tolist()
    return {
        **{name: _number(values) for name, values in found.items()},
        "template_masses": pa.array(weights, type=pa.list_(pa.float64())),
    }


def _fluxes(objects: Objects) -> dict[str, pa.Array]:
    legacy = zip(BANDS, objects.legacy.total.T, strict=True)
    hsc = zip(HSC_BANDS, objects.hsc.total.T, strict=True)
    sdss = zip(SDSS_BANDS, objects.sdss.T, strict=True)
    return {
        **{f"flux_{band.lower()}": pa.array(flux) for band, flux in legacy},
        **{f"hsc_flux_{band}": pa.array(flux) for band, flux in hsc},
        **{f"sdss_flux_{band}": pa.array(flux) for band, flux in sdss},
        "gaia_g_mag": _number(objects.gaia_g),
    }


def _holdings(objects: Objects, *, seed: int, surveys: tuple[str, ...]) -> dict[str, pa.Array]:
    """The id under which each survey holds an object now, null where it does not.

    As text: readers that know no null integers would take numbers through float64.
    """
    sky = objects.sky
    held = held_by(objects, seed=seed)
    ids: dict[str, NDArray[np.generic]] = {
        "legacysurvey": legacy_ids(sky),
        "hsc": hsc_ids(sky, seed=seed),
        "sdss": sdss_ids(sky, seed=seed),
        "desi": desi_ids(sky),
        "gaia": gaia_ids(sky),
    }
    gone = sky.fate == Fate.WITHDRAWN
    return {
        f"{survey}_id": pa.array(
            canonical_ids(values),
            mask=~held[survey] | gone | np.full(len(sky), survey not in surveys),
        )
        for survey, values in ids.items()
    }


def _flaws(sky: Sky, *, seed: int) -> dict[str, pa.Array]:
    """What went wrong, whether or not the survey was written."""
    flaws = flaws_of(sky, seed=seed)
    missing = [
        "".join(band for band, gone in zip(HSC_BANDS, row, strict=True) if gone)
        for row in flaws.hsc_no_band
    ]
    return {
        "hsc_missing_bands": pa.array(missing),
        "hsc_cut": pa.array(flaws.hsc_cut),
        "legacysurvey_cut": pa.array(flaws.legacy_cut),
        "desi_failed": pa.array(flaws.desi_failed),
        "sdss_failed": pa.array(flaws.sdss_failed),
        "desi_no_photometry": pa.array(flaws.desi_no_photometry),
        "gaia_position_only": pa.array(flaws.gaia_position_only),
    }
