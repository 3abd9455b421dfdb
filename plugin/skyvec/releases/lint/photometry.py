"""Checks of cutouts against the fluxes of their own catalog: unit, zero point, order of planes.

Light is conserved: what an aperture around the middle collects is the catalog's flux, but for what
lies outside of it. A wrong zero point shifts all objects by one factor; planes in another order
shift the colours of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.releases.hats.column_map import band_order
from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.subject import Row, Subject, floats
from skyvec_schemas.survey_columns import ImageColumn, ScalarColumn, Survey

Floats = NDArray[np.float64]

APERTURE = 3.0
"""Radius in arcsec: most of the light of all but the largest galaxies."""
MIN_OBJECTS = 8
MIN_SIGNAL_TO_NOISE = 10.0
USUAL = (0.15, 2.2)
"""Aperture over catalog flux, in the median: extended wings below, neighbours and dust above."""
_TYPICAL = 0.75
_CERTAIN = 0.7  # dex; less might be crowding, or extinction counted on one side only
_MAX_SCATTER = 0.3  # dex; more, and aperture and catalog do not speak of the same objects
_ZERO_POINTS = {
    "nanomaggies": 22.5,
    "counts at zero point 25": 25.0,
    "counts at zero point 27": 27.0,
    "counts at zero point 30": 30.0,
    "nJy": 31.4,
    "microjansky": 23.9,
    "jansky": 8.9,
    "maggies": 0.0,
}


def catalog_scalar(survey: Survey, band: str) -> ScalarColumn | None:
    """The flux or magnitude column of a band of the codec (``DES-G``), if the survey has one."""
    letter = band.rpartition("-")[2]
    wanted = {f"FLUX_{letter.upper()}", f"{letter.lower()}_cmodel_mag"}
    return next((scalar for scalar in survey.scalars if scalar.name in wanted), None)


def catalog_flux(scalar: ScalarColumn, values: Floats, image: ImageColumn) -> Floats:
    """Catalog fluxes or magnitudes in the declared unit of the cutouts; NaN where not positive."""
    magnitude_zero = 0.0 if scalar.unit == "mag" else 22.5
    with np.errstate(invalid="ignore", over="ignore"):
        flux = 10 ** (-0.4 * values) if scalar.unit == "mag" else values
        flux = flux * 10 ** (0.4 * (image.zero_point - magnitude_zero))
    return np.where(np.isfinite(flux) & (flux > 0), flux, np.nan)


def aperture_fluxes(flux: NDArray[Any], *, pixel_scale: float) -> Floats:
    """Light within `APERTURE` of the middle for each plane, NaN where it is not significant."""
    planes = np.nan_to_num(floats(flux))
    inside = _disc(planes.shape[1:], APERTURE / pixel_scale)
    outside = ~inside if (~inside).sum() > inside.sum() // 4 else np.ones_like(inside)
    sky, noise = _sky(planes[:, outside])
    total = planes[:, inside].sum(axis=1) - sky * inside.sum()
    return np.where(total > MIN_SIGNAL_TO_NOISE * noise * np.sqrt(inside.sum()), total, np.nan)


def most_light(flux: NDArray[Any]) -> Floats:
    """What the whole stamp may hold at most, sky included, at 3 sigma; for each plane."""
    planes = np.nan_to_num(floats(flux))
    inside = _disc(planes.shape[1:], np.inf)
    _, noise = _sky(planes[:, inside])
    return np.asarray(planes[:, inside].sum(axis=1) + 3 * noise * np.sqrt(inside.sum()))


def _disc(shape: tuple[int, ...], radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2)
    return np.asarray(distance <= min(radius, min(shape) / 2))


def _sky(pixels: Floats) -> tuple[Floats, Floats]:
    """Level and noise of each plane (plane, pixel), both robust against objects."""
    level = np.median(pixels, axis=1)
    return level, 1.4826 * np.median(np.abs(pixels - level[:, None]), axis=1)


def photometry(subject: Subject) -> Iterator[Finding]:
    """Unit and zero point of the cutouts, unit of the fluxes, order of the planes."""
    image = subject.survey.image
    if not image or not any(True for _ in subject.rows("image.flux")):
        return
    scalars = [catalog_scalar(subject.survey, band) for band in image.bands.values()]
    columns = [s for s in scalars if s and any(s.name in file.keys for file in subject.files)]
    if not columns:
        yield subject.finding(
            "note", "zero point", f"no catalog flux to check the cutouts against; taken as "
            f"{image.unit} (AB zero point {image.zero_point:g})",
            where=subject.files[0], column="flux",
        )  # fmt: skip
        return
    aperture = partial(aperture_fluxes, pixel_scale=image.pixel_scale)
    measured, stated = _pairs(subject, image, scalars, aperture)
    magnitudes = list(_magnitudes_as_fluxes(subject, image, measured, stated))
    yield from magnitudes
    if magnitudes:
        return
    yield from _unit(subject, image, measured, stated)
    if len(columns) == len(scalars):
        yield from _plane_order(subject, image, measured, stated)


def _pairs(
    subject: Subject,
    image: ImageColumn,
    scalars: list[ScalarColumn | None],
    light: Callable[[NDArray[Any]], Floats],
) -> tuple[Floats, Floats]:
    """Measured and catalog flux, (object, band), NaN where either is unknown."""
    measured, stated = [], []
    for row, flux in subject.rows("image.flux"):
        if flux.ndim != 3 or not flux.size or min(flux.shape[1:]) < 16:
            continue
        order = _order(row, flux, image)
        if order is None:
            continue
        measured.append(light(flux[order]))
        stated.append(
            [
                catalog_flux(s, np.array([row.number(s.name)]), image)[0] if s else np.nan
                for s in scalars
            ]
        )
    shape = (-1, len(scalars))
    return np.array(measured, float).reshape(shape), np.array(stated, float).reshape(shape)


def _order(row: Row, flux: NDArray[Any], image: ImageColumn) -> list[int] | None:
    names = row.array("image.band")
    if names is None:
        return list(range(len(flux))) if len(flux) == len(image.bands) else None
    order = band_order([str(name) for name in np.atleast_1d(names)], image)
    return order if order and len(order) == len(flux) else None


def _unit(
    subject: Subject, image: ImageColumn, measured: Floats, stated: Floats
) -> Iterator[Finding]:
    objects, scatter, factor = _ratio(measured, stated)
    if objects < MIN_OBJECTS or scatter > _MAX_SCATTER or USUAL[0] <= factor <= USUAL[1]:
        return
    if factor < USUAL[0]:
        # Of galaxies as large as the stamp an aperture holds little, so the rest must be dark, too.
        scalars = [catalog_scalar(subject.survey, band) for band in image.bands.values()]
        _, _, at_most = _ratio(*_pairs(subject, image, scalars, most_light))
        if not at_most < USUAL[0]:
            return
    unit, zero_point = _likely_unit(factor, image)
    yield subject.finding(
        "error" if abs(np.log10(factor)) > _CERTAIN else "warning",
        "zero point", f"cutouts hold {factor:.3g} times the flux of their catalog: they are "
        f"not {image.unit} (zero point {image.zero_point:g})"
        + (f" but look like {unit} (zero point {zero_point:g})" if unit else ""),
        where=subject.files[0], column="flux",
        remedy="Convert the cutouts on import, or choose the survey that they are of",
        evidence={"ratio": factor, "scatter_dex": round(scatter, 3),
                  "objects": objects},
    )  # fmt: skip


def _ratio(measured: Floats, stated: Floats) -> tuple[int, float, float]:
    """Objects with an aperture and a catalog flux, scatter (dex) and median of their ratio."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log10(measured / stated)
    each = np.array([np.median(row[np.isfinite(row)]) for row in ratio if np.isfinite(row).any()])
    if not len(each):
        return 0, np.nan, np.nan
    return len(each), _half_width(each), float(10 ** np.median(each))


def _likely_unit(factor: float, image: ImageColumn) -> tuple[str, float]:
    """The unit in which the aperture would hold most of the light; empty if there is none."""
    misfit = {
        unit: abs(np.log10(factor / _TYPICAL) - 0.4 * (zero_point - image.zero_point))
        for unit, zero_point in _ZERO_POINTS.items()
    }
    unit = min(misfit, key=lambda name: misfit[name])
    return (unit, _ZERO_POINTS[unit]) if misfit[unit] < 0.3 else ("", np.nan)


def _magnitudes_as_fluxes(
    subject: Subject, image: ImageColumn, measured: Floats, stated: Floats
) -> Iterator[Finding]:
    """Whether columns declared as flux follow the aperture as magnitudes do."""
    for band, name in enumerate(image.bands.values()):
        scalar = catalog_scalar(subject.survey, name)
        if scalar is None or scalar.unit == "mag":
            continue
        aperture = 2.5 * np.log10(measured[:, band])
        values = stated[:, band] / catalog_flux(scalar, np.ones(1), image)
        known = np.isfinite(aperture) & (values > 8) & (values < 32)
        if known.sum() < MIN_OBJECTS:
            continue
        # A magnitude plus 2.5 log10 of the light is a zero point, one for all; a flux is not.
        zero = (values + aperture)[known]
        as_flux = (aperture - 2.5 * np.log10(values))[known]
        if _half_width(zero) < min(0.3, 0.5 * _half_width(as_flux)):
            yield subject.finding(
                "error", "units", f"values follow the cutouts as magnitudes do, not as {scalar.unit}",
                where=subject.files[0], column=scalar.name,
                remedy="Convert them to fluxes on import",
                evidence={"zero_point": round(float(np.median(zero)), 2),
                          "objects": int(known.sum())},
            )  # fmt: skip


def _half_width(values: Floats) -> float:
    low, high = np.percentile(values, [16, 84])
    return float(high - low) / 2


def _plane_order(
    subject: Subject, image: ImageColumn, measured: Floats, stated: Floats
) -> Iterator[Finding]:
    """Whether the colours of the cutouts fit the catalog's in another order of planes only."""
    both = np.isfinite(measured).all(axis=1) & np.isfinite(stated).all(axis=1)
    if both.sum() < MIN_OBJECTS:
        return
    planes, fluxes = np.log10(measured[both]), np.log10(stated[both])

    def misfit(order: tuple[int, ...]) -> float:
        colours = planes[:, list(order)] - fluxes
        return float(np.median(np.ptp(colours - colours.mean(axis=1, keepdims=True), axis=1)))

    own = tuple(range(len(image.bands)))
    best = min(permutations(own), key=misfit)
    here, there = misfit(own), misfit(best)
    if best != own and here > 0.2 and there < 0.1 and there < 0.3 * here:
        names = list(image.bands)
        # Plane best[i] carries band i.
        carried = [names[best.index(plane)] for plane in own]
        yield subject.finding(
            "error", "bands", f"by their colours the planes named {', '.join(names)} carry "
            f"{', '.join(carried)}", where=subject.files[0], column="band",
            remedy="Mend the order of the planes or of their names",
            evidence={"misfit_dex": round(here, 3), "misfit_dex_other_order": round(there, 3),
                      "objects": int(both.sum())},
        )  # fmt: skip


PHOTOMETRY_CHECKS = (photometry,)
