"""Samples hold what the files hold, whatever the layout, and say how large the release is."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from hats.pixel_math.healpix_pixel import HealpixPixel
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.lint import lint, lint_release
from skyvec.releases.lint.raw_fits import sample_fits_images, sample_fits_spectra
from skyvec.releases.lint.raw_hats import row_arrays, sample_hats, sample_leaf
from skyvec.releases.lint.raw_hdf5 import sample_mmu, sample_mmu_file
from skyvec.releases.lint.raw_sample import choose, extrapolate, sample_release, spread
from skyvec.releases.mmu.release import MmuRelease
from skyvec.releases.mmu.writer import write_mmu_file, write_mmu_release
from skyvec.releases.working_copy.repack import repack
from skyvec.sources import declared_sources
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import DESI, GAIA, LEGACY_SURVEY

BANDS = np.array(["des-g", "des-r", "des-i", "des-z"])


def mmu_columns(n=20, *, size=12):
    rng = np.random.default_rng(0)
    return {
        "object_id": np.array([f"0001m002-{i}" for i in range(n)]),
        "ra": rng.uniform(10, 30, n), "dec": rng.uniform(-5, 5, n),
        "image_array": rng.normal(0, 1, (n, 4, size, size)).astype(np.float32),
        "image_mask": np.ones((n, size, size), bool),
        "image_band": np.tile(BANDS, (n, 1)),
        "image_scale": np.full((n, 4), 0.262, np.float32),
        **{s.name: rng.lognormal(0, 1, n).astype(">f4") for s in LEGACY_SURVEY.scalars},
        "EXTRA": np.arange(n),
    }  # fmt: skip


@pytest.fixture
def mmu(tmp_path):
    columns = mmu_columns(200)
    write_mmu_release(tmp_path / "ls/dr10", LEGACY_SURVEY, [columns], layout="mmu")
    return tmp_path / "ls", columns


# Multimodal Universe


def test_a_sample_of_hdf5_files_is_raw_and_counts_the_release(mmu):
    root, columns = mmu
    release = sample_mmu(str(root), LEGACY_SURVEY, rows=16)
    assert (release.rows, release.exact) == (200, True)
    assert release.file_count == len(list(root.rglob("*.hdf5")))
    assert release.bytes == sum(p.stat().st_size for p in root.rglob("*.hdf5"))
    for file in release.files:
        assert file.pixel.order == 4
        assert f"healpix={file.pixel.pixel}/" in file.path
        names = [name.decode() for name in file.keys["id"]]
        rows = [list(columns["object_id"]).index(name) for name in names]
        assert np.array_equal(file.keys["FLUX_G"], columns["FLUX_G"][rows])
        for at, row in enumerate(rows[: len(file.arrays["image.flux"])]):
            assert np.array_equal(file.arrays["image.flux"][at], columns["image_array"][row])
            assert list(file.arrays["image.band"][at]) == list(BANDS)
        assert "image.ivar" not in file.arrays
        assert "EXTRA" in file.columns


def test_samples_are_bounded_and_small_files_are_joined(mmu):
    root, _ = mmu
    few = sample_mmu(str(root), LEGACY_SURVEY, rows=2, files=2)
    assert sum(len(file.arrays["image.flux"]) for file in few.files) == 2
    many = sample_mmu(str(root), LEGACY_SURVEY, rows=60, files=1)
    assert sum(len(file.arrays["image.flux"]) for file in many.files) == 60


def test_a_broken_file_is_a_problem_and_the_others_are_sampled(mmu):
    root, _ = mmu
    broken = sorted(root.rglob("*.hdf5"))[0]
    broken.write_bytes(broken.read_bytes()[:300])
    release = sample_mmu(str(root), LEGACY_SURVEY)
    assert [problem.where for problem in release.problems] == [str(broken)]
    assert release.files
    assert not release.exact
    assert lint_release("ls", LEGACY_SURVEY, release)[0].where == str(broken)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_a_release_of_broken_files_only_is_one_error(tmp_path, content):
    (tmp_path / "healpix=12").mkdir()
    (tmp_path / "healpix=12/001-of-001.hdf5").write_bytes(content)
    with pytest.raises(ContractError, match="cannot be read as HDF5"):
        sample_mmu(str(tmp_path), LEGACY_SURVEY)


def test_a_folder_without_files_is_one_error(tmp_path):
    with pytest.raises(ContractError, match=r"no \.hdf5"):
        sample_mmu(str(tmp_path), LEGACY_SURVEY)


def test_unequal_columns_are_sampled_as_they_are(tmp_path):
    path = write_mmu_file(tmp_path / "a.hdf5", [mmu_columns(5)], rows=5)
    with h5py.File(path, "r+") as file:
        dec = file["dec"][:4]
        del file["dec"]
        file["dec"] = dec
    sampled = sample_mmu_file(path, LEGACY_SURVEY, rows=5)
    assert sampled.lengths["dec"] == 4
    assert "columns" in {f.topic for f in lint("ls", LEGACY_SURVEY, [sampled])}


def test_aliases_of_ids_and_other_cases_are_found(tmp_path):
    columns = {"source_id": np.arange(3), "RA": np.arange(3.0), "DEC": np.arange(3.0),
               "coeff": np.ones((3, 110), "f4")}  # fmt: skip
    path = write_mmu_file(tmp_path / "a.hdf5", [columns], rows=3)
    sampled = sample_mmu_file(path, GAIA, rows=2)
    assert set(sampled.keys) == {"id", "ra", "dec"}
    assert len(sampled.arrays["coefficients"]) == 2


# HATS


def test_a_sample_of_a_hats_catalog_is_raw_and_counts_the_release(make_collection):
    release = sample_hats(HatsRelease.open(make_collection(rows=12)), LEGACY_SURVEY, rows=4)
    assert (release.rows, release.counted_rows, release.stated_rows) == (12, 12, 12)
    assert release.file_count == 2
    assert sum(len(file.arrays["image.flux"]) for file in release.files) == 4
    file = release.files[0]
    assert file.arrays["image.flux"][0].shape == (4, 96, 96)
    assert list(file.arrays["image.band"][0]) == list(BANDS)
    assert {"id", "ra", "dec", "healpix_29", "FLUX_G", "Z"} <= set(file.keys)


def test_files_beyond_or_short_of_the_list_are_seen(make_collection):
    sky = make_collection(rows=12)
    leaf = next(sky.rglob("Npix=*.parquet"))
    extra = leaf.with_name("Npix=3.parquet")
    extra.write_bytes(leaf.read_bytes())
    release = sample_hats(HatsRelease.open(sky), LEGACY_SURVEY)
    assert [place.endswith("Npix=3.parquet") for place in release.unlisted_files] == [True]
    extra.unlink()
    leaf.unlink()
    release = sample_hats(HatsRelease.open(sky), LEGACY_SURVEY)
    assert len(release.absent_files) == 1
    assert release.counted_rows is None


def test_rows_that_were_cut_after_the_import_are_seen(make_collection):
    sky = make_collection(rows=12)
    leaf = next(sky.rglob("Npix=*.parquet"))
    pq.write_table(pq.read_table(leaf, partitioning=None).slice(1), leaf)
    release = sample_hats(HatsRelease.open(sky), LEGACY_SURVEY)
    finding = next(f for f in lint_release("c", LEGACY_SURVEY, release) if f.topic == "row count")
    assert finding.evidence == {"hats_nrows": 12, "footers": 11}


def test_a_truncated_leaf_is_a_problem(make_collection):
    sky = make_collection(rows=12)
    leaf = sorted(sky.rglob("Npix=*.parquet"))[0]
    leaf.write_bytes(leaf.read_bytes()[:-20])
    release = sample_hats(HatsRelease.open(sky), LEGACY_SURVEY)
    assert [problem.where for problem in release.problems] == [str(leaf)]
    assert len(release.files) == 1


def flux(n=3, size=5):
    return np.random.default_rng(1).normal(0, 1, (n, 4, size, size)).astype(np.float32)


def nested(values):
    return pa.array(values.tolist(), pa.list_(pa.list_(pa.list_(pa.float32()))))


LAYOUTS = {
    "struct of lists": (
        lambda f: {"image": pa.StructArray.from_arrays([nested(f)], names=["flux"])},
        {},
    ),
    "list of structs": (
        lambda f: {"image": pa.array([[{"flux": plane} for plane in row] for row in f.tolist()])},
        {},
    ),
    "tensor": (
        lambda f: {"cutout": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(f))},
        {"image.flux": "cutout"},
    ),
    "flat list": (
        lambda f: {"cutout": pa.array(f.reshape(len(f), -1).tolist())},
        {"image.flux": "cutout[4,5,5]", "image.band": "=des-g,des-r,des-i,des-z"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_images_is_read_alike(tmp_path, layout):
    build, columns = LAYOUTS[layout]
    expected = flux()
    table = pa.table({"object_id": [1, 2, 3], **build(expected)})
    pq.write_table(table, tmp_path / "a.parquet")
    sampled = sample_leaf(tmp_path / "a.parquet", LEGACY_SURVEY, columns, rows=2)
    assert sampled.rows == 3
    assert len(sampled.arrays["image.flux"]) == 2
    for got, want in zip(sampled.arrays["image.flux"], expected, strict=False):
        assert np.array_equal(got, want)
    if "image.band" in columns:
        assert list(sampled.arrays["image.band"][0]) == list(BANDS)


def test_columns_within_structs_are_found(tmp_path):
    table = pa.table(
        {
            "source_id": [1, 2],
            "photometry": pa.array([{"phot_g_mean_flux": 3.0}, {"phot_g_mean_flux": None}]),
            "spectral_coefficients": pa.array([{"coeff": [1.0] * 110}] * 2),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    sampled = sample_leaf(tmp_path / "a.parquet", GAIA, {}, rows=2)
    assert np.array_equal(sampled.keys["phot_g_mean_flux"], [3, np.nan], equal_nan=True)
    assert sampled.arrays["coefficients"][0].shape == (110,)


def test_null_and_ragged_rows_keep_their_places():
    rows = row_arrays(pa.array([[[1.0, 2.0], [3.0, 4.0]], None, [[1.0], [2.0, 3.0]], []]))
    assert rows[0].shape == (2, 2)
    assert rows[1] is None
    assert rows[2].dtype == object
    assert rows[3].shape == (0,)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=5))
def test_row_arrays_have_the_shape_of_each_row(shapes):
    values = [np.arange(a * b, dtype=float).reshape(a, b) for a, b in shapes]
    kind = pa.list_(pa.list_(pa.float64()))
    rows = row_arrays(pa.array([v.tolist() for v in values], kind))
    for row, value in zip(rows, values, strict=True):
        assert np.array_equal(row.reshape(value.shape), value)


def test_integer_ids_with_nulls_do_not_pass_through_floats(tmp_path):
    big = 75_000_000_000_000_001
    pq.write_table(pa.table({"object_id": pa.array([big, None])}), tmp_path / "a.parquet")
    sampled = sample_leaf(tmp_path / "a.parquet", DESI, {}, rows=2)
    assert sampled.keys["id"][0] == big


# FITS


def test_headers_of_survey_images_are_sampled(tmp_path):
    header = fits.Header(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": -0.4 / 3600, "CD2_2": 0.4 / 3600,
         "CD1_2": 0.0, "CD2_1": 0.0, "CRPIX1": 5, "CRPIX2": 5, "CRVAL1": 10, "CRVAL2": 2,
         "MAGZERO": 22.5, "BUNIT": "nanomaggy"}
    )  # fmt: skip
    fits.PrimaryHDU(np.zeros((10, 12), "f4"), header).writeto(tmp_path / "image-g.fits")
    release = sample_fits_images(str(tmp_path))
    assert release.files[0].facts == {
        "side": 10, "unit": "nanomaggy", "scale": pytest.approx(0.4), "zero_point": 22.5,
    }  # fmt: skip
    scale = next(f for f in lint("x", LEGACY_SURVEY, release.files) if f.topic == "pixel scale")
    assert scale.severity == "error"


def desi_coadd(path, *, n=4):
    table = fits.BinTableHDU.from_columns(
        [fits.Column("TARGETID", "K", array=np.arange(n)),
         fits.Column("TARGET_RA", "D", array=np.full(n, 10.0)),
         fits.Column("TARGET_DEC", "D", array=np.full(n, 2.0))], name="FIBERMAP",
    )  # fmt: skip
    parts = [fits.PrimaryHDU(), table]
    rng = np.random.default_rng(0)
    for arm, first in (("B", 3600), ("R", 5760)):
        parts += [
            fits.ImageHDU(first + 0.8 * np.arange(300.0), name=f"{arm}_WAVELENGTH"),
            fits.ImageHDU(rng.normal(1, 1, (n, 300)), name=f"{arm}_FLUX"),
            fits.ImageHDU(np.ones((n, 300)), name=f"{arm}_IVAR"),
            fits.ImageHDU(np.zeros((n, 300), "i4"), name=f"{arm}_MASK"),
        ]
    fits.HDUList(parts).writeto(path)


def test_arms_of_desi_coadds_are_sampled_one_by_one(tmp_path):
    desi_coadd(tmp_path / "coadd-main-dark-1.fits")
    release = sample_fits_spectra(str(tmp_path), rows=3)
    assert [file.path[-3:] for file in release.files] == ["[B]", "[R]"]
    assert release.rows == 4
    assert [len(file.arrays["spectrum.flux"]) for file in release.files] == [3, 3]
    assert release.files[0].keys["ra"].dtype.isnative
    assert not [f for f in lint("x", DESI, release.files) if f.severity != "note"]


def test_sdss_files_hold_one_spectrum_each(tmp_path):
    for i in range(4):
        columns = [
            fits.Column(name, "E", array=values)
            for name, values in (("flux", np.full(50, 2.0)), ("ivar", np.ones(50)),
                                 ("loglam", 3.6 + 1e-4 * np.arange(50)))
        ]  # fmt: skip
        columns.append(fits.Column("and_mask", "J", array=np.zeros(50)))
        coadd = fits.BinTableHDU.from_columns(columns, name="COADD")
        primary = fits.PrimaryHDU(header=fits.Header({"PLUG_RA": 10.0 + i, "PLUG_DEC": 1.0}))
        fits.HDUList([primary, coadd]).writeto(tmp_path / f"spec-1-2-{i}.fits")
    release = sample_fits_spectra(str(tmp_path), rows=3)
    assert release.rows == 4
    assert len(release.files) == 3
    assert release.files[0].arrays["spectrum.lambda"][0][0] == pytest.approx(10**3.6, rel=1e-5)


def test_a_broken_fits_file_is_one_error(tmp_path):
    (tmp_path / "spec-1.fits").write_bytes(b"SIMPLE")
    with pytest.raises(ContractError, match="cannot be read as FITS"):
        sample_fits_spectra(str(tmp_path))
    with pytest.raises(ContractError, match="no FITS file"):
        sample_fits_images(str(tmp_path))


def test_a_working_copy_tells_its_size_alone(tmp_path):
    rng = np.random.default_rng(0)
    shape = (5, 40)
    columns = {
        "object_id": np.arange(5), "ra": np.full(5, 10.0), "dec": np.full(5, 2.0),
        "spectrum_flux": rng.normal(1, 1, shape), "spectrum_ivar": np.ones(shape),
        "spectrum_lambda": np.tile(np.linspace(4000, 5000, 40), (5, 1)),
        "spectrum_mask": np.zeros(shape, bool), "Z": np.ones(5),
    }  # fmt: skip
    (file,) = write_mmu_release(tmp_path / "mmu", DESI, [columns])
    pixel = HealpixPixel(4, int(file.parent.name.partition("=")[2]))
    made = repack(MmuRelease.open(tmp_path / "mmu", DESI), tmp_path / "desi", pixels=[pixel])
    (spec,) = declared_sources([f"desi={tmp_path / 'desi'}"])
    release = sample_release(spec)
    assert (release.rows, release.bytes, release.files) == (5, made.bytes, ())
    assert not lint_release("desi", DESI, release)


# Which formats and how much


def test_declared_sources_are_sampled_by_their_format(mmu, make_collection):
    root, _ = mmu
    sky = make_collection(rows=12)
    specs = declared_sources([f"legacysurvey={root}"]) + declared_sources([f"legacysurvey={sky}"])
    assert [sample_release(spec, rows=4).rows for spec in specs] == [200, 12]


@given(st.integers(1, 500), st.integers(1, 64))
def test_spread_takes_first_and_last_and_never_twice(count, wanted):
    places = spread(count, wanted)
    assert len(set(places)) == len(places) == min(count, wanted)
    assert places[0] == 0
    assert wanted == 1 or places[-1] == count - 1


@given(
    st.dictionaries(st.integers(0, 50), st.integers(0, 40), max_size=20),
    st.integers(1, 100), st.integers(1, 5),
)  # fmt: skip
def test_as_many_objects_are_chosen_as_asked_for_if_there_are(counted, rows, files):
    chosen = choose(counted, rows=rows, files=files)
    assert all(0 < share <= counted[place] for place, share in chosen.items())
    total, there = sum(chosen.values()), sum(counted.values())
    assert min(rows, there) <= total <= rows + files


def test_rows_are_extrapolated_by_size():
    assert extrapolate([10, 30, 60], {0: 5, 1: 15}) == 50
    assert extrapolate([10, 30], {0: 5, 1: 16}) == 21


def test_findings_turn_into_plain_values():
    finding = Finding(severity="note", topic="t", source="s", what="w", where="f", remedy="",
                      evidence={"n": 1})  # fmt: skip
    assert finding.to_dict()["evidence"] == {"n": 1}
