"""What a camera makes of a scene: noise, inverse variances, bad pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import Floats, object_rng
from skyvec.mock.render import IMAGE_BANDS, PIXEL_SCALE, Component, render

PIXEL_STREAM = 2
"""Random numbers of the noise and the bad pixels of DECam."""
_SURROUNDINGS = 1024
PSF_FWHM = np.array([1.29, 1.18, 1.19, 1.11])
"""Survey medians in griz, arcsec; Dey et al. (2019) and the DR10 description."""
PSF_DEPTH = np.array([24.5, 23.9, 23.3, 23.0])
"""Point sources at 5 sigma in griz, AB."""
ELECTRONS = np.array([9000.0, 10000.0, 8000.0, 6000.0])
"""Electrons per nanomaggy in a coadd of griz: three exposures of about 90 s."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What a survey's coadds are like; every array has one number per band."""

    bands: tuple[str, ...]
    pixel_scale: float
    """Arcsec."""
    psf_fwhm: Floats
    """Survey medians, arcsec."""
    psf_depth: Floats
    """Point sources at 5 sigma, AB."""
    electrons: Floats
    """Electrons per nanomaggy in a coadd."""
    shared_mask: bool
    """Whether a pixel that is bad in one band is masked in all."""


DECAM = Camera(
    bands=IMAGE_BANDS,
    pixel_scale=PIXEL_SCALE,
    psf_fwhm=PSF_FWHM,
    psf_depth=PSF_DEPTH,
    electrons=ELECTRONS,
    # As in the Multimodal Universe: one mask for all bands.
    shared_mask=True,
)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One observed object, every array (band, size, size) but for the PSF (band,)."""

    flux: NDArray[np.float32]
    """Nanomaggies per pixel."""
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    """True where good."""
    psf_fwhm: NDArray[np.float32]
    model: NDArray[np.float32]
    """The scene without noise."""


def observe(
    index: int,
    *,
    seed: int,
    components: Sequence[Component],
    psf_fwhm: Floats,
    depth: Floats,
    size: int,
    camera: Camera = DECAM,
    stream: int = PIXEL_STREAM,
    core: int | None = None,
) -> Cutout:
    """Render a scene and add noise and bad pixels, random numbers from a stream of the object.

    Parameters
    ----------
    index
        Of the object, for its random numbers.
    core
        Side of a smaller cutout whose noise and bad pixels the middle of this one repeats.
    """
    scale = camera.pixel_scale
    model = render(components, psf_fwhm=list(psf_fwhm), size=size, pixel_scale=scale)
    # Noise-equivalent area of a Gaussian PSF, in pixels.
    area = 4 * np.pi * (psf_fwhm / 2.3548 / scale) ** 2
    sky = (one_sigma(depth) ** 2 / area).astype(np.float32)[:, None, None]
    per_photon = (1 / camera.electrons).astype(np.float32)[:, None, None]
    variance = sky + np.maximum(model, 0) * per_photon
    rng = object_rng(seed=seed, index=index, stream=stream)
    noise, bad = _noise(rng, bands=len(camera.bands), size=core or size)
    if core and core != size:
        rng = object_rng(seed=seed, index=index, stream=stream + _SURROUNDINGS)
        inner = (noise, bad)
        noise, bad = _noise(rng, bands=len(camera.bands), size=size)
        first = (size - core) // 2
        middle = (slice(None), *[slice(first, first + core)] * 2)
        noise[middle], bad[middle] = inner
    good = np.broadcast_to(~bad.any(axis=0), bad.shape) if camera.shared_mask else ~bad
    return Cutout(
        flux=np.where(bad, np.float32(0), model + noise * np.sqrt(variance)),
        ivar=np.where(bad, np.float32(0), 1 / variance),
        mask=good,
        psf_fwhm=psf_fwhm.astype(np.float32),
        model=model,
    )


def _noise(
    rng: np.random.Generator, *, bands: int, size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    noise = rng.standard_normal(size=(bands, size, size), dtype=np.float32)
    return noise, _bad_pixels(rng, bands=bands, size=size)


def one_sigma(depth: Floats) -> Floats:
    """One sigma in nanomaggies at a depth of five."""
    return np.asarray(10 ** (0.4 * (22.5 - depth)) / 5)


def _bad_pixels(rng: np.random.Generator, *, bands: int, size: int) -> NDArray[np.bool_]:
    """Cosmic rays and bad columns, in one band each; two images in three have none."""
    bad = np.zeros((bands, size, size), dtype=bool)
    for _ in range(rng.poisson(0.4)):
        band, y, x = rng.integers(bands), rng.integers(size), rng.integers(size)
        if rng.random() < 0.3:
            bad[band, y : y + rng.integers(8, size), x] = True
        else:
            height, width = rng.integers(1, 5, size=2)
            bad[band, y : y + height, x : x + width] = True
    return bad
