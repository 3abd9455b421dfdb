"""The join: the same matches however the sky is cut up, and every row accounted for."""

import math
from dataclasses import replace

import erfa
import numpy as np
import pytest
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.ids import canonical_ids
from skyvec.releases.joining.catalog_keys import CatalogKeys
from skyvec.releases.joining.join import JoinRule, decide_rule, margin_needed, match
from skyvec.releases.sky import near_pixel
from skyvec.releases.source import SourceObjects
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import GAIA, LEGACY_SURVEY

ARCSEC = 1 / 3600


def keys_of(ra, dec, ids=None, *, pixel=None, rows=None, **motion):
    """Keys of rows that all belong to the pixel of the first, unless said otherwise."""
    ra, dec = np.array(ra, np.float64), np.array(dec, np.float64)
    ids = [f"r{i}" for i in range(len(ra))] if ids is None else ids
    at_home = pixel or HealpixPixel(0, int(compute_spatial_index(ra[:1], dec[:1])[0] >> 58))
    return CatalogKeys(
        pixel=at_home, rows=len(ra) if rows is None else rows,
        ids=canonical_ids(np.array(ids)), ra=ra, dec=dec,
        **{k: np.array(v, np.float64) for k, v in motion.items()},
    )  # fmt: skip


def objects_of(ra, dec, ids=None, **motion):
    ids = [f"s{i}" for i in range(len(ra))] if ids is None else ids
    return SourceObjects(
        ids=canonical_ids(np.array(ids)), ra=np.array(ra, np.float64),
        dec=np.array(dec, np.float64), file=np.zeros(len(ra), np.int32), row=np.arange(len(ra)),
        **{k: np.array(v, np.float64) for k, v in motion.items()},
    )  # fmt: skip


def position(radius=1.0, **changes):
    return JoinRule(by="position", radius_arcsec=radius, **changes)


def take(objects, places):
    changed = {
        name: column[places]
        for name in ("ids", "ra", "dec", "file", "row", "pm_ra", "pm_dec")
        if (column := getattr(objects, name)) is not None
    }
    return replace(objects, **changed)


def near(objects, pixel, margin):
    """The objects that a source would give for the pixel."""
    return take(objects, near_pixel(objects.ra, objects.dec, pixel, margin_arcsec=margin))


def keys_in(keys, pixel, margin):
    """Keys of one pixel with its border, cut out of those of the whole sky."""
    own = near_pixel(keys.ra, keys.dec, pixel, margin_arcsec=0)
    around = near_pixel(keys.ra, keys.dec, pixel, margin_arcsec=margin) & ~own
    order = np.r_[np.flatnonzero(own), np.flatnonzero(around)]
    motion = {
        name: getattr(keys, name)[order]
        for name in ("pm_ra", "pm_dec")
        if getattr(keys, name) is not None
    }
    return CatalogKeys(pixel=pixel, rows=int(own.sum()), ids=keys.ids[order], ra=keys.ra[order],
                       dec=keys.dec[order], **motion)  # fmt: skip


def brute_force(keys, objects, radius):
    """Row id -> object id, by comparing all with all, one after the other."""

    def chord(a, b):
        d = math.radians(a[1] - b[1]) / 2, math.radians(a[0] - b[0]) / 2
        h = math.sin(d[0]) ** 2 + math.cos(math.radians(a[1])) * math.cos(math.radians(b[1])) * (
            math.sin(d[1]) ** 2
        )
        return 2 * math.degrees(math.asin(math.sqrt(h))) / ARCSEC

    rows = list(zip(keys.ra.tolist(), keys.dec.tolist(), keys.ids.tolist(), strict=True))
    stars = list(zip(objects.ra.tolist(), objects.dec.tolist(), objects.ids.tolist(), strict=True))
    apart = {(r[2], s[2]): chord(r, s) for r in rows for s in stars}
    best_of_row = {r[2]: min(stars, key=lambda s: (apart[r[2], s[2]], s[2]))[2] for r in rows}
    best_of_star = {s[2]: min(rows, key=lambda r: (apart[r[2], s[2]], r[2]))[2] for s in stars}
    return {
        row: star
        for row, star in best_of_row.items()
        if best_of_star[star] == row and apart[row, star] <= radius
    }


def pairs(keys, objects, found):
    rows = np.flatnonzero(found.index >= 0)
    return dict(zip(keys.ids[rows].tolist(), objects.ids[found.index[rows]].tolist(), strict=True))


CORNERS = [
    (0.0, 0.0), (45.0, 0.0), (0.0, 90.0), (123.0, -90.0), (90.0, math.degrees(math.asin(2 / 3))),
    (315.0, -math.degrees(math.asin(2 / 3))), (22.5, math.degrees(math.asin(1 / 3))),
    (101.25, 0.0), (359.9999, 12.3), (267.2, -41.81),
]  # fmt: skip
"""Where 2, 3 or 4 pixels of every order meet, both poles, and RA 0."""


def around(rng, centre, n, width):
    """Positions within a few arcsec of a centre, evenly in the tangent plane."""
    lon, lat = np.radians(centre)
    x, y = rng.uniform(-width, width, (2, n)) * np.radians(ARCSEC)
    ra, dec = erfa.tpsts(x, y, lon, lat)
    return np.degrees(ra) % 360, np.degrees(dec)


@given(
    seed=st.integers(0, 10**6),
    centre=st.sampled_from(CORNERS),
    orders=st.lists(st.sampled_from([0, 1, 2, 4, 7, 11, 13, 14, 16, 29]), min_size=1, max_size=3),
    radius=st.floats(0.5, 5),
)
def test_any_division_of_the_sky_gives_the_matches_of_all_with_all(seed, centre, orders, radius):
    rng = np.random.default_rng(seed)
    ra, dec = around(rng, centre, 50, 5 * radius)
    jitter = rng.normal(0, radius / 2 * ARCSEC, (2, 50))
    star_ra = np.r_[(ra + jitter[0] / np.cos(np.radians(dec).clip(-1.57, 1.57))), ra[:3]] % 360
    star_dec = np.r_[np.clip(dec + jitter[1], -90, 90), dec[:3]]
    keys = keys_of(np.r_[ra, ra[:4]], np.r_[dec, dec[:4]], rng.permutation(54))
    objects = objects_of(star_ra, star_dec, rng.permutation(len(star_ra)))
    rule = position(radius)
    margin = margin_needed(rule, LEGACY_SURVEY)
    found = {}
    for pixel in divisions(keys, sorted(orders)):
        part, stars = keys_in(keys, pixel, margin), near(objects, pixel, margin)
        found |= pairs(part, stars, match(part, stars, rule, survey=LEGACY_SURVEY))
    assert found == brute_force(keys, objects, radius)


def divisions(keys, orders):
    """Pixels that hold the keys; every other pixel of one order is cut into those of the next."""
    index = compute_spatial_index(keys.ra, keys.dec)
    pixels = {HealpixPixel(orders[0], int(p)) for p in np.unique(index >> 2 * (29 - orders[0]))}
    for order in orders[1:]:
        cut = {p for p in pixels if p.pixel % 2}
        inside = [i for i in index if any(i >> 2 * (29 - p.order) == p.pixel for p in cut)]
        pixels = (pixels - cut) | {HealpixPixel(order, int(i) >> 2 * (29 - order)) for i in inside}
    return pixels


@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_and_objects_has_no_influence(seed):
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 4, (4, 30)) * ARCSEC  # a grid, so that many distances are equal
    keys = keys_of(10 + steps[0], steps[1], rng.permutation(30))
    objects = objects_of(10 + steps[2], steps[3], rng.permutation(30))
    first = match(keys, objects, position(1.5), survey=LEGACY_SURVEY)
    rows, places = rng.permutation(30), rng.permutation(30)
    mixed = replace(keys, ids=keys.ids[rows], ra=keys.ra[rows], dec=keys.dec[rows])
    stars = take(objects, places)
    again = match(mixed, stars, position(1.5), survey=LEGACY_SURVEY)
    assert pairs(mixed, stars, again) == pairs(keys, objects, first)
    assert again.counts == first.counts
    assert again.flags.tolist() == first.flags[rows].tolist()
    assert np.array_equal(again.separation_arcsec, first.separation_arcsec[rows], equal_nan=True)


def test_equal_distances_go_to_the_smallest_id():
    keys, step = keys_of([10.0], [0.0]), ARCSEC / 2
    for places in ([step, -step, step], [-step, step, -step]):  # north and south are equally far
        objects = objects_of([10.0] * 4, [*places, ARCSEC], ["c", "a", "b", "0"])
        found = match(keys, objects, position(), survey=LEGACY_SURVEY)
        assert (found.index.tolist(), found.counts["ambiguous"]) == ([1], 1)
        assert found.flags.tolist() == [Flag.MATCH_AMBIGUOUS]


@pytest.mark.parametrize("apart", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("dec", [0.0, -67.3, 89.99999, 90.0])
def test_separations_hold_to_a_billionth_of_an_arcsec(apart, dec):
    keys, objects = keys_of([359.99999], [dec]), objects_of([359.99999], [dec - apart * ARCSEC])
    found = match(keys, objects, position(apart * 1.0001), survey=LEGACY_SURVEY)
    assert found.separation_arcsec[0] == pytest.approx(apart, abs=1e-9)


def test_the_radius_is_a_limit():
    keys, objects = keys_of([10.0, 20.0], [0.0, 0.0]), objects_of([10.0, 20.0], [1.01e-3, 0.99e-3])
    found = match(keys, objects, position(3.6), survey=LEGACY_SURVEY)
    assert found.index.tolist() == [-1, 1]
    assert np.isnan(found.separation_arcsec[0])
    assert (found.counts["matched"], found.counts["unmatched"]) == (1, 1)


def test_an_object_goes_to_the_nearer_row_only_even_if_that_is_in_the_next_pixel():
    south, north = HealpixPixel(0, 8), HealpixPixel(0, 4)
    ra, dec = [22.5, 22.5], [-23.0, -23.0 + 0.5 * ARCSEC]
    objects = objects_of([22.5], [-23.0 + 0.4 * ARCSEC])
    pixel = HealpixPixel(
        0, int(compute_spatial_index(np.array(ra[:1]), np.array(dec[:1]))[0] >> 58)
    )
    assert pixel in (south, north)
    keys = keys_of(ra, dec, pixel=pixel, rows=1)
    found = match(keys, objects, position(), survey=LEGACY_SURVEY)
    assert (found.index.tolist(), found.counts["not_reciprocal"]) == ([-1], 1)


def test_matches_across_the_border_are_counted():
    keys = keys_of([359.99999], [60.0], pixel=HealpixPixel(0, 3))
    objects = objects_of([0.00001, 200.0], [60.0, 0.0])
    found = match(keys, objects, position(), survey=LEGACY_SURVEY)
    assert (found.index.tolist(), found.counts["border"], found.counts["outside_pixel"]) == (
        [0], 1, 0
    )  # fmt: skip
    assert match(replace(keys, pixel=HealpixPixel(0, 7)), objects, position(),
                 survey=LEGACY_SURVEY).counts["outside_pixel"] == 1  # fmt: skip


BARNARD = {"ra": 269.44850, "dec": 4.73942, "pm_ra": -801.551, "pm_dec": 10362.394}
"""Barnard's star in Gaia DR3."""


def moved(star, years):
    """Where a star is some years later, by the reference implementation."""
    lon, lat = np.radians(star["ra"]), np.radians(star["dec"])
    pm = np.radians([star["pm_ra"] / 3.6e6 / np.cos(lat), star["pm_dec"] / 3.6e6])
    ra, dec, *_ = erfa.pmsafe(lon, lat, *pm, 0.5, 0, 2457389.0, 0, 2457389.0 + years * 365.25, 0)
    return np.degrees(ra), np.degrees(dec)


@pytest.mark.parametrize("star", [BARNARD, BARNARD | {"dec": 89.999}, BARNARD | {"dec": -89.9999}])
def test_a_fast_star_is_found_at_the_epoch_of_the_catalog(star):
    ra, dec = moved(star, -16)
    keys = keys_of([ra], [dec], pixel=HealpixPixel(0, 0))
    objects = objects_of(*([star[k]] for k in ("ra", "dec")), pm_ra=[star["pm_ra"]],
                         pm_dec=[star["pm_dec"]])  # fmt: skip
    still = match(keys, objects, position(), survey=GAIA)
    found = match(keys, objects, position(epoch=2000.0), survey=GAIA)
    assert (still.counts["matched"], found.counts["matched"]) == (0, 1)
    assert found.separation_arcsec[0] < 1e-5
    assert (found.counts["moved"], found.counts["too_fast"]) == (1, 0)


def test_rows_move_to_the_epoch_of_a_source_without_motions():
    ra, dec = moved(BARNARD, 10.5)
    keys = keys_of([BARNARD["ra"], 10.0], [BARNARD["dec"], 0.0], pm_ra=[BARNARD["pm_ra"], np.nan],
                   pm_dec=[BARNARD["pm_dec"], 5000.0])  # fmt: skip
    survey = replace(LEGACY_SURVEY, epoch=2026.5)
    found = match(keys, objects_of([ra, 10], [dec, 0]), position(epoch=2016.0), survey=survey)
    assert found.index.tolist() == [0, 1]
    assert found.separation_arcsec[0] < 1e-5
    assert found.separation_arcsec[1] == 0  # half a motion is none
    assert found.counts["moved"] == 1


@given(seed=st.integers(0, 10**6), catalog_moves=st.booleans())
def test_margins_suffice_for_what_moves(seed, catalog_moves):
    rng = np.random.default_rng(seed)
    centre = CORNERS[seed % len(CORNERS)]
    ra, dec = around(rng, centre, 60, 40)
    angle = rng.uniform(0, 2 * np.pi, 60)
    pm = {"pm_ra": 1990 * np.sin(angle), "pm_dec": 1990 * np.cos(angle)}
    star = {"ra": ra, "dec": dec} | pm
    there = moved(star, -10 if not catalog_moves else 10)
    rule = position(0.5, epoch=2006.0 if not catalog_moves else 2016.0, max_pm=2000)
    if catalog_moves:
        keys, survey = keys_of(ra, dec, **pm), replace(LEGACY_SURVEY, epoch=2026.0)
        objects = objects_of(there[0] % 360, there[1])
    else:
        keys, survey = keys_of(there[0] % 360, there[1]), GAIA
        objects = objects_of(ra, dec, **pm)
    margin = margin_needed(rule, survey, catalog_moves=catalog_moves)
    whole = pairs(keys, objects, match(keys, objects, rule, survey=survey))
    assert len(whole) > 40
    found = {}
    for pixel in divisions(keys, [8, 13]):
        part, stars = keys_in(keys, pixel, margin), near(objects, pixel, margin)
        found |= pairs(part, stars, match(part, stars, rule, survey=survey))
    assert found == whole


def test_motions_beyond_the_greatest_are_counted_once():
    keys = keys_of([10.0], [0.0])
    objects = objects_of(
        [10.0, 10.1, 200.0], [0, 0, 0], pm_ra=[0, 20_000, 20_000], pm_dec=[0, 0, 0]
    )
    found = match(keys, objects, position(epoch=2020.0), survey=GAIA)
    assert (found.counts["too_fast"], found.counts["matched"]) == (1, 1)


def test_the_margin_grows_with_radius_and_motion():
    assert margin_needed(position(2.0), LEGACY_SURVEY) == pytest.approx(4, abs=0.2)
    assert margin_needed(position(2.0, epoch=2000.0), GAIA) == pytest.approx(170.4, abs=0.2)
    with_catalog = margin_needed(position(2.0, epoch=2006.0), GAIA, catalog_moves=True)
    assert with_catalog == pytest.approx(212, abs=0.2)
    assert margin_needed(position(2.0, epoch=2000.0), replace(GAIA, epoch=None)) < 5


def test_ids_join_whatever_their_spelling_and_distance():
    keys = keys_of([10, 20, 30, np.nan], [0, 0, 0, 0], np.array([7, 8, 9, 6]))
    objects = objects_of([10, 20.1, np.nan, 4], [0, 0, 0, 0], np.array([b"  7", b"8 ", b"9", b"6"]))
    found = match(keys, objects, JoinRule(by="id"), survey=LEGACY_SURVEY)
    assert found.index.tolist() == [0, 1, 2, 3]
    assert found.separation_arcsec[:2] == pytest.approx([0, 360])
    assert np.isnan(found.separation_arcsec[2:]).all()
    assert not found.flags.any()
    assert (found.counts["far"], found.counts["invalid_positions"]) == (1, 1)


def test_an_id_that_the_source_has_twice_matches_nothing():
    keys = keys_of([10, 20, 30], [0, 0, 0], ["a", "b", "c"])
    objects = objects_of([10, 10, 20], [0, 0, 0], ["a", "a", "b"])
    found = match(keys, objects, JoinRule(by="id"), survey=LEGACY_SURVEY)
    assert found.index.tolist() == [-1, 2, -1]
    assert found.flags.tolist() == [Flag.SOURCE_DUPLICATE, 0, 0]
    assert (found.counts["duplicates"], found.counts["unmatched"]) == (1, 2)


def test_missing_ids_equal_no_other():
    keys = keys_of([10, 20], [0, 0], np.array([None, "a"], object))
    objects = objects_of([10, 20], [0, 0], np.array([None, "a"], object))
    found = match(keys, objects, JoinRule(by="id"), survey=LEGACY_SURVEY)
    assert (found.index.tolist(), found.counts["missing_ids"]) == ([-1, 1], 1)


def test_rows_of_one_id_share_their_object():
    keys = keys_of([10, 10, 20], [0, 0, 0], ["a", "a", "b"])
    objects = objects_of([10, 20], [0, 0], ["a", "b"])
    found = match(keys, objects, JoinRule(by="id"), survey=LEGACY_SURVEY)
    assert (found.index.tolist(), found.counts["shared"]) == ([0, 0, 1], 1)


@pytest.mark.parametrize("by", ["id", "position"])
@pytest.mark.parametrize(("rows", "stars"), [(0, 3), (3, 0), (0, 0)])
def test_rows_in_are_rows_out_even_if_there_are_none(by, rows, stars):
    keys = keys_of([10.0] * rows, [0.0] * rows, pixel=HealpixPixel(0, 4))
    found = match(keys, objects_of([10.0] * stars, [0.0] * stars), JoinRule(by=by),
                  survey=LEGACY_SURVEY)  # fmt: skip
    assert found.index.tolist() == [-1] * rows
    assert len(found.separation_arcsec) == len(found.flags) == rows
    assert (found.counts["rows"], found.counts["unmatched"]) == (rows, rows)


@pytest.mark.parametrize(
    ("ra", "dec"), [(np.nan, 0), (10, np.nan), (400, 0), (10, 123.4), (-1, 0), (np.inf, 0)]
)
def test_a_row_that_is_nowhere_stays_a_row(ra, dec):
    keys = keys_of([10, ra, 20], [0, dec, 0], pixel=HealpixPixel(0, 4))
    objects = objects_of([10, ra, 20], [0, dec, 0])
    found = match(keys, objects, position(), survey=LEGACY_SURVEY)
    assert found.index.tolist() == [0, -1, 2]
    assert found.flags.tolist() == [0, Flag.POSITION_INVALID, 0]
    assert found.counts["invalid_positions"] == 1


def test_a_hundred_thousand_placeholders_at_one_place_are_no_burden():
    n = 100_000
    keys = keys_of(np.zeros(n), np.zeros(n), np.arange(n) + n)
    objects = objects_of(np.zeros(n), np.zeros(n), np.arange(n) + n)
    found = match(keys, objects, position(), survey=LEGACY_SURVEY)
    assert (found.index[0], found.counts["matched"], found.counts["not_reciprocal"]) == (
        0,
        1,
        n - 1,
    )
    assert found.counts["ambiguous"] == n


def sample(*, same_ids, offset=0.0, n=200):
    ra = np.linspace(10, 11, n)
    ids = np.arange(n)
    keys = keys_of(ra, np.zeros(n), ids)
    theirs = np.where(np.arange(n) < same_ids, ids, ids + 10**6)
    return keys, objects_of(ra, np.full(n, offset * ARCSEC), theirs)


@pytest.mark.parametrize(
    ("parts", "by"),
    [
        ([sample(same_ids=200)], "id"),
        ([sample(same_ids=190)], "id"),
        ([sample(same_ids=1)], "position"),
        ([sample(same_ids=3, n=3), sample(same_ids=0)], "position"),
        ([sample(same_ids=200, offset=100)], "position"),
        ([sample(same_ids=0)], "position"),
        ([sample(same_ids=200), sample(same_ids=0, n=1)], "id"),
        ([], "position"),
    ],
)
def test_ids_join_a_release_only_if_positions_confirm_them(parts, by):
    assert decide_rule(parts, JoinRule(), survey=LEGACY_SURVEY).by == by


def test_running_numbers_on_both_sides_are_no_ids():
    keys, objects = sample(same_ids=200)
    counted_anew = replace(objects, ids=np.roll(objects.ids, 7))
    decision = decide_rule([(keys, counted_anew)], JoinRule(), survey=LEGACY_SURVEY)
    assert decision.by == "position"
    assert decision.reason == (
        "0 of 200 matches by position have equal ids, "
        "200 of 200 matches by id are farther apart than 1 arcsec"
    )


def test_missing_ids_decide_nothing():
    keys, objects = (replace(x, ids=np.array([""] * 200)) for x in sample(same_ids=200))
    assert decide_rule([(keys, objects)], JoinRule(), survey=LEGACY_SURVEY).by == "position"


def test_what_was_asked_for_is_not_decided():
    wanted = JoinRule(by="id")
    assert decide_rule([sample(same_ids=0)], wanted, survey=LEGACY_SURVEY).by == "id"
    with pytest.raises(ValueError, match="decide_rule"):
        match(*sample(same_ids=1), JoinRule(), survey=LEGACY_SURVEY)


@pytest.mark.parametrize(
    "wrong", [{"radius_arcsec": 0}, {"radius_arcsec": math.nan}, {"radius_arcsec": 1e6},
              {"epoch": 51544.5}, {"max_pm": math.inf}],
)  # fmt: skip
def test_rules_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"the join: .* Give"):
        JoinRule(**wrong)
