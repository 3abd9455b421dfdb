"""The mock galaxies obey the physics that they claim."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from skyvec.mock import galaxies
from skyvec.mock.galaxies import (
    BANDS,
    deredden,
    draw_latents,
    is_selected,
    load_templates,
    luminosity_distance,
    photometry,
)

G, R, Z = (BANDS.index(band) for band in "grz")


@pytest.fixture(scope="module")
def latents():
    return draw_latents(range(1500), seed=1)


@pytest.fixture(scope="module")
def fluxes(latents):
    return photometry(latents)


def color(flux, blue, red):
    return -2.5 * np.log10(flux[:, blue] / flux[:, red])


def test_flux_falls_with_the_square_of_the_luminosity_distance():
    flat = replace(load_templates(), flux=np.ones_like(load_templates().flux))
    redshift = np.array([0.05, 0.3, 1.0])
    flux = flat.fluxes(np.ones((3, 5)), redshift)[:, R]
    distance = galaxies.COSMOLOGY.luminosity_distance(redshift).value
    assert flux[0] / flux == pytest.approx((distance / distance[0]) ** 2, rel=1e-4)


def test_distances_are_those_of_astropy():
    redshift = np.array([0.0123, 0.4567, 1.234])
    expected = galaxies.COSMOLOGY.luminosity_distance(redshift).value
    found = luminosity_distance(redshift, templates=load_templates())
    assert found == pytest.approx(expected, rel=2e-4)


def test_a_galaxy_of_fixed_stars_fades_in_griz_as_it_recedes():
    redshift = np.linspace(0.05, 1.2, 24)
    mix = np.repeat(load_templates().mix[:1], len(redshift), axis=0)
    flux = load_templates().fluxes(mix, redshift)[:, :4]
    assert (np.diff(flux, axis=0) < 0).all()


def test_early_types_redden_with_redshift_until_the_break_leaves_g():
    templates = load_templates()
    redshift = np.linspace(0.0, 0.4, 9)
    early = templates.mix[templates.mix_is_quiescent].mean(axis=0)
    flux = templates.fluxes(np.repeat(early[None], 9, axis=0), redshift + 1e-3)
    assert (np.diff(color(flux, G, R)) > 0).all()
    assert color(flux, G, R)[-1] > 1.4


def test_red_galaxies_form_fewer_stars(latents, fluxes):
    near = latents.redshift < 0.3
    g_r = color(deredden(fluxes.total, latents.ebv), G, R)[near]
    ssfr = latents.log_ssfr[near]
    assert np.median(ssfr[g_r > 0.9]) < np.median(ssfr[g_r < 0.7]) - 0.5


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_galaxy_is_the_same_in_any_chunk(latents, fluxes, chunk):
    part = draw_latents(range(300, 300 + chunk), seed=1)
    for field in fields(part):
        whole = getattr(latents, field.name)[300 : 300 + chunk]
        assert np.array_equal(getattr(part, field.name), whole), field.name
    assert np.array_equal(photometry(part).total, fluxes.total[300 : 300 + chunk])


def test_another_seed_is_another_sky(latents):
    other = draw_latents(range(50), seed=2)
    assert not np.isin(other.redshift, latents.redshift).any()


def test_streams_of_one_object_do_not_overlap():
    draws = [galaxies.object_rng(seed=3, index=5, stream=s).random(1000) for s in range(4)]
    assert len(np.unique(np.concatenate(draws))) == 4000


def test_the_survey_holds_the_redshifts_and_magnitudes_of_its_limit(latents, fluxes):
    chosen = is_selected(latents, fluxes)
    magnitude = 22.5 - 2.5 * np.log10(deredden(fluxes.total, latents.ebv)[chosen, Z])
    assert magnitude.max() < galaxies.MAGNITUDE_LIMIT
    redshift = latents.redshift[chosen]
    assert redshift.min() >= 0.01
    assert redshift.max() < 1.45
    assert 0.35 < np.median(redshift) < 0.5
    assert 0.4 < chosen.mean() < 0.8  # draws are not wasted


def test_dust_of_the_milky_way_dims_and_reddens_and_can_be_undone(latents, fluxes):
    clear = photometry(replace(latents, ebv=np.zeros(len(latents))))
    assert (fluxes.total < clear.total).all()
    assert (color(fluxes.total, G, R) > color(clear.total, G, R)).all()
    assert deredden(fluxes.total, latents.ebv) == pytest.approx(clear.total, rel=1e-12)


def test_bulge_and_disc_add_up_and_the_bulge_is_no_bluer(latents, fluxes):
    clear = photometry(replace(latents, bulge_fraction=np.zeros(len(latents))))
    assert (clear.bulge == 0).all()
    assert fluxes.total == pytest.approx(clear.total, rel=1e-12)
    both = (fluxes.bulge_fraction > 0.05) & (fluxes.bulge_fraction < 0.95)
    bluer = color(fluxes.disc[both], G, R) - color(fluxes.bulge[both], G, R)
    assert np.median(bluer) < 0


def test_masses_are_those_that_the_templates_leave(latents):
    left = (latents.weights * load_templates().mass_remaining).sum(axis=1)
    assert np.log10(left) == pytest.approx(latents.log_mass, abs=1e-9)


def test_the_table_says_where_it_comes_from_and_under_which_licence():
    text = load_templates().provenance
    for word in ("kcorrect 5.1.9", "speclite 1.0.0", "BSD-3-Clause", "build_galaxy_templates.py"):
        assert word in text
