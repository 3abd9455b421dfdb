"""The mock survey is a valid HATS collection, and its rows are what they say."""

from __future__ import annotations

from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io.validation import is_valid_collection

from skyvec.mock.catalog import survey_schema, survey_table
from skyvec.mock.galaxies import draw_latents, photometry
from skyvec.mock.sky import Footprint, draw_sky, select_galaxies
from skyvec.mock.survey import write_mock_survey
from skyvec.mock.survey_ids import object_ids
from skyvec_schemas.errors import ConfigurationError, OutputExistsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct

ROWS, SEED, SIZE = 60, 7, 48

# Seed 7 at 96 pixels, as the version drew it on which skyvec-tiny was trained.
GOLDEN = {
    "object_id": [156272241904991, 145726085114962, 142225957579320],
    "ra": [152.56670560769484, 160.25148895723896, 163.7666915457187],
    "FLUX_R": [3.0818023681640625, 1.5894829034805298, 33.06727981567383],
    "FLUX_W4": [101.80010986328125, 201.976806640625, -113.16172790527344],
    "SHAPE_R": [1.1293509006500244, 0.6763157844543457, 1.486430048942566],
    "SHAPE_E1": [-0.15475857257843018, 0.09038931131362915, -0.2824012041091919],
    "Z": [0.43130066990852356, 0.5141664743423462, 0.1459401249885559],
    "TRUE_BT": [0.06027337536215782, 0.5154135823249817, 0.6949933767318726],
    "corner": [-0.004039272, -0.005186361, -0.007243739, 0.015354577],
}


@pytest.fixture(scope="module")
def reported():
    return []


@pytest.fixture(scope="module")
def collection(tmp_path_factory, reported):
    out = tmp_path_factory.mktemp("mock") / "sky"
    return write_mock_survey(
        out, rows=ROWS, seed=SEED, size=SIZE, workers=1, progress=reported.append
    )


@pytest.fixture(scope="module")
def table(collection):
    leaves = sorted(collection.rglob("Npix=*.parquet"))
    return pa.concat_tables([pq.ParquetFile(leaf).read() for leaf in leaves])


def planes(table, field):
    values = table["image"].combine_chunks().field(field)
    while pa.types.is_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(len(table), 4, SIZE, SIZE)


def test_the_collection_passes_the_strict_validation_of_hats(collection):
    assert is_valid_collection(collection, strict=True)


def test_lsdb_opens_it_and_computes(collection):
    catalog = lsdb.open_catalog(collection)
    frame = catalog[["object_id", "ra", "dec", "FLUX_R", "Z"]].compute()
    assert len(frame) == ROWS
    assert frame.index.name == "_healpix_29"
    assert len(catalog.get_healpix_pixels()) >= 4


def test_without_images_every_other_column_is_the_same(table, tmp_path):
    out = write_mock_survey(tmp_path / "sky", rows=ROWS, seed=SEED, images=False, workers=1)
    leaves = sorted(out.rglob("Npix=*.parquet"))
    found = pa.concat_tables([pq.ParquetFile(leaf).read() for leaf in leaves])
    assert "image" not in found.column_names
    assert found.equals(table.drop_columns(["image"]))


def test_the_columns_are_those_that_the_survey_declares(table):
    assert table.schema.equals(survey_schema())
    assert set(LEGACY_SURVEY.columns) < set(table.column_names)
    assert set(LEGACY_SURVEY.labels) < set(table.column_names)
    assert table.schema.field("image").type == image_struct()
    assert not any(column.null_count for column in table.columns)


def test_bands_and_pixel_scale_are_those_of_the_survey(table):
    image = table["image"].to_pylist()[0]
    assert image["band"] == list(LEGACY_SURVEY.image.bands)
    assert image["scale"] == pytest.approx([LEGACY_SURVEY.image.pixel_scale] * 4)
    assert all(0.7 < fwhm < 2 for fwhm in image["psf_fwhm"])


def test_the_galaxies_are_those_that_earlier_versions_drew():
    table = survey_table(draw_sky(3, seed=7, footprint=Footprint()), seed=7, size=96)
    assert table["object_id"].to_pylist() == GOLDEN["object_id"]
    assert table["ra"].to_pylist() == pytest.approx(GOLDEN["ra"], rel=1e-12)
    for name in ("FLUX_R", "FLUX_W4", "SHAPE_R", "SHAPE_E1", "Z", "TRUE_BT"):
        assert table[name].to_pylist() == pytest.approx(GOLDEN[name], rel=1e-5), name
    image = table["image"].to_pylist()[2]
    corner = [image["flux"][band][90][5] for band in range(4)]
    assert corner == pytest.approx(GOLDEN["corner"], rel=1e-3)


def test_ids_are_unique_scattered_and_differ_between_seeds(table):
    ids = table["object_id"].to_numpy()
    assert len(np.unique(ids)) == ROWS
    assert ids.min() > 10 * ROWS
    others = object_ids(np.arange(10_000), seed=SEED + 1)
    assert len(np.unique(others)) == 10_000
    assert not np.isin(ids, others).any()


def test_rows_are_the_same_in_any_chunking(table):
    sky = draw_sky(ROWS, seed=SEED, footprint=Footprint())
    alone = survey_table(sky[17:18], seed=SEED, size=SIZE)
    place = table["object_id"].to_pylist().index(alone["object_id"][0].as_py())
    # Equal by value: slices of nested Arrow data keep different offsets.
    assert table.slice(place, 1).to_pylist() == alone.to_pylist()


def test_more_rows_add_to_the_galaxies_and_another_seed_changes_them():
    few, _ = select_galaxies(20, seed=SEED)
    many, _ = select_galaxies(50, seed=SEED)
    other, _ = select_galaxies(20, seed=SEED + 1)
    assert np.array_equal(few, many[:20])
    assert not np.array_equal(few, other)


def test_measured_fluxes_scatter_about_the_truth_and_the_label_is_the_redshift(table):
    indices, _ = select_galaxies(ROWS, seed=SEED)
    latents = draw_latents(indices, seed=SEED)
    order = np.argsort(object_ids(indices, seed=SEED))
    rows = table.sort_by("object_id")
    assert rows["Z"].to_numpy() == pytest.approx(latents.redshift[order], rel=1e-6)
    ratio = rows["FLUX_R"].to_numpy() / photometry(latents).total[order, 1]
    assert np.median(ratio) == pytest.approx(1, abs=0.02)
    assert (np.abs(ratio - 1) < 0.5).all()


def test_the_middle_of_an_image_holds_the_flux_of_the_catalog(table):
    flux, good = planes(table, "flux"), planes(table, "ivar") > 0
    whole = good.all(axis=(1, 2, 3))
    half = 4.2 / LEGACY_SURVEY.image.pixel_scale  # arcsec
    y, x = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    aperture = (flux[:, 1] * (np.hypot(x, y) < half)).sum(axis=(1, 2))[whole]
    expected = table["FLUX_R"].to_numpy()[whole]
    # Light beyond 4.2 arcsec is lost and neighbours come in; the typical galaxy loses 3%.
    assert np.median(aperture / expected) == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("collection")
def test_progress_counts_up_to_the_rows(reported):
    assert reported == sorted(reported)
    assert reported[-1] == ROWS


def test_rows_lie_in_the_footprint_evenly():
    patch = Footprint(ra_min=350, ra_max=370, dec_min=40, dec_max=80)
    rng = np.random.Generator(np.random.Philox(2))
    ra, dec = patch.place(rng.random((4000, 2)))
    assert ((ra >= 350) | (ra <= 10)).all()
    assert ((dec >= 40) & (dec <= 80)).all()
    middle = np.degrees(np.arcsin((np.sin(np.radians(40)) + np.sin(np.radians(80))) / 2))
    assert (dec < middle).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"rows": 5, "seed": -1}, "seed is -1"),
        ({"rows": 5, "size": 4}, "size is 4"),
        ({"rows": 5, "workers": 0}, "workers is 0"),
        ({"rows": 5, "name": "a/b"}, "cannot name a catalog"),
        ({"rows": 5, "stamp": 8}, "size of the stamps is 8"),
        ({"rows": 5, "stars": -1}, "stars is -1"),
        ({"rows": 5, "release": 3}, "release is 3"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(tmp_path, wrong, match):
    with pytest.raises(ConfigurationError, match=match):
        write_mock_survey(tmp_path / "sky", **({"seed": 1} | wrong))
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_left_alone(collection):
    with pytest.raises(OutputExistsError, match="something is there already"):
        write_mock_survey(collection, rows=5, seed=1)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_mock_survey(tmp_path / "file" / "sky", rows=5, seed=1)


def test_nothing_half_written_is_left_behind(tmp_path):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mock_survey(tmp_path / "sky", rows=25, seed=1, size=16, workers=1, progress=stop)
    assert not list(tmp_path.iterdir())


def test_leaves_hold_no_more_rows_than_their_share(collection):
    leaves = list(Path(collection).rglob("Npix=*.parquet"))
    rows = [pq.ParquetFile(leaf).metadata.num_rows for leaf in leaves]
    assert sum(rows) == ROWS
    assert max(rows) <= 20
