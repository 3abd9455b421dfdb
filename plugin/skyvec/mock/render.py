"""Draw a scene without noise: a galaxy and its neighbours, PSF, pixels.

Drawn in Fourier space as profile x position x PSF x pixel, with one inverse transform per band.
Profiles are known there in closed form: an exponential disc is (1 + k^2 h^2)^(-3/2), a
de Vaucouleurs bulge and the PSF are sums of Gaussians. North is up, east is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import (
    Floats,
    Photometry,
    load_templates,
)
from skyvec_schemas.survey_columns import LEGACY_SURVEY, ImageColumn

Image = NDArray[np.float32]
Profile = Literal["point", "exponential", "de_vaucouleurs"]

IMAGE = cast("ImageColumn", LEGACY_SURVEY.image)
PIXEL_SCALE = IMAGE.pixel_scale
IMAGE_BANDS = tuple(IMAGE.bands)
NEIGHBOURS_PER_SQUARE_ARCMIN = 22.7
"""Sources between r = 17.5 and 24: four in a cutout of 96 pixels."""

# De Vaucouleurs' law to 8 half-light radii, softened in its innermost core: weights and variances
# (half-light radii squared) of Hogg & Lang (2013), the bulge that the Tractor fits to the survey.
_BULGE_WEIGHT = np.array(
    [
        0.0426347652,
        0.240127183,
        0.685907632,
        1.51937350,
        2.83627243,
        4.46467501,
        5.72440830,
        5.60989349,
    ]
)
_BULGE_WEIGHT = _BULGE_WEIGHT / _BULGE_WEIGHT.sum()
_BULGE_VARIANCE = np.array(
    [
        2.23759216e-4,
        1.00220099e-3,
        4.18731126e-3,
        1.69432589e-2,
        6.84850479e-2,
        0.287207080,
        1.33320254,
        8.40215071,
    ]
)
# Least squares on profile and enclosed flux of a Moffat with beta = 3.5: within 0.1% of its peak.
_PSF_WEIGHT = np.array([0.24576702, 0.60143919, 0.15279379])
_PSF_VARIANCE = np.array([0.11294917, 0.29233143, 1.0662631])  # in units of FWHM squared
_HALF_LIGHT_PER_SCALE = 1.67834699  # of an exponential disc
# Half-light radii beyond which less than 1% of the light lies: what wraps around is below the sky.
_REACH = {"point": 0.0, "exponential": 4.5, "de_vaucouleurs": 8.0}
_GRID_SIZES = (64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 512, 768, 1024)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One ellipse of light, or a point."""

    profile: Profile
    flux: NDArray[np.float64]
    """One number per band; the image has its unit, per pixel."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Arcsec to the right (west) and up (north) of the centre of the image."""
    half_light_radius: float = 0.0
    """Semi-major axis, arcsec."""
    axis_ratio: float = 1.0
    position_angle: float = 0.0
    """Of the major axis, radians from north (up) through east (left)."""

    @property
    def reach(self) -> float:
        """Arcsec out to which the profile matters."""
        return _REACH[self.profile] * self.half_light_radius


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Wave numbers (1/arcsec) of a square grid, and all that depends on nothing else."""

    size: int
    kx: Image
    ky: Image
    k2: Image
    pixel: Image
    """Fourier transform of one pixel, a square of unit flux."""


@lru_cache(maxsize=len(_GRID_SIZES))
def _grid(size: int, scale: float) -> _Grid:
    ky = 2 * np.pi * np.fft.fftfreq(size, scale)[:, None]
    kx = 2 * np.pi * np.fft.rfftfreq(size, scale)[None, :]
    window = np.sinc(kx * scale / (2 * np.pi)) * np.sinc(ky * scale / (2 * np.pi))
    as_float = [array.astype(np.float32) for array in (kx, ky, kx**2 + ky**2, window)]
    return _Grid(size=size, kx=as_float[0], ky=as_float[1], k2=as_float[2], pixel=as_float[3])


def render(
    components: Sequence[Component], *, psf_fwhm: Sequence[float], size: int, pixel_scale: float
) -> Image:
    """Draw noiseless images, shape (band, size, size); rows go north, columns go west.

    The centre lies in the middle of the array: between pixels if size is even. The grid is padded
    by the reach of every component, so that big discs do not come in again on the other side.
    """
    bands = len(psf_fwhm)
    grid = _grid(_grid_size(components, psf_fwhm, size=size, pixel_scale=pixel_scale), pixel_scale)
    light = np.zeros((bands, *grid.k2.shape), dtype=np.complex64)
    for component in components:
        transform = _transform(component, grid, pixel_scale=pixel_scale)
        for band, flux in enumerate(component.flux.astype(np.float32)):
            light[band] += flux * transform
    for band, fwhm in enumerate(psf_fwhm):
        light[band] *= _gaussians(grid.k2, _PSF_WEIGHT, _PSF_VARIANCE * fwhm**2) * grid.pixel
    padded = np.fft.irfft2(light, s=(grid.size, grid.size), axes=(1, 2))
    first = (grid.size - size) // 2
    window = padded[:, first : first + size, first : first + size]
    return np.ascontiguousarray(window, dtype=np.float32)


class Shapes(Protocol):
    """Sizes and angles of n galaxies, as in `GalaxyLatents`."""

    @property
    def bulge_radius(self) -> Floats: ...  # noqa: D102
    @property
    def disc_radius(self) -> Floats: ...  # noqa: D102
    @property
    def bulge_axis_ratio(self) -> Floats: ...  # noqa: D102
    @property
    def disc_axis_ratio(self) -> Floats: ...  # noqa: D102
    @property
    def position_angle(self) -> Floats: ...  # noqa: D102


def galaxy_components(
    latents: Shapes, truth: Photometry, *, row: int, bands: int = len(IMAGE_BANDS)
) -> list[Component]:
    """Bulge and disc of one galaxy in the first bands of ``truth``, in griz by default."""
    drawn = slice(0, bands)
    return [
        Component(
            profile="de_vaucouleurs",
            flux=truth.bulge[row, drawn],
            half_light_radius=float(latents.bulge_radius[row]),
            axis_ratio=float(latents.bulge_axis_ratio[row]),
            position_angle=float(latents.position_angle[row]),
        ),
        Component(
            profile="exponential",
            flux=truth.disc[row, drawn],
            half_light_radius=float(latents.disc_radius[row]),
            axis_ratio=float(latents.disc_axis_ratio[row]),
            position_angle=float(latents.position_angle[row]),
        ),
    ]


def neighbours(rng: np.random.Generator, *, width: float) -> list[Component]:
    """Stars and galaxies anywhere in a field of ``width`` arcsec, counts rising as 10^(0.35 r)."""
    expected = NEIGHBOURS_PER_SQUARE_ARCMIN * (width / 60) ** 2
    faint = 0.35 * np.log(10) * (24.0 - 17.5)
    found: list[Component] = []
    mixes, redshifts = [], []
    for _ in range(rng.poisson(expected)):
        magnitude = 24.0 + np.log(1 - rng.random() * (1 - np.exp(-faint))) / (0.35 * np.log(10))
        offset = tuple((rng.random(2) - 0.5) * width)
        is_star = rng.random() < 0.2
        if is_star:
            colors = _star_colors(rng)
        else:
            mixes.append(int(rng.integers(len(load_templates().mix))))
            redshifts.append(rng.uniform(0.1, 1.0))
            colors = np.ones(len(IMAGE_BANDS))  # those of galaxies come below, all at once
        found.append(
            Component(
                profile="point" if is_star else "exponential",
                flux=colors * 10 ** (0.4 * (22.5 - magnitude)),
                offset=offset,
                half_light_radius=0.5 * 10 ** (0.12 * (22 - magnitude) + 0.15 * rng.normal()),
                axis_ratio=rng.uniform(0.3, 1),
                position_angle=rng.uniform(0, np.pi),
            )
        )
    colored = iter(_galaxy_colors(mixes, redshifts))
    return [
        source if source.profile == "point" else replace(source, flux=source.flux * next(colored))
        for source in found
    ]


def half_light_radius(*, bulge_fraction: float, bulge_radius: float, disc_radius: float) -> float:
    """Radius that holds half the light of bulge plus disc, all three along the major axis."""
    low, high = sorted((bulge_radius, disc_radius))
    for _ in range(30):
        radius = (low + high) / 2
        scaled = _HALF_LIGHT_PER_SCALE * radius / disc_radius
        disc = 1 - (1 + scaled) * np.exp(-scaled)
        gaussians = np.exp(-0.5 * (radius / bulge_radius) ** 2 / _BULGE_VARIANCE)
        bulge = 1 - (_BULGE_WEIGHT * gaussians).sum()
        if bulge_fraction * bulge + (1 - bulge_fraction) * disc < 0.5:
            low = radius
        else:
            high = radius
    return (low + high) / 2


def _grid_size(
    components: Sequence[Component],
    psf_fwhm: Sequence[float],
    *,
    size: int,
    pixel_scale: float,
) -> int:
    half = size * pixel_scale / 2
    need = size
    for component in components:
        farthest = max(abs(component.offset[0]), abs(component.offset[1]))
        # The copy of the component, one grid away, must keep its reach out of the window.
        extent = farthest + component.reach + 3 * max(psf_fwhm) + half
        need = max(need, int(np.ceil(extent / pixel_scale)))
    # The parity of the window, so that both have the same centre; larger than any: the largest.
    sizes = [candidate + size % 2 for candidate in _GRID_SIZES if candidate >= size]
    return next((candidate for candidate in sizes if candidate >= need), max(*sizes, size))


def _transform(component: Component, grid: _Grid, *, pixel_scale: float) -> NDArray[np.complex64]:
    """Fourier transform of unit flux, shape (ky, kx)."""
    middle = (grid.size - 1) / 2 * pixel_scale
    shift_x, shift_y = (middle + offset for offset in component.offset)
    # In double precision: these phases reach hundreds of radians.
    phase_x = np.exp(-1j * grid.kx.astype(np.float64) * shift_x).astype(np.complex64)
    phase_y = np.exp(-1j * grid.ky.astype(np.float64) * shift_y).astype(np.complex64)
    if component.profile == "point":
        return phase_y * phase_x
    return (phase_y * phase_x) * _profile(component, grid)


def _profile(component: Component, grid: _Grid) -> Image:
    sine, cosine = np.sin(component.position_angle), np.cos(component.position_angle)
    radius = component.half_light_radius
    # East is left: the major axis points to (-sin, cos).
    along = (cosine * grid.ky - sine * grid.kx) * np.float32(radius)
    across = (cosine * grid.kx + sine * grid.ky) * np.float32(radius * component.axis_ratio)
    stretched = along**2 + across**2
    if component.profile == "exponential":
        base = 1 + stretched * np.float32(_HALF_LIGHT_PER_SCALE**-2)
        return np.asarray(1 / (base * np.sqrt(base)))
    return _gaussians(stretched, _BULGE_WEIGHT, _BULGE_VARIANCE)


def _gaussians(k2: Image, weights: NDArray[np.float64], variances: NDArray[np.float64]) -> Image:
    total = np.zeros_like(k2)
    for weight, variance in zip(weights, variances, strict=True):
        total += np.float32(weight) * np.exp(np.float32(-variance / 2) * k2)
    return total


def _star_colors(rng: np.random.Generator) -> Floats:
    """Fluxes in griz over that in r, along the main sequence."""
    r_i = rng.gamma(1.5, 0.35)
    g_r = min(0.25 + 2.2 * r_i, 1.45)
    return np.asarray(10 ** (0.4 * np.array([-g_r, 0, r_i, 1.5 * r_i])))


def _galaxy_colors(mixes: Sequence[int], redshifts: Sequence[float]) -> Floats:
    """Fluxes in griz over that in r of real mixes, shape (n, 4)."""
    templates = load_templates()
    flux = templates.fluxes(templates.mix[list(mixes)], np.array(redshifts))
    return np.asarray(flux[:, : len(IMAGE_BANDS)] / flux[:, 1:2])
