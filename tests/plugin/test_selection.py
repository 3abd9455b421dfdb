"""Selections: whole HATS pixels, never too few, in the catalog's order; bad input is one line."""

import copy
import json

import astropy.units as u
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from hats.catalog import Catalog, TableProperties
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import order2resol
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from hats.search.region_search import cone_filter
from hypothesis import example, given
from hypothesis import strategies as st
from mocpy import MOC

from skyvec.mock.survey import write_mock_survey
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.run import run
from skyvec.stage.selection import Selection
from skyvec_schemas.errors import ConfigurationError


def in_memory(pixels):
    """A release with these pixels and no files."""
    info = TableProperties(
        catalog_name="sky", catalog_type="object", total_rows=1, ra_column="ra", dec_column="dec"
    )
    return HatsRelease(path="sky", catalog=Catalog(info, list(pixels)), collection=None)


def mixed_sky(seed=0, *, splits=150, deepest=7):
    """Pixels of orders 0 to 7 that tile the sky."""
    rng = np.random.default_rng(seed)
    pixels = [(0, i) for i in range(12)]
    for _ in range(splits):
        order, pixel = pixels.pop(int(rng.integers(len(pixels))))
        if order == deepest:
            pixels.append((order, pixel))
        else:
            pixels += [(order + 1, 4 * pixel + i) for i in range(4)]
    return [HealpixPixel(*place) for place in pixels]


SKY = in_memory(mixed_sky())


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return HatsRelease.open(
        write_mock_survey(
            tmp_path_factory.mktemp("survey") / "sky", rows=30, seed=3, size=16, workers=1
        )
    )


def table(release, pixel):
    return pq.read_table(release.leaf(pixel), partitioning=None, columns=["ra", "dec"])


def names(pixels):
    return [f"{pixel.order}/{pixel.pixel}" for pixel in pixels]


def choose(release, **options):
    return Selection.parse(**options).choose(release)


def test_nothing_chosen_is_every_pixel(survey):
    assert Selection.parse() == Selection()
    assert Selection().everything
    assert Selection().describe() == ""
    assert Selection().choose(survey) == survey.pixels


@given(
    ra=st.one_of(st.floats(0, 360), st.sampled_from([0.0, 360.0, 45.0, 90.0, 359.999])),
    dec=st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 89.9999, 41.8103148957786])),
    logarithm=st.floats(-2, 5.75),
)
@example(ra=0.0, dec=90.0, logarithm=5.0)
@example(ra=123.0, dec=-90.0, logarithm=0.0)
@example(ra=360.0, dec=0.0, logarithm=4.0)
@example(ra=0.0001, dec=-89.9999, logarithm=1.0)
def test_every_pixel_with_a_row_in_the_cone_is_chosen_and_none_far_away(ra, dec, logarithm):
    radius = 10**logarithm
    chosen = choose(SKY, cone=f"{ra!r},{dec!r},{radius!r}")
    center = SkyCoord(ra, dec, unit="deg")
    angles = np.linspace(0, 2 * np.pi, 500) * u.rad
    rings = [
        center.directional_offset_by(angles, share * radius * u.arcsec)
        for share in (0, 1e-3, 0.3, 0.7, 0.99, 1)
    ]
    index = compute_spatial_index(
        np.concatenate([ring.ra.deg for ring in rings]),
        np.concatenate([ring.dec.deg for ring in rings]),
    )
    holding = set()
    for pixel in SKY.pixels:
        if (spatial_index_to_healpix(index, pixel.order) == pixel.pixel).any():
            holding.add(pixel)
    assert holding <= set(chosen)
    for pixel in chosen:
        moc = MOC.from_healpix_cells([pixel.pixel], [pixel.order], max_depth=pixel.order)
        apart = moc.barycenter().separation(center).deg
        assert apart <= radius / 3600 + 1.5 * np.degrees(order2resol(pixel.order)) + 1e-3


def test_the_rows_that_hats_finds_in_a_cone_are_in_the_chosen_pixels(survey):
    rng = np.random.default_rng(1)
    tables = {pixel: table(survey, pixel).to_pandas() for pixel in survey.pixels}
    places = np.concatenate([frame[["ra", "dec"]].to_numpy() for frame in tables.values()])
    for ra, dec in places[rng.permutation(len(places))[:8]]:
        for radius in (0.01, 3600, 20000):
            chosen = choose(survey, cone=f"{ra},{dec},{radius}")
            holding = [
                pixel
                for pixel, frame in tables.items()
                if len(cone_filter(frame, ra, dec, radius, survey.catalog.catalog_info))
            ]
            assert holding
            assert set(holding) <= set(chosen)
            assert chosen == [pixel for pixel in survey.pixels if pixel in set(chosen)]


@pytest.mark.parametrize("format_", ["fits", "ascii", "json"])
def test_a_moc_chooses_the_pixels_that_it_touches(tmp_path, format_):
    wanted = [SKY.pixels[3], SKY.pixels[40], SKY.pixels[-1]]
    fine = [(p.order + 3, p.pixel * 64 + 17) for p in wanted]
    file = tmp_path / "any.name"
    moc = MOC.from_healpix_cells(
        np.array([p for _, p in fine]), np.array([o for o, _ in fine]), max_depth=12
    )
    moc.save(file, format=format_)
    assert choose(SKY, moc=str(file)) == wanted


def test_pixels_by_name_range_and_parent_come_in_the_catalogs_order():
    release = in_memory([HealpixPixel(2, i) for i in range(64)] + [HealpixPixel(1, 30)])
    assert names(choose(release, pixels="2/7,2/3")) == ["2/3", "2/7"]
    assert names(choose(release, pixels="2/10-12, Norder=2/Npix=5")) == [
        "2/5", "2/10", "2/11", "2/12",
    ]  # fmt: skip
    assert names(choose(release, pixels="Norder=2 Npix=5")) == ["2/5"]
    assert names(choose(release, pixels="1/2,1/30")) == ["2/8", "2/9", "2/10", "2/11", "1/30"]
    assert names(choose(release, pixels="4/161")) == ["2/10"]  # finer: the pixel that holds it
    assert len(choose(release, pixels="0/0-11")) == 65
    assert len(choose(release, pixels=f"29/0-{12 * 4**29 - 1}")) == 65


def test_conditions_intersect(tmp_path):
    release = in_memory([HealpixPixel(2, i) for i in range(192)])
    file = tmp_path / "moc.txt"
    file.write_text("2/3-9")
    assert names(choose(release, moc=file, pixels="2/8-20")) == ["2/8", "2/9"]
    center = MOC.from_string("2/9").barycenter()
    cone = f"{center.ra.deg},{center.dec.deg},1"
    assert names(choose(release, moc=file, pixels="2/8-20", cone=cone)) == ["2/9"]
    with pytest.raises(ConfigurationError, match=r"no HATS pixel .* pixels 2/10-20\)"):
        choose(release, moc=file, pixels="2/10-20")


def test_a_limit_takes_whole_pixels_until_there_are_rows_enough(make_collection, factory):
    release = HatsRelease.open(
        factory.write_collection(
            factory.survey_table(12), make_collection().parent / "fine", order=3
        )
    )
    counts = [len(table(release, pixel)) for pixel in release.pixels]
    assert len(counts) > 3
    ends = np.cumsum(counts)
    for limit in range(1, 16):
        expected = min(int(np.searchsorted(ends, limit)) + 1, len(counts))
        assert choose(release, limit=str(limit)) == release.pixels[:expected]
    part = release.pixels[1:]
    selected = ",".join(names(part))
    assert choose(release, pixels=selected, limit=counts[1] + 1) == part[:2]


def test_a_limit_reads_only_the_footers_that_it_needs(make_collection, monkeypatch):
    release = HatsRelease.open(make_collection())
    first, second = release.pixels
    release.leaf(second).unlink()
    assert choose(release, limit=6) == [first]
    opened = []
    files = HatsRelease.files
    monkeypatch.setattr(HatsRelease, "files", lambda self, p: opened.append(p) or files(self, p))
    choose(release, limit=1)
    assert opened == [first]


def test_a_file_that_cannot_be_read_stays_in_and_counts_no_rows(make_collection):
    release = HatsRelease.open(make_collection())
    first, second = release.pixels
    release.leaf(first).write_bytes(b"torn")
    assert choose(release, limit=1) == [first, second]


def test_a_selection_beside_the_catalog_says_what_it_covers(make_collection):
    release = HatsRelease.open(make_collection())
    with pytest.raises(
        ConfigurationError,
        match=r"no HATS pixel of the catalog lies in the selection \(cone of 5 arcsec around RA 100, "
        r"Dec 80\)\. Select from what it covers: .* square degrees within \d+ degrees of RA .*, "
        r"Dec .*; pixels 1/17, 1/25\.",
    ):
        choose(release, cone="100,80,5")
    with pytest.raises(ConfigurationError, match=r"--pixels 1/3: .*sky has no such HATS pixel"):
        choose(release, pixels="1/17,1/3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cone": "1,2"}, "--cone 1,2: not three numbers. Give right ascension"),
        ({"cone": "1,2,3,4"}, "--cone 1,2,3,4: not three numbers"),
        ({"cone": "a,b,c"}, "--cone a,b,c: not three numbers"),
        ({"cone": ""}, "not three numbers"),
        ({"cone": "-1,0,5"}, "right ascension is not within 0 to 360"),
        ({"cone": "nan,0,5"}, "right ascension is not within 0 to 360"),
        ({"cone": "360.1,0,5"}, "right ascension is not within 0 to 360"),
        ({"cone": "1,90.1,5"}, "declination is not within -90 to 90"),
        ({"cone": "1,nan,5"}, "declination is not within -90 to 90"),
        ({"cone": "1,2,0"}, "the radius is not above 0"),
        ({"cone": "1,2,-5"}, "the radius is not above 0"),
        ({"cone": "1,2,inf"}, "the radius is not above 0"),
        ({"cone": "1,2,nan"}, "the radius is not above 0"),
        ({"pixels": ""}, "'' is no pixel"),
        ({"pixels": "5"}, "--pixels 5: '5' is no pixel. Give Norder/Npix"),
        ({"pixels": "5/1,"}, "'' is no pixel"),
        ({"pixels": "5/x"}, "'5/x' is no pixel"),
        ({"pixels": "-1/3"}, "'-1/3' is no pixel"),
        ({"pixels": "30/0"}, "'30/0' does not exist: HEALPix orders go from 0 to 29"),
        ({"pixels": "0/12"}, "'0/12' does not exist: order 0 has the pixels 0 to 11"),
        ({"pixels": "3/9-4"}, "'3/9-4' does not exist"),
        ({"pixels": "5/" + "9" * 5000}, "is no pixel"),
        ({"limit": "0"}, "--limit 0: not a whole number above 0"),
        ({"limit": "many"}, "--limit many: not a whole number above 0"),
        ({"limit": -3}, "not a whole number above 0"),
        ({"moc": "/no/such.fits"}, "--moc /no/such.fits: cannot be read"),
        ({"moc": "https://host/a.fits"}, "from a local file only"),
    ],
)
def test_bad_input_names_option_text_and_remedy(options, message):
    with pytest.raises(ConfigurationError) as caught:
        Selection.parse(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not a moc", "cannot be read"),
        (b"SIMPLE  =                    T" + b" " * 2850, "cannot be read"),
        (b"{", "cannot be read"),
        (json.dumps({"3": [768]}).encode(), "order 3 has the pixels 0 to 767"),
        (json.dumps({"3": ["1"]}).encode(), "cannot be read"),
        (b"{}", "covers nothing of the sky"),
        (b"3/", "covers nothing of the sky"),
        (b"30/1", "covers nothing of the sky"),
        (b"3/5-2", "covers nothing of the sky"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_moc_is_one_line(tmp_path, content, message):
    file = tmp_path / "moc"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        Selection.parse(moc=str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_selection_says_what_it_is_and_travels(tmp_path):
    file = tmp_path / "area.txt"
    file.write_text("3/1-5")
    selection = Selection.parse(
        cone="150.1,2.2,600", moc=file, pixels="5/1,5/100-120,4/0,4/1,4/2,4/3,4/4,4/5", limit="1000"
    )
    assert selection.describe() == (
        f"cone of 600 arcsec around RA 150.1, Dec 2.2; MOC {file}; "
        "pixels 5/1, 5/100-120, 4/0, 4/1, 4/2, 4/3 and 2 more; at least 1,000 rows"
    )
    assert not selection.everything
    assert copy.deepcopy(selection) == selection


def test_what_a_small_run_did_the_full_run_finds_done(make_collection, model_folder):
    collection = make_collection()
    small = run(collection, model=model_folder, workers=0, selection=Selection.parse(limit="1"))
    assert (small.rows, len(small.quanta)) == (6, 1)
    full = run(collection, model=model_folder, workers=0)
    assert (full.rows, len(full.quanta), full.skipped) == (12, 2, 1)
