"""Objects as the Legacy Survey sees them: exposures, cutouts, measured numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skyvec.mock.camera import DECAM, PIXEL_STREAM, PSF_DEPTH, PSF_FWHM, Cutout, observe, one_sigma
from skyvec.mock.galaxies import BANDS, Floats, object_rng
from skyvec.mock.objects import Objects
from skyvec.mock.render import IMAGE_BANDS, PIXEL_SCALE, Component, neighbours
from skyvec.mock.sky import REVISION, Change

WISE_DEPTH = np.array([21.0, 20.3, 16.9, 14.9])
"""Forced photometry in W1-W4 at 5 sigma, AB."""
DEEPER = 0.6
"""Magnitudes that a second release gains on objects whose images it adds to."""

_FIELD_STREAM, _CATALOG_STREAM, _OUTSKIRTS_STREAM = 1, 3, 4


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What the catalog of the survey states about one object."""

    columns: Mapping[str, float]
    """Fluxes, shape and dust by column."""
    error: Floats
    """One sigma of the fluxes in the bands of `skyvec.mock.galaxies`."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """The coadds around one object, in griz."""

    objects: Objects
    row: int
    seed: int
    size: int
    """Side of the cutout in pixels."""
    core: int
    """Side in pixels of the cutouts of the main catalog, the middle of larger ones."""
    psf_fwhm: Floats
    """Arcsec."""
    depth: Floats
    """Point sources at 5 sigma, AB."""
    others: list[Component]
    """Other sources in the cutout."""

    @property
    def key(self) -> int:
        """Number of the object in its sky."""
        return int(self.objects.sky.key[self.row])

    @property
    def change(self) -> Change:
        """What this release changed."""
        return Change(int(self.objects.sky.change[self.row]))

    def cutout(self) -> Cutout:
        """The image; the middle of a larger one has the noise of the main catalog's, and more light of
        neighbours that lie outside of it.
        """
        revised = REVISION if self.change == Change.DEPTH else 0
        legacy = self.objects.legacy
        # Cutouts of other parity or smaller size have no common middle.
        larger = self.size > self.core and (self.size - self.core) % 2 == 0
        return observe(
            self.key,
            seed=self.seed,
            components=[
                *self.objects.components(self.row, legacy, bands=len(IMAGE_BANDS)),
                *self.others,
            ],
            psf_fwhm=self.psf_fwhm,
            depth=self.depth,
            size=self.size,
            camera=DECAM,
            stream=PIXEL_STREAM + revised,
            core=self.core if larger else None,
        )

    @cached_property
    def measured(self) -> Measurement:
        """Catalog numbers: the truth with the errors of size and depth.

        SHAPE_E1 and SHAPE_E2 are (1 - q) / (1 + q) times cosine and sine of twice the position
        angle, which runs from north through east; points have no shape.
        """
        revised = REVISION if self.change in {Change.DEPTH, Change.PHOTOMETRY} else 0
        rng = object_rng(seed=self.seed, index=self.key, stream=_CATALOG_STREAM + revised)
        objects, row = self.objects, self.row
        total = objects.legacy.total[row]
        radius = objects.half_light_radius(row)
        spread = np.sqrt(1 + (2 * radius / self.psf_fwhm) ** 2)
        error = np.concatenate([one_sigma(self.depth) * spread, one_sigma(WISE_DEPTH)])
        flux = total * (1 + 0.01 * rng.standard_normal(len(BANDS)))
        flux = flux + error * rng.standard_normal(len(BANDS))
        columns = {f"FLUX_{band.upper()}": value for band, value in zip(BANDS, flux, strict=True)}
        shape = _shape(self, rng, radius=radius, flux_error=error[1] / total[1])
        return Measurement(columns={**columns, **shape, "EBV": objects.ebv[row]}, error=error)


def expose(objects: Objects, row: int, *, seed: int, size: int, core: int) -> Exposure:
    """Draw seeing, depth and neighbours of one object.

    Parameters
    ----------
    size
        Side in pixels of the cutout.
    core
        Side of the cutouts of the main catalog; larger ones hold the same neighbours and more.
    """
    key = int(objects.sky.key[row])
    rng = object_rng(seed=seed, index=key, stream=_FIELD_STREAM)
    seeing = objects.seeing[row]
    psf_fwhm = PSF_FWHM * seeing * np.exp(0.03 * rng.standard_normal(4))
    depth = PSF_DEPTH + 0.15 * rng.standard_normal() - 2.5 * np.log10(seeing)
    others = neighbours(rng, width=core * PIXEL_SCALE)
    if size > core:
        rng = object_rng(seed=seed, index=key, stream=_OUTSKIRTS_STREAM)
        around = neighbours(rng, width=size * PIXEL_SCALE)
        inner = core * PIXEL_SCALE / 2
        others += [source for source in around if max(map(abs, source.offset)) > inner]
    return Exposure(
        objects=objects,
        row=row,
        seed=seed,
        size=size,
        core=core,
        psf_fwhm=psf_fwhm,
        depth=depth + (DEEPER if objects.sky.change[row] == Change.DEPTH else 0.0),
        others=others,
    )


def _shape(
    exposure: Exposure, rng: np.random.Generator, *, radius: float, flux_error: float
) -> dict[str, float]:
    objects, row = exposure.objects, exposure.row
    if objects.is_point[row]:
        return {"SHAPE_R": 0.0, "SHAPE_E1": 0.0, "SHAPE_E2": 0.0}
    # Shapes are worse where the PSF is larger than the galaxy.
    blur = 1 + (exposure.psf_fwhm[1] / (2 * radius)) ** 2
    relative = min(0.3, 1.2 * blur * flux_error)
    share = float(objects.legacy.bulge_fraction[row])
    ratios = (objects.bulge_axis_ratio[row], objects.disc_axis_ratio[row])
    bulge_e, disc_e = ((1 - q) / (1 + q) for q in map(float, ratios))
    ellipticity = share * bulge_e + (1 - share) * disc_e
    angle = 2 * objects.position_angle[row]
    e1 = ellipticity * np.cos(angle) + 0.5 * relative * rng.standard_normal()
    e2 = ellipticity * np.sin(angle) + 0.5 * relative * rng.standard_normal()
    return {
        "SHAPE_R": radius * np.exp(relative * rng.standard_normal()),
        "SHAPE_E1": np.clip(e1, -0.95, 0.95),
        "SHAPE_E2": np.clip(e2, -0.95, 0.95),
    }
