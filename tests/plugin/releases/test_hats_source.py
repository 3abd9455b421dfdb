"""A HATS catalog as a source: who is there, what they look like, and files that change."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.releases.hats.leaf import ParquetPlace
from skyvec.releases.hats.source import HatsSource
from skyvec.releases.sky import near_pixel
from skyvec_schemas.errors import BandError, ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import GAIA, LEGACY_SURVEY, SDSS

PICTURED = replace(LEGACY_SURVEY, scalars=LEGACY_SURVEY.scalars[:2])
SIDE = 10


def sky_table(rows, *, seed=0, ra=(20, 24), dec=(-2, 2)):
    rng = np.random.default_rng(seed)
    flux = rng.normal(size=(rows, 4, SIDE, SIDE)).astype(np.float32)
    image = [
        {"band": ["des-g", "des-r", "des-i", "des-z"], "flux": f.tolist(),
         "mask": np.ones(f.shape, bool).tolist(), "ivar": f.tolist()}
        for f in flux
    ]  # fmt: skip
    return pa.table(
        {
            "object_id": [f"b'  {i}'" for i in range(rows)],
            "ra": rng.uniform(*ra, rows) % 360,
            "dec": rng.uniform(*dec, rows),
            "image": pa.array(image),
            "FLUX_G": pa.array(np.arange(rows), pa.float32()),
            "FLUX_R": pa.array(np.arange(rows) * 2, pa.float32()),
            "Z": pa.array(rng.uniform(0, 1, rows), pa.float32()),
        }
    )


def write_catalog(table, folder, *, order=3, split=(), index=None, group=4, properties=None):
    """A catalog of leaves of one order, but for pixels that are ``split`` into the next order."""
    ra, dec = (table.column(name).to_numpy() for name in ("ra", "dec"))
    index = compute_spatial_index(ra, dec) if index is None else index
    table = table.add_column(0, "_healpix_29", pa.array(index))
    table = table.take(pa.array(np.argsort(index, kind="stable")))
    index = np.sort(index)
    home = [HealpixPixel(order, int(p)) for p in spatial_index_to_healpix(index, order)]
    finer = spatial_index_to_healpix(index, order + 1)
    home = [HealpixPixel(order + 1, int(f)) if h.pixel in split else h
            for h, f in zip(home, finer, strict=True)]  # fmt: skip
    rows = Counter(home)
    for pixel, count in rows.items():
        leaf = leaf_of(folder, pixel)
        part = table.filter(pa.array([h == pixel for h in home]))
        assert len(part) == count
        leaf.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, leaf, row_group_size=group)
    finish_catalog(
        folder, name="cat", rows=dict(rows),
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()),
        ra_column="ra", dec_column="dec", builder="tests", properties=properties or {},
    )  # fmt: skip
    return folder


def leaves_as_folders(folder, *, group=4):
    """The same catalog with two files for each leaf."""
    for leaf in sorted(folder.glob("dataset/Norder=*/Dir=*/*.parquet")):
        part = pq.read_table(leaf, partitioning=None)
        leaf.unlink()
        place = leaf.with_suffix("")
        place.mkdir()
        half = len(part) // 2
        pq.write_table(part.slice(0, half), place / "a.parquet", row_group_size=group)
        pq.write_table(part.slice(half), place / "b.parquet", row_group_size=group)
    for name in ("hats.properties", "properties"):
        with (folder / name).open("a") as file:
            file.write("hats_npix_suffix=/\n")
    return folder


def leaf_of(folder, pixel, suffix=".parquet"):
    return type(folder)(str(paths.pixel_catalog_file(str(folder), pixel, npix_suffix=suffix)))


def values_of(source, objects, wanted, **options):
    """Place in wanted -> scalar, image corner, flags, label."""
    found = {}
    for reading in source.read(objects, np.asarray(wanted), **({"rows": 3} | options)):
        images = reading.observations["tok_image"]
        assert len(reading.index) == len(images.flux_BCHW) == len(reading.flags)
        for i, place in enumerate(reading.index.tolist()):
            assert place not in found
            found[place] = (
                float(reading.observations["tok_flux_g"][i]),
                images.flux_BCHW[i].numpy(),
                int(reading.flags[i]),
                float(reading.labels["tok_z"][i]),
            )
    return found


@pytest.fixture
def table():
    return sky_table(60)


@pytest.fixture
def source(table, tmp_path):
    return HatsSource.open(write_catalog(table, tmp_path / "cat"), PICTURED, window=SIDE)


def pixels_of(table, order):
    ra, dec = (table.column(name).to_numpy() for name in ("ra", "dec"))
    return spatial_index_to_healpix(compute_spatial_index(ra, dec), order)


@pytest.mark.parametrize("order", [1, 3, 4, 6])
@pytest.mark.parametrize("split", [False, True])
def test_every_object_is_found_in_its_pixel_whatever_the_orders(table, tmp_path, order, split):
    halves = np.unique(pixels_of(table, 3))[:2].tolist() if split else ()
    catalog = write_catalog(table, tmp_path / "cat", split=halves)
    source = HatsSource.open(catalog, PICTURED, window=SIDE)
    home = pixels_of(table, order)
    for pixel in np.unique(home):
        found = source.objects(HealpixPixel(order, int(pixel)), margin_arcsec=0)
        assert sorted(found.ids.tolist()) == sorted(str(i) for i in np.flatnonzero(home == pixel))


def test_objects_around_a_pixel_are_those_within_the_margin(table, tmp_path):
    source = HatsSource.open(write_catalog(table, tmp_path / "cat"), PICTURED)
    pixel = HealpixPixel(5, int(pixels_of(table, 5)[0]))
    ra, dec = (table.column(name).to_numpy() for name in ("ra", "dec"))
    near = near_pixel(ra, dec, pixel, margin_arcsec=1800)
    found = source.objects(pixel, margin_arcsec=1800)
    assert sorted(found.ids.tolist()) == sorted(map(str, np.flatnonzero(near)))
    assert near.sum() > (pixels_of(table, 5) == pixel.pixel).sum()


def test_an_object_at_ra_360_is_at_0(tmp_path):
    table = sky_table(4, ra=(359.9, 360.1), dec=(-0.1, 0.1))
    table = table.set_column(1, "ra", pa.array([360.0, 0.001, 359.999, 359.9999]))
    source = HatsSource.open(write_catalog(table, tmp_path / "cat"), PICTURED)
    found = source.objects(HealpixPixel(0, 4), margin_arcsec=5)
    assert len(found) == 4
    assert ((found.ra >= 0) & (found.ra < 360)).all()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_wanted_objects_are_read_once_each_with_their_own_values(source, table, rows):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    assert len(objects) > 20
    wanted = np.random.default_rng(0).permutation(len(objects))[: len(objects) * 2 // 3]
    found = values_of(source, objects, wanted, rows=rows)
    assert sorted(found) == list(range(len(wanted)))
    flux = {i: np.array(image["flux"], np.float32)
            for i, image in enumerate(table.column("image").to_pylist())}  # fmt: skip
    labels = table.column("Z").to_pylist()
    for place, (scalar, image, flags, label) in found.items():
        number = int(objects.ids[wanted[place]])
        assert scalar == number
        assert np.array_equal(image, flux[number])
        assert (flags, label) == (0, pytest.approx(labels[number]))


def test_no_reading_holds_more_rows_than_asked_for(source):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    sizes = [len(r.index) for r in source.read(objects, np.arange(len(objects))[::2], rows=3)]
    assert max(sizes) == 3
    assert len(sizes) < sum(sizes) / 1.5


def test_the_same_object_may_be_wanted_twice(source):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    found = values_of(source, objects, [3, 7, 3])
    assert found[0][0] == found[2][0] == float(objects.ids[3])


def test_nothing_wanted_reads_nothing(source):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    assert list(source.read(objects, np.array([], np.int64), rows=5)) == []


def test_only_row_groups_that_hold_a_wanted_row_are_decoded(source, monkeypatch):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    place = objects.file[0]
    there = np.flatnonzero(objects.file == place)
    wanted = there[objects.row[there] == 5]
    decoded = []
    real = ParquetPlace.batches

    def counted(self, chunks, *, rows, groups):
        decoded.append(list(groups))
        return real(self, chunks, rows=rows, groups=groups)

    monkeypatch.setattr(ParquetPlace, "batches", counted)
    assert len(values_of(source, objects, wanted)) == len(wanted) == 1
    assert decoded == [[1]]


def test_a_pixel_without_objects_has_none(source):
    found = source.objects(HealpixPixel(3, 700), margin_arcsec=1)
    assert len(found) == 0
    assert found.ids.dtype.kind == "U"


@pytest.mark.parametrize("order", [0, 2, 6])
def test_bad_positions_and_ids_are_quarantined_once_with_their_reason(table, tmp_path, order):
    index = compute_spatial_index(*(table.column(c).to_numpy() for c in ("ra", "dec")))
    dec, ra = table.column("dec").to_pylist(), table.column("ra").to_pylist()
    ids = table.column("object_id").to_pylist()
    dec[3], ra[4], ra[5], ids[6] = 123.4, 400.0, None, None
    index[5] = 0  # of an import that did not know better
    table = table.set_column(2, "dec", pa.array(dec)).set_column(1, "ra", pa.array(ra))
    table = table.set_column(0, "object_id", pa.array(ids))
    catalog = write_catalog(table, tmp_path / "cat", index=index)
    source = HatsSource.open(catalog, PICTURED)
    everything = spatial_index_to_healpix(index, order)
    found = [source.objects(HealpixPixel(order, int(p)), margin_arcsec=1)
             for p in np.unique(everything)]  # fmt: skip
    reported = [q for part in found for q in part.quarantined]
    assert sorted((q.object_id, q.reason) for q in reported) == [
        ("", "it has no id"),
        ("3", "dec is 123.4"),
        ("4", "ra is 400"),
        ("5", "ra is nan"),
    ]
    for q in reported:
        leaf = pq.read_table(q.file, partitioning=None, columns=["FLUX_G"])
        assert leaf.column(0)[q.row].as_py() == float(q.object_id or 6)
    seen = {i for part in found for i in part.ids.tolist()}
    assert seen == {str(i) for i in range(60)} - {"3", "4", "5", "6"}


def test_a_bad_object_is_flagged_and_touches_no_other(table, tmp_path):
    images = table.column("image").to_pylist()
    images[7] = None
    images[8]["flux"][2] = images[8]["flux"][2][:4]
    bad = table.set_column(3, "image", pa.array(images, table.schema.field("image").type))
    good = HatsSource.open(write_catalog(table, tmp_path / "good"), PICTURED, window=SIDE)
    poor = HatsSource.open(write_catalog(bad, tmp_path / "bad"), PICTURED, window=SIDE)
    objects = good.objects(HealpixPixel(0, 4), margin_arcsec=0)
    everything = np.arange(len(objects))
    expected, found = values_of(good, objects, everything), values_of(poor, objects, everything)
    reasons = {}
    for place in everything:
        if found[place][2]:
            reasons[int(objects.ids[place])] = found[place][2]
        else:
            assert np.array_equal(found[place][1], expected[place][1])
    assert reasons == {7: Flag.IMAGE_MISSING, 8: Flag.IMAGE_MALFORMED}


def test_leaves_may_be_folders_of_several_files(table, tmp_path):
    plain = HatsSource.open(write_catalog(table, tmp_path / "a"), PICTURED, window=SIDE)
    split = HatsSource.open(
        leaves_as_folders(write_catalog(table, tmp_path / "b")), PICTURED, window=SIDE
    )
    pixel = HealpixPixel(0, 4)
    left, right = (s.objects(pixel, margin_arcsec=0) for s in (plain, split))
    assert left.ids.tolist() == right.ids.tolist()
    wanted = np.arange(len(left))
    for one, other in zip(values_of(plain, left, wanted).values(),
                          values_of(split, right, wanted).values(), strict=True):  # fmt: skip
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1])
    assert len(split.identity(pixel, margin_arcsec=0)["files"]) == 2 * len(
        plain.identity(pixel, margin_arcsec=0)["files"]
    )


def test_the_identity_changes_with_the_files_and_the_mapping_only(table, tmp_path):
    catalog = write_catalog(table, tmp_path / "cat")
    source, pixel = HatsSource.open(catalog, PICTURED), HealpixPixel(0, 4)
    first = source.identity(pixel, margin_arcsec=1)
    assert HatsSource.open(catalog, PICTURED).identity(pixel, margin_arcsec=1) == first
    mapped = HatsSource.open(catalog, PICTURED, columns={"FLUX_G": "FLUX_R"})
    assert mapped.identity(pixel, margin_arcsec=1) != first
    leaf = leaf_of(catalog, source.release.pixels[0])
    pq.write_table(pq.read_table(leaf, partitioning=None), leaf, row_group_size=3)
    assert source.identity(pixel, margin_arcsec=1) != first


def test_a_file_written_again_after_its_objects_were_listed_is_refused(source):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    leaf = source.release.leaf(source.release.pixels[int(objects.file[0])])
    pq.write_table(pq.read_table(leaf, partitioning=None).slice(1), leaf)
    with pytest.raises(ContractError, match=r"Npix=\d+\.parquet: changed while it was read"):
        values_of(source, objects, np.arange(len(objects)))


def test_a_file_written_again_while_it_is_read_is_refused(source):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    leaf = source.release.leaf(source.release.pixels[int(objects.file[0])])
    readings = source.read(objects, np.flatnonzero(objects.file == objects.file[0]), rows=2)
    next(readings)
    leaf.write_bytes(leaf.read_bytes())
    with pytest.raises(ContractError, match=r"Npix=\d+\.parquet: changed while it was read"):
        list(readings)


@pytest.mark.parametrize("harm", ["deleted", "truncated", "page"])
def test_a_leaf_that_cannot_be_read_is_named(source, harm):
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    leaf = source.release.leaf(source.release.pixels[int(objects.file[0])])
    whole = leaf.read_bytes()
    if harm == "deleted":
        leaf.unlink()
    elif harm == "truncated":
        leaf.write_bytes(whole[: len(whole) // 2])
    else:
        leaf.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    fresh = replace(source, _seen={})
    with pytest.raises(ContractError, match=r"Npix=\d+\.parquet: cannot be read .*again"):
        values_of(fresh, objects, np.arange(len(objects)))


def test_a_leaf_without_a_column_of_the_schema_is_named(source):
    leaf = source.release.leaf(source.release.pixels[0])
    pq.write_table(pq.read_table(leaf, partitioning=None).drop_columns(["ra"]), leaf)
    with pytest.raises(ContractError, match=r"Npix=\d+\.parquet: no column 'ra', which the cat"):
        source.objects(HealpixPixel(0, 4), margin_arcsec=0)


def test_what_the_catalog_does_not_hold_is_said_on_opening(table, tmp_path):
    catalog = write_catalog(table, tmp_path / "cat")
    with pytest.raises(MissingColumnError, match="no column 'spectrum'"):
        HatsSource.open(catalog, SDSS)
    with pytest.raises(MissingColumnError, match=r"'coeff'.*'phot_g_mean_flux'"):
        HatsSource.open(catalog, GAIA)
    with pytest.raises(ConfigurationError, match=r"no 'image\.flx' \(nearest: 'image\.flux'\)"):
        HatsSource.open(catalog, PICTURED, columns={"image.flx": "image"})
    with pytest.raises(BandError, match="bands a, b, c, d where the survey has des-g"):
        HatsSource.open(catalog, PICTURED, columns={"image.band": "=a,b,c,d"})


def test_bands_of_another_survey_are_refused_on_opening(table, tmp_path):
    images = table.column("image").to_pylist()
    for image in images:
        image["band"] = ["hsc-g", "hsc-r", "hsc-i", "hsc-z"]
    wrong = table.set_column(3, "image", pa.array(images, table.schema.field("image").type))
    with pytest.raises(BandError, match=r"image\.band.*bands hsc-g, .*has des-g"):
        HatsSource.open(write_catalog(wrong, tmp_path / "cat"), PICTURED)


def test_gaia_of_the_port_is_a_source(tmp_path):
    rng = np.random.default_rng(2)
    rows = 6
    coeff = rng.normal(size=(rows, 110)).astype(np.float32)
    photometry = [{f"phot_{b}_mean_flux": 2.0 for b in ("g", "bp", "rp")} for _ in range(rows)]
    table = pa.table(
        {
            "spectral_coefficients": [{"coeff": c.tolist(), "coeff_error": c.tolist()} for c in coeff],
            "photometry": photometry,
            "astrometry": [{"ra": 1.0, "parallax": 0.5, "pmra": 3.0, "pmdec": None}] * rows,
            "ra": rng.uniform(20, 24, rows),
            "dec": rng.uniform(-2, 2, rows),
            "object_id": 2**62 + np.arange(rows),
        }
    )  # fmt: skip
    source = HatsSource.open(write_catalog(table, tmp_path / "cat"), GAIA)
    objects = source.objects(HealpixPixel(0, 4), margin_arcsec=0)
    assert sorted(objects.ids.tolist()) == [str(2**62 + i) for i in range(rows)]
    assert (objects.pm_ra == 3).all()
    assert np.isnan(objects.pm_dec).all()
    for reading in source.read(objects, np.arange(rows), rows=4):
        numbers = objects.ids[reading.index].astype(np.int64) - 2**62
        assert np.array_equal(reading.observations["tok_xp_rp"], coeff[numbers, 55:])
        assert (reading.observations["tok_parallax"] == 0.5).all()
        assert not reading.flags.any()
