"""The Legacy Survey in the columns of the Multimodal Universe: 160-pixel cutouts and sweep rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.camera import Cutout
from skyvec.mock.footprints import Flaws, outside
from skyvec.mock.galaxies import BANDS, EXTINCTION, MAGNITUDE_LIMIT, Floats
from skyvec.mock.legacy import Exposure, Measurement, expose
from skyvec.mock.objects import Objects
from skyvec.mock.places import positions
from skyvec.mock.render import IMAGE_BANDS, PIXEL_SCALE, Component
from skyvec.mock.survey_ids import bricks, legacy_ids

LISTED = 20
"""Sources of a cutout that its own little catalog has room for."""
DETECTED = 2.0
"""Sigma below which forced photometry in W1-W4 counts as no detection."""

_TYPES = {"PSF": 1, "REX": 2, "EXP": 3, "DEV": 4, "SER": 5, "DUP": 6}
_LISTED = ("FLUX_G", "FLUX_R", "FLUX_I", "FLUX_Z", "SHAPE_R", "SHAPE_E1", "SHAPE_E2")
_RGB_SCALE = np.array([2.2, 3.4, 6.0], np.float32)[:, None, None]
_Columns = dict[str, NDArray[np.generic]]


def legacy_batch(
    objects: Objects, flaws: Flaws, *, seed: int, size: int, core: int, first: int
) -> _Columns:
    """Columns of these objects, ids and positions first; 1.2 MB each at 160 pixels.

    Parameters
    ----------
    size
        Pixels along a side of a cutout.
    core
        Side of the cutouts in the main catalog, whose noise the middle of these repeats.
    first
        Place of the first object in its file.
    """
    ra, dec = positions(objects, "legacysurvey", seed=seed)
    exposures = [
        expose(objects, row, seed=seed, size=size, core=core) for row in range(len(objects))
    ]
    cutouts = [exposure.cutout() for exposure in exposures]
    lost = [
        outside(size, share=float(share), side=int(side))
        for share, side in zip(flaws.legacy_cut, flaws.cut_side, strict=True)
    ]
    return {
        "object_id": legacy_ids(objects.sky),
        "ra": ra,
        "dec": dec,
        "gid": first + np.arange(len(objects), dtype=np.int64),
        **_stamps(cutouts, lost),
        **_products(exposures, cutouts, lost, size=size),
        **_sweep(exposures, ra, dec),
    }


def _stamps(cutouts: list[Cutout], lost: list[NDArray[np.bool_]]) -> _Columns:
    count, gone = len(cutouts), np.stack(lost)
    return {
        "image_array": np.where(gone[:, None], 0, np.stack([c.flux for c in cutouts])),
        "image_ivar": np.where(gone[:, None], 0, np.stack([c.ivar for c in cutouts])),
        "image_mask": np.stack([c.mask[0] for c in cutouts]) & ~gone,
        "image_band": np.array([IMAGE_BANDS] * count, dtype="S5"),
        "image_psf_fwhm": np.stack([c.psf_fwhm for c in cutouts]),
        "image_scale": np.full((count, len(IMAGE_BANDS)), PIXEL_SCALE, np.float32),
    }


def _products(
    exposures: list[Exposure], cutouts: list[Cutout], lost: list[NDArray[np.bool_]], *, size: int
) -> _Columns:
    """Pictures, the mask of sources, and the little catalog of every cutout."""
    listed = [_listed(exposure) for exposure in exposures]
    names = (*_LISTED, "TYPE", "X", "Y")
    tables = {name: np.zeros((len(listed), LISTED), np.float32) for name in _LISTED}
    tables |= {name: np.zeros((len(listed), LISTED), np.int32) for name in names[len(_LISTED) :]}
    masks = np.zeros((len(listed), size, size), np.uint8)
    for row, sources in enumerate(listed):
        for source in sources:
            _paint(masks[row], source)
        # As in the builders: ascending in i, so that the faintest are kept.
        for place, source in enumerate(sorted(sources, key=lambda s: s["FLUX_I"])[:LISTED]):
            for name in names:
                tables[name][row, place] = source[name]
    return {
        "image_rgb": np.stack([_rgb(c.flux, g) for c, g in zip(cutouts, lost, strict=True)]),
        "blobmodel": np.stack([_rgb(c.model, g) for c, g in zip(cutouts, lost, strict=True)]),
        "object_mask": masks,
        **{f"catalog_{name}": values for name, values in tables.items()},
    }


def _listed(exposure: Exposure) -> list[dict[str, float]]:
    """Galaxies within the magnitude limit, the object itself among them."""
    objects, row = exposure.objects, exposure.row
    own = exposure.measured.columns
    middle = (exposure.size - 1) / 2
    found = [
        {
            **{name: float(own[name]) for name in _LISTED},
            "TYPE": _TYPES[_type(objects, row)],
            "X": middle,
            "Y": middle,
        }
    ]
    limit = 10 ** (0.4 * (22.5 - MAGNITUDE_LIMIT))
    others = exposure.others
    seen = [source for source in others if source.profile != "point" and source.flux[3] > limit]
    return [*found, *(_neighbour(source, middle) for source in seen)]


def _neighbour(source: Component, middle: float) -> dict[str, float]:
    ellipticity = (1 - source.axis_ratio) / (1 + source.axis_ratio)
    x, y = (middle + offset / PIXEL_SCALE for offset in source.offset)
    fluxes = {f"FLUX_{band}": float(f) for band, f in zip("GRIZ", source.flux, strict=True)}
    return {
        **fluxes,
        "SHAPE_R": source.half_light_radius,
        "SHAPE_E1": ellipticity * np.cos(2 * source.position_angle),
        "SHAPE_E2": ellipticity * np.sin(2 * source.position_angle),
        "TYPE": _TYPES["EXP"],
        "X": x,
        "Y": y,
    }


def _paint(mask: NDArray[np.uint8], source: dict[str, float]) -> None:
    """Fill the ellipse of a source, out to its half-light radius, with its type."""
    radius = max(1.0, source["SHAPE_R"] / PIXEL_SCALE)
    ellipticity = min(float(np.hypot(source["SHAPE_E1"], source["SHAPE_E2"])), 0.95)
    ratio = (1 - ellipticity) / (1 + ellipticity)
    angle = np.arctan2(source["SHAPE_E2"], source["SHAPE_E1"]) / 2
    reach = int(radius) + 2
    first_y, first_x = (max(0, round(source[axis]) - reach) for axis in "YX")
    part = mask[first_y : round(source["Y"]) + reach + 1, first_x : round(source["X"]) + reach + 1]
    if part.size:
        rows, columns = np.indices(part.shape)
        y, x = rows + first_y - source["Y"], columns + first_x - source["X"]
        along = y * np.cos(angle) - x * np.sin(angle)
        across = x * np.cos(angle) + y * np.sin(angle)
        part[along**2 + (across / ratio) ** 2 <= radius**2] = int(source["TYPE"])


def _rgb(flux: NDArray[np.float32], lost: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Picture (size, size, 3) from z, r and g, brightness compressed as in the survey's viewer."""
    colors = flux[[3, 1, 0]]
    colors *= _RGB_SCALE
    colors += np.float32(0.03)
    np.maximum(colors, 0, out=colors)
    brightness = colors.sum(axis=0)
    brightness /= 3
    np.maximum(brightness, np.float32(1e-6), out=brightness)
    colors *= np.arcsinh(20 * brightness) / brightness * np.float32(255 / np.sqrt(20))
    np.minimum(colors, 255, out=colors)
    colors[:, lost] = 0
    return np.ascontiguousarray(np.moveaxis(colors.astype(np.uint8), 0, -1))


def _sweep(exposures: list[Exposure], ra: Floats, dec: Floats) -> _Columns:
    """Columns of the sweep files, big-endian as in FITS."""
    objects = exposures[0].objects
    measured = [exposure.measured for exposure in exposures]
    fluxes = np.array([_fluxes(one) for one in measured])
    ivar = np.where(np.isfinite(fluxes), [1 / one.error**2 for one in measured], 0.0)
    psf = np.array([exposure.psf_fwhm for exposure in exposures])
    names, numbers = bricks(objects.sky.ra, objects.sky.dec)
    bands = [band.upper() for band in BANDS]
    shapes = ("SHAPE_R", "SHAPE_E1", "SHAPE_E2", "EBV")
    dust = 10 ** (-0.4 * objects.ebv[:, None] * EXTINCTION)
    floats = {
        **{f"FLUX_{band}": fluxes[:, b] for b, band in enumerate(bands)},
        **{f"FLUX_IVAR_{band}": ivar[:, b] for b, band in enumerate(bands)},
        **{f"MW_TRANSMISSION_{band}": dust[:, b] for b, band in enumerate(bands)},
        **{name: np.array([one.columns[name] for one in measured]) for name in shapes},
        **{f"PSFSIZE_{band}": psf[:, b] for b, band in enumerate("GRIZ")},
    }
    count = len(exposures)
    return {
        "RA": ra.astype(">f8"),
        "DEC": dec.astype(">f8"),
        "BRICKNAME": names.astype("S8"),
        "BRICKID": numbers.astype(">i4"),
        "OBJID": objects.sky.index.astype(">i4"),
        "TYPE": np.array([_type(objects, row) for row in range(count)], dtype="S3"),
        "MASKBITS": np.zeros(count, dtype=">i2"),
        **{f"NOBS_{band}": np.full(count, 3, dtype=">i2") for band in "GRIZ"},
        **{name: values.astype(">f4") for name, values in floats.items()},
    }


def _fluxes(one: Measurement) -> Floats:
    """Fluxes in all bands; NaN where WISE sees nothing."""
    flux = np.array([one.columns[f"FLUX_{band.upper()}"] for band in BANDS])
    wise = np.arange(len(BANDS)) >= len(IMAGE_BANDS)
    return np.where(wise & (flux < DETECTED * one.error), np.nan, flux)


def _type(objects: Objects, row: int) -> str:
    if objects.is_point[row]:
        return "PSF"
    share = float(objects.legacy.bulge_fraction[row])
    return "DEV" if share > 0.8 else "EXP" if share < 0.2 else "SER"
