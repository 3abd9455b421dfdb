"""Who is in the mock sky, who is held by which survey, and what a second release does."""

from __future__ import annotations

import numpy as np
import pytest
from hats.pixel_math import compute_spatial_index
from hypothesis import given, settings
from hypothesis import strategies as st

from skyvec.mock.footprints import (
    AREAS,
    CUT_STAMPS,
    FAILED_FIBRES,
    GAIA_XP_LIMIT,
    HSC_BORDER,
    MISSING_BANDS,
    SURVEYS,
    Area,
    flaws_of,
    held_by,
    outside,
)
from skyvec.mock.galaxies import deredden
from skyvec.mock.objects import describe
from skyvec.mock.partitions import partition
from skyvec.mock.places import EPOCH, SCATTER, offsets, positions
from skyvec.mock.sky import Change, Fate, Footprint, Kind, assign_changes, draw_sky
from skyvec.mock.survey_ids import (
    bricks,
    desi_ids,
    gaia_ids,
    hsc_ids,
    legacy_ids,
    padded,
    sdss_ids,
)

SEED = 5


@pytest.fixture(scope="module")
def first():
    return draw_sky(400, seed=SEED, footprint=Footprint(), stars=120, quasars=40)


@pytest.fixture(scope="module")
def second():
    sky = draw_sky(400, seed=SEED, footprint=Footprint(), stars=120, quasars=40, release=2)
    return assign_changes(sky, seed=SEED, has_spectrum=np.arange(len(sky)) % 2 == 0)


@pytest.fixture(scope="module")
def objects(first):
    return describe(first, seed=SEED)


@pytest.fixture(scope="module")
def held(objects):
    return held_by(objects, seed=SEED)


def magnitude(flux):
    return 22.5 - 2.5 * np.log10(flux)


def test_a_sky_holds_what_was_asked_for_and_nobody_twice(first):
    assert [int((first.kind == kind).sum()) for kind in Kind] == [400, 120, 40]
    assert len(np.unique(first.key)) == len(first)
    assert (first.fate == Fate.UNCHANGED).all()


def test_the_second_release_changes_exactly_its_shares(second):
    counts = {fate: int((second.fate == fate).sum()) for fate in Fate}
    # 560 objects: 40 + 12 + 4 added, 3% is 16.8, 1% is 5.6.
    assert counts == {
        Fate.UNCHANGED: 560 - 17 - 6,
        Fate.ADDED: 56,
        Fate.CHANGED: 17,
        Fate.WITHDRAWN: 6,
    }
    assert ((second.change != Change.NONE) == (second.fate == Fate.CHANGED)).all()


def test_the_second_release_has_the_objects_of_the_first_at_their_places(first, second):
    old = second[second.fate != Fate.ADDED]
    assert np.array_equal(old.key, first.key)
    assert np.array_equal(old.ra, first.ra)
    assert np.array_equal(old.dec, first.dec)


def test_new_objects_lie_beyond_the_old_edge_and_changes_in_one_field(second):
    assert (second.ra[second.fate == Fate.ADDED] > 170).all()
    assert (second.ra[second.fate != Fate.ADDED] <= 170).all()
    worked_on = np.isin(second.fate, [Fate.CHANGED, Fate.WITHDRAWN])
    ra, dec = second.ra[worked_on], second.dec[worked_on]
    assert (ra.max() - ra.min()) * (dec.max() - dec.min()) < 0.5 * 300


def test_only_objects_with_a_spectrum_get_a_new_one(second):
    observed_again = np.flatnonzero(second.change == Change.SPECTRUM)
    assert (observed_again % 2 == 0).all()


@pytest.mark.parametrize("chunk", [1, 37])
def test_an_object_is_the_same_in_any_chunk(first, objects, held, chunk):
    part = slice(410, 410 + chunk)
    alone = describe(first[part], seed=SEED)
    assert np.array_equal(alone.legacy.total, objects.legacy.total[part])
    assert np.array_equal(alone.hsc.total, objects.hsc.total[part])
    assert np.array_equal(alone.seeing, objects.seeing[part])
    found = held_by(alone, seed=SEED)
    assert all(np.array_equal(found[survey], held[survey][part]) for survey in SURVEYS)


def test_kinds_may_come_in_any_order(first, objects):
    shuffled = np.random.Generator(np.random.Philox(1)).permutation(len(first))[:60]
    found = describe(first[shuffled], seed=SEED)
    assert np.array_equal(found.legacy.total, objects.legacy.total[shuffled])
    assert np.array_equal(found.pm_ra, objects.pm_ra[shuffled])


def test_surveys_hold_objects_of_their_area_only(first, held):
    for survey in SURVEYS:
        inside = AREAS[survey].depth(first.position) >= 0
        assert not (held[survey] & ~inside).any(), survey
    covered = (AREAS["hsc"].depth(first.position) >= 0).mean()
    assert covered == pytest.approx(0.7 * 0.65, abs=0.06)


def test_surveys_hold_what_their_cuts_say(first, objects, held):
    g, r, z = (magnitude(deredden(objects.legacy.total, objects.ebv)[:, b]) for b in (0, 1, 3))
    galaxy, star = first.kind == Kind.GALAXY, first.kind == Kind.STAR
    assert np.array_equal(held["legacysurvey"], galaxy)
    assert (objects.gaia_g[held["gaia"]] < GAIA_XP_LIMIT).all()
    assert not (held["gaia"] & galaxy).any()
    assert held["gaia"][star & (objects.gaia_g < GAIA_XP_LIMIT)].all()
    in_desi = AREAS["desi"].depth(first.position) >= 0
    bright = galaxy & in_desi & (r < 19.5)
    assert 0.65 < held["desi"][bright].mean() < 0.97
    faint = galaxy & (r > 20.175) & ~((z < 20.7) & (r - z > 0.9))
    assert not held["desi"][faint].any()
    assert not held["sdss"][galaxy & (r > 17.77) & ~((r < 19.2) & (g - r > 1.3))].any()


def test_hsc_and_the_legacy_survey_see_nearly_the_same_light(objects):
    color = magnitude(objects.hsc.total[:, :4]) - magnitude(objects.legacy.total[:, :4])
    # HSC r lies 200 Angstrom blueward of DECam r, so red galaxies are fainter in it.
    assert np.abs(np.median(color, axis=0)).max() < 0.12
    assert (np.abs(color) < 0.5).mean() > 0.99
    share = objects.hsc.bulge[:, 1] / objects.hsc.total[:, 1]
    assert share == pytest.approx(objects.legacy.bulge_fraction, abs=0.05)


def test_galaxies_without_dust_fade_with_distance_in_hsc_too(objects):
    near = objects.redshift < 0.1
    far = (objects.redshift > 0.6) & (objects.sky.kind == Kind.GALAXY)
    per_mass = objects.hsc.total[:, 2] / 10**objects.log_mass
    assert np.nanmedian(per_mass[near]) > 30 * np.nanmedian(per_mass[far])


def test_positions_scatter_by_the_errors_of_a_survey(objects):
    still = objects.sky.kind != Kind.STAR
    for survey in SURVEYS:
        spread = offsets(objects, survey, seed=SEED)[still].std(axis=0)
        assert spread == pytest.approx([SCATTER[survey]] * 2, rel=0.12), survey


def test_stars_move_between_the_epochs(objects):
    fast = np.flatnonzero(np.hypot(objects.pm_ra, objects.pm_dec) > 20)
    assert len(fast) > 5
    ra, dec = positions(objects, "gaia", seed=SEED)
    years = EPOCH["gaia"] - EPOCH["legacysurvey"]
    east = (ra - objects.sky.ra) * np.cos(np.radians(objects.sky.dec)) * 3600
    north = (dec - objects.sky.dec) * 3600
    assert east[fast] == pytest.approx(objects.pm_ra[fast] / 1000 * years, abs=1e-3)
    assert north[fast] == pytest.approx(objects.pm_dec[fast] / 1000 * years, abs=1e-3)


def test_ids_look_like_those_of_the_surveys_and_are_unique(first):
    legacy, hsc, sdss = (
        legacy_ids(first),
        hsc_ids(first, seed=SEED),
        sdss_ids(first, seed=SEED),
    )
    desi, gaia = desi_ids(first), gaia_ids(first)
    for ids in (legacy, hsc, sdss, desi, gaia):
        assert len(np.unique(ids)) == len(first)
    assert legacy.dtype == "S16"
    assert legacy[0].split(b"-")[0] in bricks(first.ra, first.dec)[0].astype("S8")
    assert (hsc // 10**16 == 7).all()
    assert (hsc.astype(np.float64).astype(np.int64) != hsc).any()  # floats would not do
    assert padded(sdss).dtype == "S22"
    assert padded(sdss)[0].decode() == f"{sdss[0]:>22}"
    assert (desi >> 58 & 1 == 1).all()  # DESI's own mark of simulated targets
    assert (gaia > 0).all()


def test_what_goes_wrong_goes_wrong_as_often_as_stated():
    sky = draw_sky(1, seed=1, footprint=Footprint(), stars=6000)
    flaws = flaws_of(sky, seed=1)
    assert flaws.desi_failed.mean() == pytest.approx(FAILED_FIBRES, abs=0.006)
    assert flaws.sdss_failed.mean() == pytest.approx(FAILED_FIBRES, abs=0.006)
    assert (flaws.legacy_cut > 0).mean() == pytest.approx(CUT_STAMPS, abs=0.007)
    assert flaws.hsc_no_band.any(axis=1).mean() < 0.8
    inner = AREAS["hsc"].depth(sky.position) > HSC_BORDER
    assert not flaws.hsc_no_band[inner].any()
    border = (AREAS["hsc"].depth(sky.position) >= 0) & ~inner
    assert flaws.hsc_no_band[border].mean() == pytest.approx(MISSING_BANDS, abs=0.05)
    assert not flaws.hsc_no_band.all(axis=1).any()


@pytest.mark.parametrize("side", range(4))
def test_an_edge_cuts_off_its_share_of_a_cutout(side):
    lost = outside(20, share=0.25, side=side)
    assert lost.sum() == 100
    assert not lost[9:11, 9:11].any()
    assert not outside(20, share=0.0, side=side).any()


def test_an_area_knows_how_deep_inside_a_place_is():
    area = Area(u=(0.0, 0.5))
    places = np.array([[0.1, 9.0], [0.45, 0.5], [0.6, 0.5]])
    assert area.depth(places) == pytest.approx([0.1, 0.05, -0.1])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), old=st.integers(1, 300), new=st.integers(0, 100))
def test_a_later_release_keeps_the_pixels_of_the_first(seed, old, new):
    rng = np.random.Generator(np.random.Philox(seed))
    ra = np.concatenate([150 + 20 * rng.random(old), 170 + 5 * rng.random(new)])
    spatial = compute_spatial_index(ra, 15 * rng.random(old + new) - 5)
    is_old = np.arange(old + new) < old
    withdrawn = is_old & (rng.random(old + new) < 0.1)
    everyone = np.ones(old, dtype=bool)
    before = partition(spatial[:old], is_old=everyone, is_held=everyone)
    after = partition(spatial, is_old=is_old, is_held=~withdrawn)
    dealt = np.sort(np.concatenate([*after.values(), np.empty(0, np.int64)]))
    assert np.array_equal(dealt, np.flatnonzero(~withdrawn))
    for pixel, rows in before.items():
        kept = [row for row in rows if not withdrawn[row]]
        found = [row for row in after.get(pixel, []) if is_old[row]]
        assert kept == found
    leaves = sorted(after)
    for a in leaves:
        inside = [
            b for b in leaves if b.order > a.order and b.pixel >> 2 * (b.order - a.order) == a.pixel
        ]
        assert not inside
