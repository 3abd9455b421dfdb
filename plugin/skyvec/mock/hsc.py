"""Objects as Hyper Suprime-Cam sees them, in the columns of the Multimodal Universe.

Counts at zero point 27, one mask per band, True where good. Pixels without data carry the largest
float32 as inverse variance, which is what the builders of the Multimodal Universe make of a
variance of zero; a band without exposures has a PSF of 0 and magnitudes of infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.bands import HSC_BANDS, HSC_EXTINCTION
from skyvec.mock.camera import Camera, Cutout, observe, one_sigma
from skyvec.mock.footprints import Flaws, outside
from skyvec.mock.galaxies import Floats, object_rng
from skyvec.mock.legacy import DEEPER, expose
from skyvec.mock.objects import Objects
from skyvec.mock.places import offsets, positions
from skyvec.mock.render import Component
from skyvec.mock.sky import REVISION, Change
from skyvec.mock.survey_ids import hsc_ids
from skyvec_schemas.survey_columns import HSC, ImageColumn

_IMAGE = cast("ImageColumn", HSC.image)
COUNTS = 10 ** (0.4 * (_IMAGE.zero_point - 22.5))
"""Counts per nanomaggy."""
NO_DATA = np.finfo(np.float32).max

HSC_CAMERA = Camera(
    bands=tuple(_IMAGE.bands),
    pixel_scale=_IMAGE.pixel_scale,
    # Medians of PDR3 Wide, Aihara et al. (2022); electrons from exposures of 10 to 20 minutes.
    psf_fwhm=np.array([0.79, 0.75, 0.61, 0.68, 0.68]),
    psf_depth=np.array([26.5, 26.5, 26.2, 25.2, 24.4]),
    electrons=np.array([240e3, 250e3, 360e3, 160e3, 80e3]),
    shared_mask=False,
)

# FWHM of the Gaussian with the adaptive moments of our PSF (a Moffat), over the FWHM of that PSF.
_WIDENED = 1.130
# Adaptive moments of profiles behind the PSF, as GalSim measures them: added sigma over half-light
# radius, at half-light radii in units of the FWHM.
_RADII = np.log([0.33, 0.66, 1.31, 2.46, 4.92])
_DISC_SIGMA = np.array([1.04, 0.92, 0.81, 0.74, 0.71])
_BULGE_SIGMA = np.array([1.10, 0.74, 0.50, 0.35, 0.25])
# Effective wavelengths of the bands, log of Angstrom.
_WAVELENGTH = np.log([4844.0, 6259.0, 7730.0, 8912.0, 9787.0])
_DECAM_WAVELENGTH = np.log([4862.0, 6461.0, 7851.0, 9199.0])
_EXPOSURE_STREAM, _PIXEL_STREAM, _CATALOG_STREAM = 5, 6, 7
_Columns = dict[str, NDArray[np.generic]]


def hsc_batch(objects: Objects, flaws: Flaws, *, seed: int, size: int, core: int) -> _Columns:
    """Columns of these objects, ids and positions first; 1.2 MB each at 160 pixels.

    Parameters
    ----------
    size
        Pixels along a side of a cutout.
    core
        Side of the cutouts in the main catalog, within which its neighbours lie.
    """
    ra, dec = positions(objects, "hsc", seed=seed)
    shifts = offsets(objects, "hsc", seed=seed)
    cutouts, measured = [], []
    for row in range(len(objects)):
        exposure = _expose(objects, row, seed=seed)
        cutout = _cutout(exposure, shift=shifts[row], size=size, core=core)
        cutouts.append(_with_gaps(cutout, _missing(flaws, row, size=size)))
        measured.append(_measure(exposure, no_band=flaws.hsc_no_band[row]))
    return {
        "object_id": hsc_ids(objects.sky, seed=seed),
        "ra": ra,
        "dec": dec,
        "image_band": np.array([HSC_CAMERA.bands] * len(objects), dtype="S5"),
        "image_array": np.stack([cutout.flux for cutout in cutouts]),
        "image_ivar": np.stack([cutout.ivar for cutout in cutouts]),
        "image_mask": np.stack([cutout.mask for cutout in cutouts]),
        "image_psf_fwhm": np.stack([cutout.psf_fwhm for cutout in cutouts]),
        "image_scale": np.full((len(objects), 5), HSC_CAMERA.pixel_scale, np.float32),
        **{
            f"a_{band}": (objects.ebv * HSC_EXTINCTION[b]).astype(np.float32)
            for b, band in enumerate(HSC_BANDS)
        },
        **{
            name: np.array([row[name] for row in measured], dtype=np.float32)
            for name in measured[0]
        },
    }


@dataclass(frozen=True, kw_only=True)
class _Exposure:
    """The coadds around one object, in grizy."""

    objects: Objects
    row: int
    seed: int
    psf_fwhm: Floats
    """As the moments of the PSF state it, arcsec."""
    depth: Floats

    @property
    def key(self) -> int:
        """Number of the object in its sky."""
        return int(self.objects.sky.key[self.row])

    @property
    def change(self) -> Change:
        """What this release changed."""
        return Change(int(self.objects.sky.change[self.row]))


def _expose(objects: Objects, row: int, *, seed: int) -> _Exposure:
    rng = object_rng(seed=seed, index=int(objects.sky.key[row]), stream=_EXPOSURE_STREAM)
    seeing = np.exp(0.08 * rng.standard_normal() + 0.03 * rng.standard_normal(5))
    depth = HSC_CAMERA.psf_depth + 0.1 * rng.standard_normal() - 2.5 * np.log10(seeing)
    deeper = DEEPER if objects.sky.change[row] == Change.DEPTH else 0.0
    return _Exposure(
        objects=objects,
        row=row,
        seed=seed,
        psf_fwhm=HSC_CAMERA.psf_fwhm * seeing,
        depth=depth + deeper,
    )


def _cutout(exposure: _Exposure, *, shift: Floats, size: int, core: int) -> Cutout:
    """The image in nanomaggies, centred where HSC says that the object is."""
    objects, row, seed = exposure.objects, exposure.row, exposure.seed
    half = size * HSC_CAMERA.pixel_scale / 2
    others = expose(objects, row, seed=seed, size=size, core=core).others
    scene = [
        *objects.components(row, objects.hsc, bands=5),
        *(_in_hsc(source) for source in others if _reaches(source, half)),
    ]
    east, north = shift
    scene = [
        replace(source, offset=(source.offset[0] + east, source.offset[1] - north))
        for source in scene
    ]
    revised = REVISION if exposure.change == Change.DEPTH else 0
    return observe(
        exposure.key,
        seed=seed,
        components=scene,
        psf_fwhm=exposure.psf_fwhm / _WIDENED,
        depth=exposure.depth,
        size=size,
        camera=HSC_CAMERA,
        stream=_PIXEL_STREAM + revised,
    )


def _reaches(source: Component, half: float) -> bool:
    """Whether a source is seen in a cutout with sides of twice ``half`` arcsec."""
    return max(map(abs, source.offset)) - source.reach < half + 2.0


def _in_hsc(source: Component) -> Component:
    """A neighbour in grizy: its spectrum is a power law from band to band, also beyond z."""
    griz = np.log(source.flux)
    flux = np.interp(_WAVELENGTH, _DECAM_WAVELENGTH, griz)
    slope = (griz[3] - griz[2]) / (_DECAM_WAVELENGTH[3] - _DECAM_WAVELENGTH[2])
    flux[4] = griz[3] + slope * (_WAVELENGTH[4] - _DECAM_WAVELENGTH[3])
    return replace(source, flux=np.exp(flux))


def _missing(flaws: Flaws, row: int, *, size: int) -> NDArray[np.bool_]:
    """Pixels without data, shape (band, size, size)."""
    cut = outside(size, share=float(flaws.hsc_cut[row]), side=int(flaws.cut_side[row]))
    return np.asarray(flaws.hsc_no_band[row][:, None, None] | cut)


def _with_gaps(cutout: Cutout, missing: NDArray[np.bool_]) -> Cutout:
    """In counts, without the pixels that are missing."""
    dead = missing | (cutout.ivar == 0)
    no_band = missing.all(axis=(1, 2))
    return replace(
        cutout,
        flux=np.where(dead, np.float32(0), cutout.flux * np.float32(COUNTS)),
        ivar=np.where(dead, NO_DATA, cutout.ivar / np.float32(COUNTS**2)),
        mask=cutout.mask & ~missing,
        psf_fwhm=np.where(no_band, np.float32(0), cutout.psf_fwhm * np.float32(_WIDENED)),
    )


def _measure(exposure: _Exposure, *, no_band: NDArray[np.bool_]) -> dict[str, float]:
    """Catalog numbers of one object: the truth with the errors of size and depth."""
    objects, row, psf_fwhm = exposure.objects, exposure.row, exposure.psf_fwhm
    revised = REVISION if exposure.change in {Change.DEPTH, Change.PHOTOMETRY} else 0
    rng = object_rng(seed=exposure.seed, index=exposure.key, stream=_CATALOG_STREAM + revised)
    radius = objects.half_light_radius(row)
    error = one_sigma(exposure.depth) * np.sqrt(1 + (2 * radius / psf_fwhm) ** 2)
    total = objects.hsc.total[row]
    flux = total * (1 + 0.01 * rng.standard_normal(5)) + error * rng.standard_normal(5)
    found: dict[str, float] = {}
    moments = _moments(exposure)
    for b, band in enumerate(HSC_BANDS):
        psf = (psf_fwhm[b] / 2.3548) ** 2
        (xx, xy), (_, yy) = moments[b]
        noise = min(0.2, error[b] / total[b]) * rng.standard_normal(3) * (xx + yy) / 2
        shape = np.array([xx, yy, xy]) + noise
        extended = float(not objects.is_point[row])
        if no_band[b]:
            psf, shape, extended = np.nan, np.full(3, np.nan), np.nan
        seen = flux[b] > 0 and not no_band[b]
        found |= {
            f"{band}_extendedness_value": extended,
            f"{band}_cmodel_mag": 22.5 - 2.5 * np.log10(flux[b]) if seen else np.inf,
            f"{band}_cmodel_magerr": 1.0857 * error[b] / flux[b] if seen else np.inf,
            f"{band}_sdssshape_psf_shape11": psf,
            f"{band}_sdssshape_psf_shape22": psf,
            f"{band}_sdssshape_psf_shape12": 0.0 * psf,
            f"{band}_sdssshape_shape11": shape[0],
            f"{band}_sdssshape_shape22": shape[1],
            f"{band}_sdssshape_shape12": shape[2],
        }
    return found


def _moments(exposure: _Exposure) -> Floats:
    """Adaptive moments in arcsec2, x to the west and y to the north, with the PSF: (band, 2, 2)."""
    objects, row = exposure.objects, exposure.row
    psf = ((exposure.psf_fwhm / 2.3548) ** 2)[:, None, None] * np.eye(2)
    if objects.is_point[row]:
        return np.asarray(psf)
    share = float(objects.legacy.bulge_fraction[row])
    sine, cosine = np.sin(objects.position_angle[row]), np.cos(objects.position_angle[row])
    axes = np.array([[-sine, cosine], [cosine, sine]])  # major and minor, as (x, y)
    parts, weights = [], np.array([share, 1 - share])
    for radius, ratio, table in (
        (objects.bulge_radius[row], objects.bulge_axis_ratio[row], _BULGE_SIGMA),
        (objects.disc_radius[row], objects.disc_axis_ratio[row], _DISC_SIGMA),
    ):
        along = np.interp(np.log(radius * _WIDENED / exposure.psf_fwhm), _RADII, table) * radius
        own = np.einsum("i,ij,ik->jk", np.array([1.0, ratio**2]), axes, axes)
        parts.append(psf + (along**2)[:, None, None] * own)
    return _adaptive(np.stack(parts, axis=1), weights)


def _adaptive(parts: Floats, weights: Floats) -> Floats:
    """Moments (band, 2, 2) of sums of Gaussians (band, part, 2, 2) under a weight of their shape."""
    found = (parts * weights[:, None, None]).sum(axis=1)
    for _ in range(12):
        weight = found[:, None]
        seen = weights / np.sqrt(np.linalg.det(parts + weight))
        under = np.linalg.inv(np.linalg.inv(parts) + np.linalg.inv(weight))
        seen = seen / seen.sum(axis=1, keepdims=True)
        found = 2 * (under * seen[..., None, None]).sum(axis=1)
    return np.asarray(found)
