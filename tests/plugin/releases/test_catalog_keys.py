"""Keys of a pixel and its border: the same whatever leaves the rows lie in."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.joining.catalog_keys import read_catalog_keys
from skyvec.releases.joining.join import JoinRule, margin_needed, match
from skyvec.releases.sky import near_pixel
from skyvec.releases.source import SourceObjects
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.survey_columns import GAIA, LEGACY_SURVEY

MARGIN = 20.0
CORNER = (45.0, 0.0)
"""Where four pixels of every order meet."""


def rows_around(n=400, width=60.0, seed=0, **columns):
    rng = np.random.default_rng(seed)
    ra, dec = (c + rng.uniform(-width, width, n) / 3600 for c in CORNER)
    return pa.table({"object_id": np.arange(n), "ra": ra, "dec": dec} | columns)


def write_leaves(folder: Path, table: pa.Table, pixels, *, order_of_index=29, group=16, **changes):
    """A HATS catalog with just these pixels, of any order, as leaves."""
    ra, dec = (table.column(c).to_numpy() for c in ("ra", "dec"))
    index = compute_spatial_index(ra, dec, order_of_index)
    column = "_healpix_29" if order_of_index == 29 else f"healpix{order_of_index}"
    table = table.add_column(0, column, pa.array(index)).take(pa.array(np.argsort(index)))
    index, rows = np.sort(index), {}
    for pixel in pixels:
        part = table.filter(index >> 2 * (order_of_index - pixel.order) == pixel.pixel)
        leaf = Path(str(paths.pixel_catalog_file(str(folder), pixel)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, leaf, row_group_size=group, **changes)
        rows[pixel] = len(part)
    finish_catalog(
        folder, name="cat", rows=rows, ra_column="ra", dec_column="dec", builder="tests",
        skymap=Counter(compute_spatial_index(ra, dec, SKYMAP_ORDER).tolist()),
        properties={"hats_col_healpix": column, "hats_col_healpix_order": order_of_index},
    )  # fmt: skip
    return HatsRelease.open(folder)


def pixels_of(table, orders=(3,)):
    """Pixels that hold the rows; every other one is cut into those of the next order."""
    ra, dec = (table.column(c).to_numpy() for c in ("ra", "dec"))
    index = compute_spatial_index(ra, dec)
    pixels = {HealpixPixel(orders[0], int(p)) for p in index >> 2 * (29 - orders[0])}
    for order in orders[1:]:
        cut = {p for p in pixels if p.pixel % 2}
        inner = {HealpixPixel(order, int(i) >> 2 * (29 - order)) for i in index
                 if any(i >> 2 * (29 - p.order) == p.pixel for p in cut)}  # fmt: skip
        pixels = (pixels - cut) | inner
    return sorted(pixels)


@pytest.fixture(scope="module")
def table():
    return rows_around()


@pytest.fixture(scope="module", params=[(3,), (2, 6), (0, 8, 12), (13,)], ids=str)
def release(request, table, tmp_path_factory):
    return write_leaves(
        tmp_path_factory.mktemp("cat") / "cat", table, pixels_of(table, request.param)
    )


def wanted_border(table, pixel):
    ra, dec = (table.column(c).to_numpy() for c in ("ra", "dec"))
    own = near_pixel(ra, dec, pixel, margin_arcsec=0)
    around = near_pixel(ra, dec, pixel, margin_arcsec=MARGIN) & ~own
    return own, set(table.column("object_id").filter(around).cast(pa.string()).to_pylist())


def test_own_rows_come_first_in_file_order_then_the_border(table, release):
    rows = 0
    for pixel in release.pixels:
        keys = read_catalog_keys(release, pixel, LEGACY_SURVEY, margin_arcsec=MARGIN)
        leaf = pq.read_table(release.leaf(pixel), partitioning=None)
        assert keys.rows == len(leaf)
        assert keys.ids[: keys.rows].tolist() == list(map(str, leaf["object_id"].to_pylist()))
        assert keys.ra[: keys.rows].tolist() == leaf["ra"].to_pylist()
        own, border = wanted_border(table, pixel)
        assert (own.sum(), set(keys.ids[keys.rows :])) == (keys.rows, border)
        assert len(keys.ids) == len(keys.ra) == len(keys.dec) == keys.rows + len(border)
        rows += keys.rows
    assert rows == len(table)


def test_matches_do_not_depend_on_the_leaves(table, release, tmp_path):
    rng = np.random.default_rng(3)
    ra, dec = (table.column(c).to_numpy() + rng.normal(0, 2, 400) / 3600 for c in ("ra", "dec"))
    objects = SourceObjects(ids=np.arange(400).astype(str), ra=ra, dec=dec,
                            file=np.zeros(400, np.int32), row=np.arange(400))  # fmt: skip
    rule = JoinRule(by="position", radius_arcsec=3)

    def matches(release):
        found = {}
        for pixel in release.pixels:
            margin = margin_needed(rule, LEGACY_SURVEY)
            keys = read_catalog_keys(release, pixel, LEGACY_SURVEY, margin_arcsec=margin)
            index = match(keys, objects, rule, survey=LEGACY_SURVEY).index
            found |= dict(zip(keys.ids[: keys.rows].tolist(), index.tolist(), strict=True))
        return found

    assert matches(release) == matches(
        write_leaves(tmp_path / "one", table, pixels_of(table, (0,)))
    )


def test_without_a_margin_there_is_no_border(release):
    keys = read_catalog_keys(release, release.pixels[0], LEGACY_SURVEY, margin_arcsec=0)
    assert len(keys.ids) == keys.rows


def test_an_index_of_another_order_is_understood(table, tmp_path):
    release = write_leaves(tmp_path / "cat", table, pixels_of(table, (2, 6)), order_of_index=13)
    for pixel in release.pixels:
        keys = read_catalog_keys(release, pixel, LEGACY_SURVEY, margin_arcsec=MARGIN)
        assert set(keys.ids[keys.rows :]) == wanted_border(table, pixel)[1]


def test_without_statistics_every_row_group_is_read(table, tmp_path):
    release = write_leaves(tmp_path / "cat", table, pixels_of(table), write_statistics=False)
    pixel = release.pixels[0]
    keys = read_catalog_keys(release, pixel, LEGACY_SURVEY, margin_arcsec=MARGIN)
    assert set(keys.ids[keys.rows :]) == wanted_border(table, pixel)[1]


def test_of_the_neighbours_only_row_groups_at_the_border_are_read(tmp_path, monkeypatch):
    wide = rows_around(4000, width=3600)
    release = write_leaves(tmp_path / "cat", wide, pixels_of(wide))
    read = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, **options: (
            read.append((len(groups), self.num_row_groups)),
            original(self, groups, **options),
        )[1],
    )
    read_catalog_keys(release, release.pixels[0], LEGACY_SURVEY, margin_arcsec=2)
    assert len(read) == 4
    assert read[0][0] == read[0][1]
    assert all(groups < known / 3 for groups, known in read[1:])


def test_the_digest_is_that_of_the_border_alone(table, tmp_path):
    def digest(changed, name, orders=(3,)):
        release = write_leaves(tmp_path / name, changed, pixels_of(table, orders))
        return read_catalog_keys(release, pixel, LEGACY_SURVEY, margin_arcsec=MARGIN).digest

    pixel = next(p for p in pixels_of(table) if p.pixel % 2 == 0)
    own, border = wanted_border(table, pixel)
    ids = np.array(table.column("object_id"))
    at_border, inside = int(min(border, key=int)), int(ids[own][0])

    def moved(row):
        ra = table.column("ra").to_numpy().copy()
        ra[row] += 1e-9
        return table.set_column(1, "ra", pa.array(ra))

    first = digest(table, "first")
    assert digest(moved(inside), "inside") == first
    assert digest(moved(at_border), "border") != first
    assert digest(table.filter(ids != at_border), "gone") != first
    assert digest(table, "neighbours cut into smaller pixels", (3, 9)) == first


def test_motions_are_read_where_the_catalog_has_them(tmp_path):
    pm = np.r_[np.nan, np.arange(399.0)].astype(np.float32)
    table = rows_around(400, source_id=np.arange(400), pmra=pm, pmdec=pm)
    release = write_leaves(tmp_path / "cat", table, pixels_of(table))
    keys = read_catalog_keys(release, release.pixels[0], GAIA, margin_arcsec=MARGIN)
    assert keys.pm_ra.dtype == np.float64
    by_id = dict(zip(keys.ids.tolist(), keys.pm_ra.tolist(), strict=True))
    assert all(np.isnan(v) if k == "0" else v == int(k) - 1 for k, v in by_id.items())
    survey = replace(GAIA, pm_dec_column="elsewhere")
    assert read_catalog_keys(release, release.pixels[0], survey, margin_arcsec=0).pm_ra is None


def test_rows_without_id_or_position_stay_rows_but_are_no_border(tmp_path, table):
    release = write_leaves(tmp_path / "cat", table, pixels_of(table))
    first, second = release.pixels[:2]
    for pixel in (first, second):
        leaf = release.leaf(pixel)
        odd = pq.read_table(leaf, partitioning=None)
        n = len(odd)
        odd = odd.set_column(1, "object_id", pa.array([None, *range(1, n)], pa.int64()))
        odd = odd.set_column(2, "ra", pa.array([None, 400.0, *odd["ra"].to_pylist()[2:]]))
        pq.write_table(odd, leaf, row_group_size=16)
    keys = read_catalog_keys(release, first, LEGACY_SURVEY, margin_arcsec=MARGIN)
    assert keys.ids[:2].tolist() == ["", "1"]
    assert np.isnan(keys.ra[0])
    assert keys.ra[1] == 400
    assert np.isfinite(keys.ra[keys.rows :]).all()
    assert (keys.ra[keys.rows :] < 360).all()


def test_an_empty_leaf_has_no_rows(tmp_path, table):
    pixels = [*pixels_of(table), HealpixPixel(3, 700)]
    release = write_leaves(tmp_path / "cat", table, pixels)
    keys = read_catalog_keys(release, HealpixPixel(3, 700), LEGACY_SURVEY, margin_arcsec=MARGIN)
    assert (keys.rows, keys.ids.shape, keys.ra.dtype) == (0, (0,), np.float64)


@pytest.mark.parametrize("harm", ["gone", "torn", "floats"])
def test_a_leaf_that_cannot_be_used_is_named(tmp_path, table, harm):
    release = write_leaves(tmp_path / "cat", table, pixels_of(table))
    leaf = release.leaf(release.pixels[1])
    if harm == "gone":
        leaf.unlink()
    elif harm == "torn":
        leaf.write_bytes(leaf.read_bytes()[:-20])
    else:
        rows = pq.read_table(leaf, partitioning=None)
        ids = rows["object_id"].cast(pa.float64())
        pq.write_table(rows.set_column(1, "object_id", ids), leaf)
    with pytest.raises(
        ContractError, match=rf"Npix={release.pixels[1].pixel}.*(no usable ids|cannot be read)"
    ):
        read_catalog_keys(release, release.pixels[0], LEGACY_SURVEY, margin_arcsec=MARGIN)


def test_an_absent_column_is_named(tmp_path, table):
    release = write_leaves(tmp_path / "cat", table, pixels_of(table))
    with pytest.raises(MissingColumnError, match="no column 'source_id', which the join needs"):
        read_catalog_keys(release, release.pixels[0], GAIA, margin_arcsec=MARGIN)
