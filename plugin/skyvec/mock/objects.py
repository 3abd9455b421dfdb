"""What the objects of a mock sky are, whatever their kind, before any survey has looked at them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.bands import galaxy_hsc, galaxy_sdss, spectrum_hsc, spectrum_sdss
from skyvec.mock.gaia_xp import g_magnitude
from skyvec.mock.galaxies import (
    Floats,
    GalaxyLatents,
    Photometry,
    draw_latents,
    object_rng,
    photometry,
)
from skyvec.mock.quasars import QuasarLatents, draw_quasars
from skyvec.mock.quasars import seds as quasar_seds
from skyvec.mock.render import Component, galaxy_components, half_light_radius
from skyvec.mock.sed import SPEED_OF_LIGHT, Sed, band_fluxes
from skyvec.mock.sky import Kind, Sky
from skyvec.mock.spectra import fibre_fractions, galaxy_seds
from skyvec.mock.stars import StarLatents, draw_stars
from skyvec.mock.stars import seds as star_seds

Latents = GalaxyLatents | StarLatents | QuasarLatents
_SEEING_STREAM = 18


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Truth of n objects; what a kind does not have is NaN, or zero for sizes and motions."""

    sky: Sky
    legacy: Photometry
    """Nanomaggies in `skyvec.mock.galaxies.BANDS`, behind dust; stars and quasars are discs of
    no size."""
    hsc: Photometry
    """Nanomaggies in grizy."""
    sdss: Floats
    """Nanomaggies in ugriz, shape (n, 5)."""
    gaia_g: Floats
    """Gaia's G of stars and quasars, Vega."""
    redshift: Floats
    log_mass: Floats
    """Log10 of solar masses in stars."""
    log_ssfr: Floats
    """Log10 of star formation per stellar mass, 1/yr."""
    ebv: Floats
    seeing: Floats
    """FWHM of the PSF over its survey median."""
    bulge_radius: Floats
    """Half-light semi-major axis, arcsec."""
    disc_radius: Floats
    bulge_axis_ratio: Floats
    disc_axis_ratio: Floats
    position_angle: Floats
    pm_ra: Floats
    """Proper motion times cos(dec), mas/yr."""
    pm_dec: Floats
    parallax: Floats
    """Milliarcseconds."""
    latents: dict[Kind, tuple[NDArray[np.int64], Latents]]
    """Kind -> rows of that kind, and what its own module drew for them."""

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.sky)

    @property
    def is_point(self) -> NDArray[np.bool_]:
        """Whether an object is smaller than any pixel, shape (n,)."""
        return self.disc_radius == 0

    def half_light_radius(self, row: int) -> float:
        """Arcsec along the major axis; 0 for points."""
        if self.is_point[row]:
            return 0.0
        return half_light_radius(
            bulge_fraction=float(self.legacy.bulge_fraction[row]),
            bulge_radius=float(self.bulge_radius[row]),
            disc_radius=float(self.disc_radius[row]),
        )

    def components(self, row: int, light: Photometry, *, bands: int) -> list[Component]:
        """One object in the first bands of ``light``, at the centre of its image."""
        if self.is_point[row]:
            return [Component(profile="point", flux=light.total[row, :bands])]
        return galaxy_components(self, light, row=row, bands=bands)

    def fibre_fractions(self, survey: Literal["desi", "sdss"]) -> Floats:
        """Share of the light in a fibre of DESI or SDSS, shape (n,).

        1 for points: what they lose at the fibre, a flux calibration makes good.
        """
        found = np.ones(len(self))
        rows, latents = self.latents.get(Kind.GALAXY, (np.empty(0, np.int64), None))
        if isinstance(latents, GalaxyLatents):
            found[rows] = fibre_fractions(latents, photometry(latents), survey)
        return found

    def seds(self) -> list[Sed]:
        """Spectra of the objects, in their order."""
        found: dict[int, Sed] = {}
        for rows, latents in self.latents.values():
            if isinstance(latents, GalaxyLatents):
                lights = galaxy_seds(latents)
            elif isinstance(latents, StarLatents):
                lights = star_seds(latents)
            else:
                lights = quasar_seds(latents)
            found |= zip(rows.tolist(), lights, strict=True)
        return [found[row] for row in range(len(self))]


_ARRAYS = tuple(
    field.name for field in fields(Objects) if field.name not in {"sky", "legacy", "hsc", "latents"}
)


def describe(sky: Sky, *, seed: int) -> Objects:
    """Draw what these objects are; any chunking of a sky gives the same."""
    rows = {kind: np.flatnonzero(sky.kind == kind) for kind in Kind}
    parts = {
        kind: (_galaxies if kind == Kind.GALAXY else _points)(sky[of_kind], kind, seed)
        for kind, of_kind in rows.items()
        if len(of_kind)
    }
    back = np.argsort(np.concatenate([rows[kind] for kind in parts]))

    def joined(name: str) -> Floats:
        return np.concatenate([getattr(part, name) for part in parts.values()])[back]

    def light(name: str) -> Photometry:
        found = [getattr(part, name) for part in parts.values()]
        return Photometry(
            bulge=np.concatenate([one.bulge for one in found])[back],
            disc=np.concatenate([one.disc for one in found])[back],
        )

    return Objects(
        sky=sky,
        legacy=light("legacy"),
        hsc=light("hsc"),
        latents={kind: (rows[kind], part.latents[kind][1]) for kind, part in parts.items()},
        **{name: joined(name) for name in _ARRAYS},
    )


def _galaxies(sky: Sky, kind: Kind, seed: int) -> Objects:
    drawn: GalaxyLatents = draw_latents(sky.index, seed=seed)
    legacy = photometry(drawn)
    nothing = np.zeros(len(sky))
    return Objects(
        sky=sky,
        legacy=legacy,
        hsc=galaxy_hsc(drawn, legacy),
        sdss=galaxy_sdss(drawn),
        gaia_g=np.full(len(sky), np.nan),
        redshift=drawn.redshift,
        log_mass=drawn.log_mass,
        log_ssfr=drawn.log_ssfr,
        ebv=drawn.ebv,
        seeing=drawn.seeing,
        bulge_radius=drawn.bulge_radius,
        disc_radius=drawn.disc_radius,
        bulge_axis_ratio=drawn.bulge_axis_ratio,
        disc_axis_ratio=drawn.disc_axis_ratio,
        position_angle=drawn.position_angle,
        pm_ra=nothing,
        pm_dec=nothing,
        parallax=nothing,
        latents={kind: (np.arange(len(sky)), drawn)},
    )


def _points(sky: Sky, kind: Kind, seed: int) -> Objects:
    nothing = np.zeros(len(sky))
    drawn: StarLatents | QuasarLatents
    if kind == Kind.STAR:
        drawn = of_stars = draw_stars(sky.index, seed=seed)
        lights = star_seds(of_stars)
        redshift = of_stars.radial_velocity / SPEED_OF_LIGHT
        motion = (of_stars.pm_ra, of_stars.pm_dec, of_stars.parallax_mas)
    else:
        drawn = of_quasars = draw_quasars(sky.index, seed=seed)
        lights = quasar_seds(of_quasars)
        redshift = of_quasars.redshift
        motion = (nothing, nothing, nothing)
    rngs = [object_rng(seed=seed, index=int(key), stream=_SEEING_STREAM) for key in sky.key]
    return Objects(
        sky=sky,
        legacy=_all_in_disc(np.array([band_fluxes(sed) for sed in lights])),
        hsc=_all_in_disc(np.array([spectrum_hsc(sed) for sed in lights])),
        sdss=np.array([spectrum_sdss(sed) for sed in lights]),
        gaia_g=np.array([g_magnitude(sed) for sed in lights]),
        redshift=redshift,
        log_mass=np.full(len(sky), np.nan),
        log_ssfr=np.full(len(sky), np.nan),
        ebv=drawn.ebv,
        seeing=np.exp(0.08 * np.array([rng.standard_normal() for rng in rngs])),
        bulge_radius=nothing,
        disc_radius=nothing,
        bulge_axis_ratio=np.ones(len(sky)),
        disc_axis_ratio=np.ones(len(sky)),
        position_angle=nothing,
        pm_ra=motion[0],
        pm_dec=motion[1],
        parallax=motion[2],
        latents={kind: (np.arange(len(sky)), drawn)},
    )


def _all_in_disc(flux: Floats) -> Photometry:
    return Photometry(bulge=np.zeros_like(flux), disc=flux)
