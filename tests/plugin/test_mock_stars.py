"""Mock stars obey the physics that they claim."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from skyvec.mock import gaia_xp, stars
from skyvec.mock.galaxies import BANDS, EXTINCTION
from skyvec.mock.sed import SPEED_OF_LIGHT
from skyvec.mock.spectra import observe_spectrum

GRIZ = [BANDS.index(band) for band in "griz"]
G, R = GRIZ[:2]


@pytest.fixture(scope="module")
def latents():
    return stars.draw_stars(range(400), seed=1)


@pytest.fixture(scope="module")
def light(latents):
    return stars.photometry(latents)


def series(**changes):
    """Stars alike but for what changes, at 10 pc, without dust and motion."""
    count = len(next(iter(changes.values())))
    one = stars.draw_stars([0], seed=1)
    alike = {
        "teff": 5772.0,
        "feh": 0.0,
        "is_giant": False,
        "log_luminosity": 0.0,
        "log_distance": 1.0,
        "radial_velocity": 0.0,
        "ebv": 0.0,
    }
    arrays = {name: np.full(count, value) for name, value in alike.items()}
    arrays |= {name: np.asarray(value) for name, value in changes.items()}
    rest = {
        field.name: np.repeat(getattr(one, field.name), count, axis=0)
        for field in fields(one)
        if field.name not in arrays
    }
    return replace(one, **rest, **arrays)


def color(flux, blue, red):
    return -2.5 * np.log10(flux[:, blue] / flux[:, red])


def equivalent_width(sed, center, half, side):
    """Angstrom of an absorption line over the continuum on both sides."""
    w, f = sed.wavelength, sed.flux
    beside = ((w > center - side) & (w < center - half)) | (
        (w > center + half) & (w < center + side)
    )
    line = np.abs(w - center) < half
    level = np.polyval(np.polyfit(w[beside] - center, f[beside], 1), w[line] - center)
    return np.trapezoid(1 - f[line] / level, w[line])


def test_the_sun_looks_like_the_sun():
    sun = series(teff=[5772.0])
    flux = stars.photometry(sun)
    sed = stars.seds(sun)[0]
    g, bp, rp = gaia_xp.mean_fluxes(sed)
    vega = gaia_xp.VEGA_ZERO_POINT
    # Absolute G and BP - RP of Casagrande & VandenBerg (2018); g - r of Willmer (2018).
    assert vega["G"] - 2.5 * np.log10(g) == pytest.approx(4.67, abs=0.05)
    assert vega["BP"] - vega["RP"] - 2.5 * np.log10(bp / rp) == pytest.approx(0.82, abs=0.04)
    assert color(flux, G, R)[0] == pytest.approx(0.44, abs=0.05)
    assert color(flux, R, GRIZ[2])[0] == pytest.approx(0.12, abs=0.04)


def test_cooler_stars_are_redder():
    teff = np.array([3300, 3800, 4500, 5300, 6000, 7000, 9000, 11_000.0])
    flux = stars.photometry(series(teff=teff))
    for blue, red in pairwise(GRIZ):
        assert (np.diff(color(flux, blue, red)) < 0).all()


def test_metals_darken_the_blue():
    poor, rich = stars.seds(series(feh=[-1.8, 0.2], teff=[5300.0, 5300.0]))
    magnesium = [equivalent_width(sed, 5177, 16, 60) for sed in (poor, rich)]
    assert magnesium[1] > 1.5 * magnesium[0] > 0
    flux = stars.photometry(series(feh=[-1.8, 0.2], teff=[5300.0, 5300.0]))
    assert np.diff(color(flux, G, R))[0] > 0.03


def test_hydrogen_is_strongest_in_a_stars():
    seds = stars.seds(series(teff=[4500, 5800, 7000, 9200, 11_400.0]))
    width = [equivalent_width(sed, 4862.7, 25, 70) for sed in seds]
    assert np.argmax(width) == 3
    assert width[3] > 8
    assert width[0] < 3


@pytest.mark.parametrize("velocity", [-300.0, 0.0, 250.0])
def test_lines_are_shifted_by_the_radial_velocity(velocity):
    sed = stars.seds(series(teff=[7000.0], radial_velocity=[velocity]))[0]
    near = (sed.wavelength > 6540) & (sed.wavelength < 6590)
    depth = np.clip(1 - sed.flux[near] / np.percentile(sed.flux[near], 90), 0, None) ** 2
    center = (sed.wavelength[near] * depth).sum() / depth.sum()
    assert center == pytest.approx(6564.6 * (1 + velocity / SPEED_OF_LIGHT), abs=0.8)


def test_nothing_steps_where_libraries_meet():
    sed = stars.seds(series(teff=[5000.0]))[0]
    for join in (3300.0, 3560.0, 7390.0, 9850.0, 10_300.0):
        below, above = (
            np.median(np.interp(np.linspace(low, high, 99), sed.wavelength, sed.flux))
            for low, high in ((join - 60, join - 2), (join + 2, join + 60))
        )
        assert above / below == pytest.approx(1, abs=0.08 if join > 4000 else 0.25)


def test_magnitude_is_that_of_the_spectrum_through_gaia(latents):
    seen = [gaia_xp.g_magnitude(sed) for sed in stars.seds(latents)]
    assert seen == pytest.approx(latents.magnitude, abs=0.005)


def test_light_falls_with_the_square_of_the_distance():
    flux = stars.photometry(series(log_distance=[1.0, 2.0, 3.0]))
    assert flux[1] / flux[0] == pytest.approx(1e-2, rel=1e-9)
    assert flux[2] / flux[0] == pytest.approx(1e-4, rel=1e-9)


def test_parallax_and_motion_follow_from_the_distance(latents):
    kiloparsec = 10 ** (latents.log_distance - 3)
    assert latents.parallax_mas * kiloparsec == pytest.approx(1)
    across = 4.74047 * np.hypot(latents.pm_ra, latents.pm_dec) * kiloparsec
    assert 20 < np.median(across) < 250
    assert across.max() < 1200
    halo = latents.feh < -1.2
    assert np.median(across[halo]) > 2 * np.median(across[latents.feh > -0.3])


def test_giants_are_giants(latents):
    absolute = latents.magnitude - 5 * (latents.log_distance - 1)
    same = (latents.teff > 4400) & (latents.teff < 5100)
    giants = latents.is_giant
    assert np.median(absolute[same & giants]) < np.median(absolute[same & ~giants]) - 3.5
    assert latents.logg[giants].max() < 3.5 < latents.logg[~giants].min()
    assert 0.02 < giants.mean() < 0.3


def test_luminosity_temperature_and_gravity_belong_together(latents):
    mass = latents.log_luminosity - 4 * np.log10(latents.teff / 5772) + latents.logg - 4.438
    assert mass[latents.is_giant] == pytest.approx(np.log10(1.1), abs=0.2)
    assert (np.abs(mass[~latents.is_giant]) < 0.75).all()


def test_labels_stay_where_there_are_templates(latents):
    assert latents.teff.min() >= 3150
    assert latents.teff.max() <= 11_500
    assert np.abs(latents.feh + 0.7).max() <= 1.1 + 1e-9
    assert ((latents.position >= 0) & (latents.position < 1)).all()
    assert latents.magnitude.min() >= 11
    assert latents.magnitude.max() <= 19.5


def test_dust_dims_and_reddens_as_the_survey_says():
    clear, dusty = stars.photometry(series(ebv=[0.0, 0.1], teff=[7000.0, 7000.0]))
    magnitudes = -2.5 * np.log10(dusty / clear) / 0.1
    assert magnitudes[:4] == pytest.approx(EXTINCTION[:4], rel=0.05)
    assert (np.diff(magnitudes) < 0).all()


def test_photometry_is_finite_and_positive(light):
    assert light.shape == (400, len(BANDS))
    assert (light > 0).all()
    assert np.isfinite(light).all()


def test_desi_sees_the_star(latents, light):
    row = int(np.argmin(np.abs(latents.magnitude - 16.5)))
    sed = stars.seds(latents)[row]
    seen = observe_spectrum("desi", sed, rng=np.random.default_rng(0), fibre_fraction=1.0)
    good = ~seen.mask & (seen.wavelength > 5500) & (seen.wavelength < 7200)
    level = light[row, R] * 1e-9 * 3.631e-20 * 2.99792458e18 / 6420**2 * 1e17
    assert np.median(seen.flux[good]) == pytest.approx(level, rel=0.1)
    assert np.median(seen.flux[good] * np.sqrt(seen.ivar[good])) > 10


@pytest.mark.parametrize("chunk", [1, 3, 37])
def test_a_star_is_the_same_in_any_chunk(latents, light, chunk):
    part = stars.draw_stars(range(150, 150 + chunk), seed=1)
    for field in fields(part):
        whole = getattr(latents, field.name)[150 : 150 + chunk]
        assert np.array_equal(getattr(part, field.name), whole), field.name
    assert np.array_equal(stars.photometry(part), light[150 : 150 + chunk])


def test_another_seed_is_another_sky(latents):
    assert not np.isin(stars.draw_stars(range(50), seed=2).teff, latents.teff).any()


def test_no_stars_are_no_stars():
    nobody = stars.draw_stars([], seed=1)
    assert len(nobody) == 0
    assert stars.seds(nobody) == []
    assert stars.photometry(nobody).shape == (0, 8)
