"""Pixels and their surroundings: nothing within the margin is left out, anywhere on the sky."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Distance, SkyCoord
from astropy.time import Time
from cdshealpix.nested import vertices
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import radec2pix
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.sky import (
    in_ranges,
    meet_ranges,
    near_pixel,
    pixels_around,
    ranges_around,
    unit_vectors,
    valid_positions,
)


@st.composite
def some_pixel(draw, least=0, most=29):
    """Any pixel, those at the poles and at corners of the 12 of order 0 as often as others."""
    order = draw(st.integers(least, most))
    inside = draw(st.sampled_from([0, 4**order - 1, (4**order - 1) // 3, 2 * (4**order - 1) // 3])
                  | st.integers(0, 4**order - 1))  # fmt: skip
    return HealpixPixel(order, draw(st.integers(0, 11)) * 4**order + inside)


def on_border(pixel, rng, n):
    """Unit vectors on the border of a pixel, its corners among them."""
    lon, lat = vertices(np.array([pixel.pixel]), pixel.order, step=10)
    border = unit_vectors(lon[0].deg % 360, lat[0].deg)
    return border[rng.integers(0, len(border), n)]


def moved_by(places, rng, arcsec):
    """Unit vectors somewhere at the given distance from others, as ra and dec."""
    away = np.cross(places, rng.normal(size=places.shape))
    away /= np.linalg.norm(away, axis=1)[:, None]
    angle = np.radians(arcsec / 3600)
    x, y, z = (places * np.cos(angle) + away * np.sin(angle)).T
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(np.clip(z, -1, 1)))


@given(pixel=some_pixel(), margin=st.floats(0.01, 1e5), seed=st.integers(0, 10**6))
def test_whatever_lies_within_the_margin_of_a_pixel_is_near_it(pixel, margin, seed):
    rng = np.random.default_rng(seed)
    rounding = 1e-9
    ra, dec = moved_by(on_border(pixel, rng, 200), rng, max(0.0, margin * 0.99999 - rounding))
    assert near_pixel(ra, dec, pixel, margin_arcsec=margin).all()
    found = pixels_around(pixel, order=5, margin_arcsec=margin)
    assert np.isin(radec2pix(5, ra, dec), found).all()


@given(pixel=some_pixel(least=5, most=18), seed=st.integers(0, 10**6))
def test_what_lies_far_outside_is_not_near(pixel, seed):
    rng = np.random.default_rng(seed)
    across = 211_000 / 2**pixel.order  # arcsec; twice its size is off the pixel in any direction
    ra, dec = moved_by(on_border(pixel, rng, 200), rng, 3 * across)
    assert not near_pixel(ra, dec, pixel, margin_arcsec=across / 20).any()


@given(pixel=some_pixel(), margin=st.floats(0, 1e5))
def test_ranges_ascend_are_disjoint_and_hold_the_pixel(pixel, margin):
    ranges = ranges_around(pixel, margin_arcsec=margin)
    flat = ranges.ravel()
    assert (np.diff(flat) > 0).all()
    first = pixel.pixel << 2 * (29 - pixel.order)
    last = ((pixel.pixel + 1) << 2 * (29 - pixel.order)) - 1
    assert in_ranges(np.array([first, last]), ranges).all()
    assert flat[0] >= 0
    assert flat[-1] <= 12 << 58


def test_without_a_margin_there_is_the_pixel_alone():
    pixel = HealpixPixel(4, 583)
    assert pixels_around(pixel, order=4, margin_arcsec=0) == [583]
    assert pixels_around(pixel, order=5, margin_arcsec=0) == [2332, 2333, 2334, 2335]
    assert pixels_around(pixel, order=0, margin_arcsec=0) == [2]
    assert ranges_around(pixel, margin_arcsec=0).tolist() == [[583 << 50, 584 << 50]]


def test_a_margin_takes_in_the_neighbours():
    # the pixel south of the corner where RA is 0: one neighbour is on the other side of RA 0
    assert pixels_around(HealpixPixel(0, 4), order=0, margin_arcsec=1) == [0, 3, 4, 5, 7, 8, 11]
    assert len(pixels_around(HealpixPixel(4, 583), order=4, margin_arcsec=1)) == 9
    assert pixels_around(HealpixPixel(29, 0), order=0, margin_arcsec=200) == [0, 4, 5, 8]


def test_a_margin_wider_than_any_pixel_is_refused():
    with pytest.raises(ValueError, match="wider than a pixel of order 0"):
        ranges_around(HealpixPixel(3, 3), margin_arcsec=40 * 3600)


def test_nobody_is_near_when_there_is_nobody():
    none = np.empty(0)
    assert near_pixel(none, none, HealpixPixel(2, 3), margin_arcsec=2).shape == (0,)
    assert unit_vectors(none, none).shape == (0, 3)


@given(
    edges=st.lists(st.integers(0, 60), min_size=4, max_size=12, unique=True),
    start=st.integers(0, 60), length=st.integers(1, 20),
)  # fmt: skip
def test_ranges_are_met_as_if_compared_one_by_one(edges, start, length):
    ranges = np.sort(edges)[: len(edges) // 2 * 2].reshape(-1, 2)
    values = np.arange(start, start + length)
    inside = [any(a <= v < b for a, b in ranges) for v in values]
    assert in_ranges(values, ranges).tolist() == inside
    assert meet_ranges(np.array([[start, start + length]]), ranges).tolist() == [any(inside)]


def test_a_place_on_the_sky_is_one():
    ra = np.array([0.0, 360.0, 360.1, -0.1, 10, 10, 10, np.nan, np.inf, 10])
    dec = np.array([0.0, 0.0, 0.0, 0.0, 90, 90.1, -90, 0, 0, np.nan])
    assert valid_positions(ra, dec).tolist() == [
        True, True, False, False, True, False, True, False, False, False
    ]  # fmt: skip


def test_unit_vectors_are_those_of_astropy_and_nothing_is_nowhere():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 100), np.degrees(np.arcsin(rng.uniform(-1, 1, 100)))
    expected = SkyCoord(ra, dec, unit="deg").cartesian.xyz.value.T
    assert unit_vectors(ra, dec) == pytest.approx(expected, abs=1e-15)
    assert np.array_equal(unit_vectors(np.array([360.0]), np.array([5.0])),
                          unit_vectors(np.array([0.0]), np.array([5.0])))  # fmt: skip
    assert np.isnan(unit_vectors(np.array([400.0, 10]), np.array([0.0, 91]))).all()


def test_motions_are_those_of_astropy():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 50), np.r_[rng.uniform(-89.99, 89.99, 48), 89.9999, -89.9999]
    pm_ra, pm_dec = rng.uniform(-1e4, 1e4, (2, 50))
    start, years = Time(2016.0, format="jyear"), -25.5
    there = SkyCoord(
        ra * u.deg, dec * u.deg, obstime=start, distance=Distance(parallax=np.full(50, 500) * u.mas),
        pm_ra_cosdec=pm_ra * u.mas / u.yr, pm_dec=pm_dec * u.mas / u.yr,
        radial_velocity=np.zeros(50) * u.km / u.s,
    ).apply_space_motion(new_obstime=Time(start.jyear + years, format="jyear"))  # fmt: skip
    expected = unit_vectors(there.ra.deg, there.dec.deg)
    found = unit_vectors(ra, dec, pm_ra=pm_ra, pm_dec=pm_dec, years=years)
    assert found == pytest.approx(expected, abs=np.radians(1e-4 / 3600))  # 0.1 mas of 360 arcsec


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_who_has_no_known_motion_stays(unknown):
    ra, dec = np.array([10.0, 20]), np.array([1.0, 2])
    pm = {"pm_ra": np.array([unknown, 9]), "pm_dec": np.array([9, unknown])}
    assert np.array_equal(unit_vectors(ra, dec, **pm, years=9), unit_vectors(ra, dec))
