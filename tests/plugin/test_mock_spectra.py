"""Mock spectra obey the physics that they claim, and look like those of the spectrographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from skyvec.mock import nebular, quasars, spectra
from skyvec.mock.galaxies import (
    BANDS,
    EXTINCTION,
    draw_latents,
    load_templates,
    luminosity_distance,
    photometry,
)
from skyvec.mock.sed import Sed, band_fluxes, load_tables, transmission
from skyvec.mock.spectra import fibre_fractions, galaxy_seds, observe_spectrum

DATA = Path(__file__).parents[3] / "shared" / "data"
NOISELESS = 1e12


@pytest.fixture(scope="module")
def latents():
    return draw_latents(range(200), seed=1)


@pytest.fixture(scope="module")
def fluxes(latents):
    return photometry(latents)


@pytest.fixture(scope="module")
def seds(latents):
    return galaxy_seds(latents)


def look(kind, sed, *, seed=0, fibre_fraction=1.0, exposure=1.0):
    rng = np.random.default_rng(seed)
    return observe_spectrum(kind, sed, rng=rng, fibre_fraction=fibre_fraction, exposure=exposure)


def flat(level=3.0):
    return Sed(wavelength=np.array([3000.0, 11_000.0]), flux=np.array([level, level]))


# --- Shape of what comes out


def test_a_desi_spectrum_lies_on_the_grid_of_desi():
    seen = look("desi", flat())
    expected = np.round(3600 + 0.8 * np.arange(7781), 1).astype(np.float32)
    assert np.array_equal(seen.wavelength, expected)
    for name in ("flux", "ivar", "wavelength", "lsf_sigma"):
        assert getattr(seen, name).dtype == np.float32
        assert getattr(seen, name).shape == (7781,)
    assert seen.mask.dtype == bool


def test_an_sdss_spectrum_is_logarithmic_and_its_length_varies():
    lengths = set()
    for seed in range(12):
        seen = look("sdss", flat(), seed=seed)
        assert np.diff(np.log10(seen.wavelength.astype(float))) == pytest.approx(1e-4, abs=3e-7)
        assert seen.wavelength[0] < 3830
        assert seen.wavelength[-1] > 9150
        lengths.add(len(seen.flux))
    assert len(lengths) > 5
    assert min(lengths) >= 3800


def test_everything_is_finite_even_for_no_light_at_all():
    for kind in ("desi", "sdss"):
        seen = look(kind, flat(0.0))
        assert np.isfinite(seen.flux).all()
        assert (seen.ivar[~seen.mask] > 0).all()


# --- Emission and absorption lines


def star_forming(latents):
    return np.flatnonzero((latents.log_ssfr > -10.0) & (latents.redshift < 0.35))


def test_emission_lines_sit_at_their_wavelength_times_one_plus_z(latents, seds):
    checked = 0
    for row in star_forming(latents)[:15]:
        for kind in ("desi", "sdss"):
            seen = look(kind, seds[row], exposure=NOISELESS)
            for rest in (5008.240, 6564.632):
                center = rest * (1 + latents.redshift[row])
                near = np.abs(seen.wavelength - center) < 8
                if near.sum() < 5 or seen.mask[near].any() or center > seen.wavelength[-1] - 20:
                    continue
                peak = np.flatnonzero(near)[np.argmax(seen.flux[near])]
                step = seen.wavelength[peak] - seen.wavelength[peak - 1]
                assert abs(seen.wavelength[peak] - center) <= 1.0 * step
                checked += 1
    assert checked > 30


def test_desi_resolves_the_oxygen_doublet(latents, seds):
    row = min(star_forming(latents), key=lambda row: nebular.gas_dispersion(latents, row=row))
    seen = look("desi", seds[row], exposure=NOISELESS)
    stretch = 1 + latents.redshift[row]

    def at(rest):
        return np.interp(rest * stretch, seen.wavelength, seen.flux)

    assert at(3728.48) < 0.9 * min(at(3727.092), at(3729.875))


def test_calcium_of_old_galaxies_absorbs_where_it_should(latents, seds):
    old = np.flatnonzero((latents.log_ssfr < -11.3) & (latents.redshift < 0.6))
    stacked = []
    rest = np.arange(3915.0, 3955.0, 0.5)
    for row in old[:20]:
        seen = look("desi", seds[row], exposure=NOISELESS)
        good = ~seen.mask
        flux = np.interp(rest * (1 + latents.redshift[row]), seen.wavelength[good], seen.flux[good])
        stacked.append(flux / flux.mean())
    profile = np.mean(stacked, axis=0)
    assert rest[np.argmin(profile)] == pytest.approx(3934.8, abs=2)
    assert profile.min() < 0.75


def test_forming_stars_means_lines_and_metals_mean_nitrogen(latents, seds):
    width = np.array(
        [
            sed.line_flux.max() / np.interp(6700 * (1 + z), sed.wavelength, sed.flux)
            for sed, z in zip(seds, latents.redshift, strict=True)
        ]
    )
    busy = latents.log_ssfr > -10
    assert np.median(width[busy]) > 10 * np.median(width[latents.log_ssfr < -11.5])
    ratio = {}
    for row in star_forming(latents):
        gas = nebular.nebula(latents, row=row)
        halpha, nitrogen, hbeta = (
            gas.relative[np.argmin(abs(gas.wavelength - line))]
            for line in (6564.632, 6585.27, 4862.692)
        )
        assert halpha / hbeta > 2.86
        ratio[latents.log_mass[row]] = nitrogen / halpha
    mass = np.array(list(ratio))
    assert np.corrcoef(mass, np.log(list(ratio.values())))[0, 1] > 0.8


def test_the_flux_of_a_line_does_not_depend_on_the_spectrograph():
    line = Sed(
        wavelength=np.array([3000.0, 11_000.0]),
        flux=np.zeros(2),
        line_wavelength=np.array([4321.3, 7000.2]),
        line_sigma=np.array([0.8, 1.5]),
        line_flux=np.array([50.0, 20.0]),
    )
    for kind in ("desi", "sdss"):
        seen = look(kind, line, exposure=1e14, seed=3)
        flux = np.where(seen.mask, 0, seen.flux)
        total = (flux * np.gradient(seen.wavelength.astype(float))).sum()
        assert total == pytest.approx(70, rel=0.02)


# --- Light


def test_light_through_the_filters_is_that_of_the_catalog(fluxes, seds):
    ratio = np.array([band_fluxes(sed) for sed in seds]) / fluxes.total
    assert np.abs(ratio[:, :4] - 1).max() < 0.02
    assert np.percentile(np.abs(ratio[:, :4] - 1), 90) < 0.005
    assert np.abs(ratio[:, 4:6] - 1).max() < 0.005
    assert np.abs(ratio[:, 6:] - 1).max() < 0.10


def test_flux_falls_with_the_square_of_the_luminosity_distance():
    redshift = np.array([0.1, 0.3, 0.7])
    one = draw_latents([7], seed=1)
    same = replace(
        one,
        **{
            name: np.repeat(getattr(one, name), 3, axis=0)
            for name in one.__dataclass_fields__
            if name not in {"redshift", "ebv"}
        },
        redshift=redshift,
        ebv=np.zeros(3),
    )
    distance = luminosity_distance(redshift, templates=load_templates())
    rest = np.linspace(4200, 5600, 50)
    light = [
        np.interp(rest * (1 + z), sed.wavelength, sed.flux).mean() * (1 + z) * d**2
        for sed, z, d in zip(galaxy_seds(same), redshift, distance, strict=True)
    ]
    assert np.array(light) / light[0] == pytest.approx(1, abs=0.02)


def test_dust_of_the_milky_way_dims_as_the_survey_says_and_reddens():
    wavelength = np.linspace(3300, 11_000, 4000)
    bare = band_fluxes(Sed(wavelength=wavelength, flux=np.ones(4000)))[:4]
    dusty = band_fluxes(Sed(wavelength=wavelength, flux=transmission(wavelength, 0.1)))[:4]
    magnitudes = -2.5 * np.log10(dusty / bare) / 0.1
    assert magnitudes == pytest.approx(EXTINCTION[:4], rel=0.05)
    part = draw_latents(range(5), seed=2)
    clear, dim = (galaxy_seds(replace(part, ebv=np.full(5, ebv))) for ebv in (0.0, 0.3))
    for one, other in zip(clear, dim, strict=True):
        passed = other.flux / one.flux
        at = np.searchsorted(one.wavelength, [4000, 6000, 9000])
        assert passed[at[0]] < passed[at[1]] < passed[at[2]] < 1


def test_the_zero_point_is_ab():
    wavelength = np.geomspace(3000, 300_000, 20_000)
    flux = 3.631e-20 * 2.99792458e18 / wavelength**2 * 1e17  # magnitude zero
    assert 22.5 - 2.5 * np.log10(band_fluxes(Sed(wavelength=wavelength, flux=flux))) == (
        pytest.approx(np.zeros(len(BANDS)), abs=1e-3)
    )


# --- Noise, masks, fibres


def test_residuals_over_sigma_have_unit_width(seds):
    for kind in ("desi", "sdss"):
        residuals = []
        for seed, sed in enumerate(seds[:12]):
            seen = look(kind, sed, seed=seed)
            truth = look(kind, sed, seed=seed, exposure=NOISELESS)
            good = ~seen.mask
            residuals.append((seen.flux - truth.flux)[good] * np.sqrt(seen.ivar[good]))
        residual = np.concatenate(residuals)
        tolerance = 5 / np.sqrt(len(residual))
        assert residual.mean() == pytest.approx(0, abs=tolerance)
        assert residual.std() == pytest.approx(1, abs=tolerance)


def test_sdss_and_desi_agree_about_the_same_galaxy_within_their_errors(seds):
    edges = np.arange(3900, 9150, 40.0)
    pulls = []
    for seed, sed in enumerate(seds[:60]):
        means, variances = [], []
        for offset, kind in ((0, "desi"), (1000, "sdss")):
            seen = look(kind, sed, seed=seed + offset)
            truth = look(kind, sed, seed=seed + offset, exposure=NOISELESS)
            place = np.digitize(seen.wavelength, edges)
            weight = np.bincount(place, seen.ivar, len(edges) + 1)[1:-1]
            # The mean over a bin depends on where its weight lies: take the slope out.
            mid = np.interp(edges[:-1] + 20, truth.wavelength[~truth.mask], truth.flux[~truth.mask])
            shape = truth.flux - mid[np.clip(place - 1, 0, len(mid) - 1)]
            value = np.bincount(place, seen.ivar * (seen.flux - shape), len(edges) + 1)[1:-1]
            means.append(value / weight)
            variances.append(1 / weight)
        clean = np.ones(len(edges) - 1, dtype=bool)
        for line in sed.line_wavelength:
            clean &= np.abs(edges[:-1] + 20 - line) > 40
        pulls.append(((means[0] - means[1]) / np.sqrt(variances[0] + variances[1]))[clean])
    pull = np.concatenate(pulls)
    assert pull.mean() == pytest.approx(0, abs=6 / np.sqrt(len(pull)))
    assert pull.std() == pytest.approx(1, abs=6 / np.sqrt(2 * len(pull)))


def test_masked_samples_have_no_weight_and_a_spoilt_flux(seds):
    share, worst = [], 0.0
    for seed, sed in enumerate(seds[:40]):
        seen = look("desi", sed, seed=seed)
        assert (seen.ivar[seen.mask] == 0).all()
        assert (seen.ivar[~seen.mask] > 0).all()
        share.append(seen.mask.mean())
        worst = max(worst, float(np.abs(seen.flux[seen.mask]).max(initial=0)))
    assert 5e-4 < np.mean(share) < 0.01
    assert worst > 20  # a reader that overlooks the mask shall notice


def test_inverse_variance_grows_with_the_exposure_and_falls_with_light():
    one, two = (look("desi", flat(), exposure=exposure) for exposure in (1.0, 2.0))
    good = ~one.mask
    assert two.ivar[good] == pytest.approx(2 * one.ivar[good], rel=1e-5)
    bright = look("desi", flat(300.0))
    assert (bright.ivar[good] < one.ivar[good]).all()


def test_the_night_sky_shows_in_the_errors():
    seen = look("desi", flat(0.0))
    sigma = np.where(seen.mask, np.nan, seen.ivar) ** -0.5

    def at(low, high):
        inside = (seen.wavelength > low) & (seen.wavelength < high)
        return np.nanmedian(sigma[inside])

    assert at(5576, 5579) > 3 * at(5520, 5560)
    assert at(3600, 3700) > 3 * at(5000, 5200)
    assert at(8344, 8347) > 2 * at(8200, 8250)


def test_a_fibre_takes_less_of_larger_galaxies(latents, fluxes):
    small, large = (fibre_fractions(latents, fluxes, kind) for kind in ("desi", "sdss"))
    assert (small > 0).all()
    assert (small < large).all()
    assert (large < 1).all()
    assert np.corrcoef(latents.disc_radius, small)[0, 1] < -0.3
    half = look("desi", flat(), fibre_fraction=0.5, exposure=NOISELESS)
    whole = look("desi", flat(), exposure=NOISELESS)
    assert np.median(half.flux) == pytest.approx(np.median(whole.flux) / 2, rel=1e-3)


# --- Determinism


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_a_spectrum_is_the_same_in_any_chunk(seds, chunk):
    part = galaxy_seds(draw_latents(range(100, 100 + chunk), seed=1))
    for one, other in zip(part, seds[100 : 100 + chunk], strict=True):
        for name in ("wavelength", "flux", "line_wavelength", "line_sigma", "line_flux"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_the_same_random_numbers_give_the_same_bits(seds):
    for kind in ("desi", "sdss"):
        one, other = (look(kind, seds[3], seed=8) for _ in range(2))
        for name in one.__dataclass_fields__:
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert not np.array_equal(one.flux, look(kind, seds[3], seed=9).flux[: len(one.flux)])


def test_another_seed_is_another_gas():
    gases = [nebular.nebula(draw_latents([0], seed=seed), row=0).scatter for seed in (1, 2)]
    assert gases[0] != gases[1]


# --- Quasars


@pytest.fixture(scope="module")
def bright_quasars():
    return quasars.draw_quasars(range(120), seed=1)


def test_broad_lines_of_quasars_sit_at_their_redshift(bright_quasars):
    checked = 0
    for sed, redshift in zip(quasars.seds(bright_quasars), bright_quasars.redshift, strict=True):
        center = 2798.8 * (1 + redshift)
        if not 4000 < center < 9000:
            continue
        near = np.abs(sed.wavelength / center - 1) < 0.012
        peak = sed.wavelength[near][np.argmax(sed.flux[near] * sed.wavelength[near] ** 1.6)]
        assert peak == pytest.approx(center, rel=0.003)
        checked += 1
    assert checked > 50


def test_quasars_have_the_magnitude_that_they_state(bright_quasars):
    clear = replace(bright_quasars, ebv=np.zeros(len(bright_quasars)))
    r = 22.5 - 2.5 * np.log10(quasars.photometry(clear)[:, BANDS.index("r")])
    # The narrow lines of the spectrum are part of it.
    assert r == pytest.approx(bright_quasars.magnitude, abs=1e-6)


def test_hydrogen_takes_light_from_distant_quasars_only():
    wavelength = np.array([3700.0, 4500.0, 6000.0])
    assert (quasars.igm_transmission(wavelength, 1.0) == 1).all()
    passed = quasars.igm_transmission(wavelength, 3.2)
    assert passed[0] < passed[1] < 0.75
    assert passed[2] == 1
    assert quasars.igm_transmission(np.array([3700.0]), 4.0)[0] < 0.2
    same = quasars.draw_quasars([0, 0], seed=1)
    near, far = quasars.seds(replace(same, redshift=np.array([1.0, 3.2]), ebv=np.zeros(2)))
    forest, red = (
        np.interp(rest * 4.2, far.wavelength, far.flux)
        / np.interp(rest * 2.0, near.wavelength, near.flux)
        for rest in (1150.0, 1450.0)
    )
    assert 0.4 < forest / red < 0.75


def test_a_quasar_is_the_same_in_any_chunk(bright_quasars):
    part = quasars.draw_quasars(range(50, 57), seed=1)
    for name in part.__dataclass_fields__:
        assert np.array_equal(getattr(part, name), getattr(bright_quasars, name)[50:57])
    whole = quasars.photometry(bright_quasars)[50:57]
    assert np.array_equal(quasars.photometry(part), whole)


def test_quasars_outshine_old_galaxies_in_the_blue_and_in_w2(bright_quasars, latents, fluxes):
    magnitudes = -2.5 * np.log10(quasars.photometry(bright_quasars))
    red = -2.5 * np.log10(fluxes.total[(latents.log_ssfr < -11.5) & (latents.redshift > 0.2)])
    g, r, w1, w2 = (BANDS.index(band) for band in ("g", "r", "W1", "W2"))
    assert np.median(magnitudes[:, g] - magnitudes[:, r]) < np.median(red[:, g] - red[:, r]) - 0.8
    assert np.median(magnitudes[:, w1] - magnitudes[:, w2]) > np.median(red[:, w1] - red[:, w2])


# --- Real spectra beside the repository


def test_errors_are_like_those_of_released_desi_spectra():
    path = DATA / "desi" / "desi_pub.hdf5"
    if not path.exists():
        pytest.skip(f"no real DESI spectra at {path}")
    with h5py.File(path) as file:
        ivar = file["spectrum_ivar"][3:5]
    real = np.nanmedian(np.where(ivar > 0, ivar, np.nan) ** -0.5, axis=0)
    seen = look("desi", flat(0.2))
    mock = np.where(seen.mask, np.nan, seen.ivar) ** -0.5
    window = np.arange(7781) // 250
    ratio = np.array(
        [np.nanmedian(mock[window == i]) / np.nanmedian(real[window == i]) for i in range(31)]
    )
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25


def test_the_tables_say_where_they_come_from():
    assert "build_spectral_templates.py" in load_tables().provenance
    assert spectra.FIBRE_DIAMETER["desi"] < spectra.FIBRE_DIAMETER["sdss"]
