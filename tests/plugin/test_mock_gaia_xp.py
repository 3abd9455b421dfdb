"""Mock Gaia spectra follow the light that they are made of, and real ones come back."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from skyvec.mock import gaia_xp, quasars, stars
from skyvec.mock.sed import Sed, load_tables
from skyvec.mock.spectra import galaxy_seds

REAL = Path(__file__).parents[3] / "shared/data/gaia_xp/XP_CONTINUOUS_RAW_with_missing_BP.csv"


@pytest.fixture(scope="module")
def latents():
    return stars.draw_stars(range(60), seed=1)


@pytest.fixture(scope="module")
def seds(latents):
    return stars.seds(latents)


def look(sed, *, seed=0, g_mag=None):
    g_mag = gaia_xp.g_magnitude(sed) if g_mag is None else g_mag
    return gaia_xp.observe_xp(sed, rng=np.random.default_rng(seed), g_mag=g_mag)


def scaled(sed, factor):
    return Sed(wavelength=sed.wavelength, flux=sed.flux * factor)


def test_an_observation_has_110_coefficients_with_errors(seds):
    seen = look(seds[0])
    for values in (seen.coeff, seen.coeff_error):
        assert values.shape == (110,)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert (seen.coeff_error > 0).all()


def test_the_bases_of_gaia_give_the_light_back(seds):
    tables = load_tables()
    inner = (tables.xp_wavelength > 4000) & (tables.xp_wavelength < 9800)
    for sed in seds[:20]:
        flux = gaia_xp.sampled(sed)[inner]
        back = (gaia_xp.coefficients(sed) @ tables.xp_design)[inner]
        assert np.median(np.abs(back / flux - 1)) < 0.03


def test_sampling_keeps_the_flux_of_continuum_and_lines():
    line = Sed(
        wavelength=np.array([3000.0, 11_000.0]),
        flux=np.array([2.0, 2.0]),
        line_wavelength=np.array([5008.24, 30_000.0]),
        line_sigma=np.array([1.0, 1.0]),
        line_flux=np.array([60.0, 9e9]),
    )
    flux = gaia_xp.sampled(line) / 1e-19
    assert np.median(flux) == pytest.approx(2)
    assert (flux - 2).sum() * 20 == pytest.approx(60)
    assert np.argmax(flux) == np.argmin(np.abs(load_tables().xp_wavelength - 5008.24))


def test_coefficients_and_fluxes_are_linear_in_the_light(seds):
    one, three = seds[0], scaled(seds[0], 3.0)
    assert gaia_xp.coefficients(three) == pytest.approx(3 * gaia_xp.coefficients(one), rel=1e-9)
    assert gaia_xp.mean_fluxes(three) == pytest.approx(3 * gaia_xp.mean_fluxes(one))


def test_hot_stars_shine_in_bp_and_cool_ones_in_rp(latents, seds):
    fluxes = np.array([gaia_xp.mean_fluxes(sed) for sed in seds])
    coefficients = np.array([gaia_xp.coefficients(sed) for sed in seds])
    order = np.argsort(latents.teff)
    ratio = fluxes[:, 1] / fluxes[:, 2]
    assert np.corrcoef(np.argsort(order), np.argsort(np.argsort(ratio)))[0, 1] > 0.95
    assert np.corrcoef(ratio, coefficients[:, 0] / coefficients[:, 55])[0, 1] > 0.95


def test_high_orders_are_as_small_as_in_real_sources(seds):
    coefficients = np.abs([gaia_xp.coefficients(sed) for sed in seds])
    for first in (0, 55):
        share = np.median(coefficients[:, first : first + 55] / coefficients[:, [first]], axis=0)
        assert share[1] > 0.02
        assert share[20:].mean() < 0.0015
    light = np.array([gaia_xp.mean_fluxes(sed)[1:] for sed in seds])
    share = coefficients[:, [0, 55]] / light
    assert share.min() > 0.03  # in real sources 0.09 to 0.15
    assert share.max() < 0.3


def test_noise_is_what_the_errors_say(seds):
    pulls = np.array(
        [
            (seen.coeff - gaia_xp.coefficients(sed)) / seen.coeff_error
            for seed, sed in enumerate(seds)
            for seen in [look(sed, seed=seed)]
        ]
    )
    assert pulls.mean() == pytest.approx(0, abs=5 / np.sqrt(pulls.size))
    assert pulls.std() == pytest.approx(1, abs=5 / np.sqrt(2 * pulls.size))


def test_brighter_sources_have_better_spectra(seds):
    errors = [
        look(scaled(seds[0], factor)).coeff_error[0] / gaia_xp.coefficients(seds[0])[0] / factor
        for factor in (0.1, 1.0, 10.0, 100.0)
    ]
    assert (np.diff(np.abs(errors)) < 0).all()


def test_mean_fluxes_scatter_around_the_truth(seds):
    truth = gaia_xp.mean_fluxes(seds[0])
    seen = [look(seds[0], seed=seed) for seed in range(300)]
    for column, name in enumerate(("g_flux", "bp_flux", "rp_flux")):
        values = np.array([getattr(one, name) for one in seen])
        error = values.std()
        assert values.mean() == pytest.approx(truth[column], abs=5 * error / np.sqrt(300))
        assert 1e-4 < error / truth[column] < 0.05


def test_g_magnitude_and_flux_agree(seds):
    truth = gaia_xp.mean_fluxes(seds[3])[0]
    assert gaia_xp.g_flux_of(gaia_xp.g_magnitude(seds[3])) == pytest.approx(truth)


def test_parallax_errors_grow_as_sources_fade():
    rng = np.random.default_rng(1)
    previous = 0.0
    for g_mag in (13.0, 16.0, 18.0, 20.0):
        seen = np.array([gaia_xp.observe_parallax(0.5, rng=rng, g_mag=g_mag) for _ in range(400)])
        error = seen[0, 1]
        assert error > previous
        assert seen[:, 0].mean() == pytest.approx(0.5, abs=5 * error / 20)
        assert seen[:, 0].std() == pytest.approx(error, rel=5 / np.sqrt(800))
        previous = error


def test_quasars_and_galaxies_have_spectra_too():
    from skyvec.mock.galaxies import draw_latents

    for sed in (
        *quasars.seds(quasars.draw_quasars(range(5), seed=1)),
        *galaxy_seds(draw_latents(range(5), seed=1)),
    ):
        seen = look(sed)
        assert np.isfinite(seen.coeff).all()
        assert seen.g_flux > 0


def test_the_same_random_numbers_give_the_same_bits(seds):
    one, other = look(seds[1], seed=4), look(seds[1], seed=4)
    assert np.array_equal(one.coeff, other.coeff)
    assert np.array_equal(one.coeff_error, other.coeff_error)
    assert (one.g_flux, one.bp_flux, one.rp_flux) == (other.g_flux, other.bp_flux, other.rp_flux)
    assert not np.array_equal(one.coeff, look(seds[1], seed=5).coeff)


def numbers(text):
    return np.array([float(word) for word in text.strip("()[]").replace(",", " ").split()])


def test_real_sources_come_back_through_the_bases_within_their_errors():
    if not REAL.exists():
        pytest.skip(f"no real XP spectra at {REAL}")
    csv.field_size_limit(10**8)
    checked = 0
    with REAL.open() as lines:
        for row in csv.DictReader(lines):
            if not row["bp_coefficients"]:
                continue  # this one lacks BP
            real, error = (
                np.concatenate([numbers(row[f"{prism}_{name}"]) for prism in ("bp", "rp")])
                for name in ("coefficients", "coefficient_errors")
            )
            flux = real @ load_tables().xp_design
            pull = (gaia_xp.invert(flux) - real) / error
            assert np.sqrt(np.mean(pull**2)) < 3
            # The errors of the mock, for light like this, are those of Gaia within a factor 2.
            light = Sed(wavelength=load_tables().xp_wavelength, flux=flux / 1e-19)
            _, bp_flux, rp_flux = gaia_xp.mean_fluxes(light)
            model = gaia_xp.coefficient_errors(bp_flux=bp_flux, rp_flux=rp_flux)
            for part in (slice(0, 55), slice(55, 110)):
                assert 0.5 < np.median(model[part] / error[part]) < 2
            checked += 1
    assert checked == 2
