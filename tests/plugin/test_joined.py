"""A catalog and its sources: every row once, with what belongs to it and nothing else."""

from collections import Counter
from dataclasses import replace

import h5py
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hats.io import paths as hats_paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.models import load_model
from skyvec.preview.preview import lint_plan
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.joining.catalog_keys import read_catalog_keys
from skyvec.releases.mmu.writer import write_mmu_release
from skyvec.releases.versions.diff import diff_releases
from skyvec.releases.versions.making import make_release, withdraw
from skyvec.releases.versions.manifest import Release
from skyvec.releases.versions.source_folder import open_folder
from skyvec.releases.working_copy.repack import repack
from skyvec.sources import declared_sources
from skyvec.stage.plan import plan
from skyvec.stage.run import run
from skyvec_core.modalities import modalities_of
from skyvec_core.observations import Images, Spectra
from skyvec_schemas.errors import ConfigurationError, OutputExistsError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import DESI, HSC, OBJECTS
from skyvec_schemas.vectors import tensor_values

pytestmark = pytest.mark.filterwarnings("ignore:Right catalog does not have a margin")
ROWS = 14
WITH_IMAGE, WITH_SPECTRUM = np.arange(0, 10), np.arange(5, 12)
"""Rows 12 and 13 are in no source."""


@pytest.fixture(scope="module")
def sky():
    """Ids, positions, HSC cutouts and DESI spectra of the objects, by row."""
    rng = np.random.default_rng(3)
    size, length = 96, 600
    wave = np.linspace(3600, 9824, length, dtype=np.float32)
    return {
        "id": 10**12 + rng.permutation(ROWS).astype(np.int64),
        "ra": np.r_[rng.uniform(359.9, 360, 7), rng.uniform(40, 41, 7)],
        "dec": rng.uniform(-1, 1, ROWS),
        "image": rng.normal(5, 2, (ROWS, 5, size, size)).astype(np.float32),
        "flux": rng.normal(3, 1, (ROWS, length)).astype(np.float32),
        "ivar": rng.uniform(1, 2, (ROWS, length)).astype(np.float32),
        "lambda": np.tile(wave, (ROWS, 1)),
        "scalars": {s.name: rng.uniform(0, 20, ROWS).astype(np.float32) for s in HSC.scalars},
    }


@pytest.fixture
def releases(tmp_path, sky, factory):
    """The catalog (ids and positions) and two releases in the Multimodal Universe's layout."""
    table = pa.table({"object_id": sky["id"], "ra": sky["ra"], "dec": sky["dec"]})
    catalog = factory.write_collection(table, tmp_path / "sky", order=2)
    shift = 0.2 / 3600
    rng = np.random.default_rng(0)
    some = rng.permutation(WITH_IMAGE)
    count = len(some)
    hsc = {
        "object_id": 7 * 10**16 + some.astype(np.int64),
        "ra": (sky["ra"][some] + shift) % 360,
        "dec": sky["dec"][some] - shift,
        "image_array": sky["image"][some],
        "image_mask": np.ones((count, 5, 96, 96), bool),
        "image_band": np.array([[f"hsc-{b}".encode() for b in "grizy"]] * count),
        **{name: values[some] for name, values in sky["scalars"].items()},
    }
    write_mmu_release(tmp_path / "hsc", HSC, [hsc])
    some = rng.permutation(WITH_SPECTRUM)
    desi = {
        "object_id": sky["id"][some],
        "ra": sky["ra"][some],
        "dec": sky["dec"][some],
        "spectrum_flux": sky["flux"][some],
        "spectrum_ivar": sky["ivar"][some],
        "spectrum_lambda": sky["lambda"][some],
        "spectrum_mask": np.zeros((len(some), 600), bool),
        "Z": np.linspace(0, 1, len(some), dtype=np.float32),
    }
    write_mmu_release(tmp_path / "desi", DESI, [desi])
    return {"catalog": catalog, "hsc": tmp_path / "hsc", "desi": tmp_path / "desi"}


def declared(releases, **options):
    return declared_sources([f"{n}={releases[n]}" for n in ("hsc", "desi")], **options)


def embedded_rows(collection, name="every_v1"):
    """id -> row of the extension, the vector as an array under ``vector``."""
    release = HatsRelease.open(collection / name)
    found = {}
    for pixel in release.pixels:
        table = pq.read_table(release.leaf(pixel), partitioning=None)
        vectors = tensor_values(table.column(name), missing=np.nan)
        for place, row in enumerate(table.drop_columns([name]).to_pylist()):
            found[row["object_id"]] = {
                key.removeprefix(f"{name}_"): value for key, value in row.items()
            } | {"vector": vectors[place]}
    return found


def expected_vector(sky, row, model):
    """The vector of one object, straight from its own arrays."""
    observations = {}
    if row in WITH_IMAGE:
        flux = model_tensor(sky["image"][row : row + 1])
        observations["tok_image_hsc"] = Images(
            flux_BCHW=flux,
            good_BCHW=torch.ones_like(flux).bool(),
            bands=tuple(HSC.image.bands.values()),
        )
        for scalar in HSC.scalars:
            values = sky["scalars"][scalar.name][row : row + 1]
            observations[scalar.token_key] = model_tensor(values)
    if row in WITH_SPECTRUM:
        flux = model_tensor(sky["flux"][row : row + 1])
        observations["tok_spectrum_desi"] = Spectra(
            flux_BL=flux,
            ivar_BL=model_tensor(sky["ivar"][row : row + 1]),
            good_BL=torch.ones_like(flux).bool(),
            wavelength_BL=model_tensor(sky["lambda"][row : row + 1]),
        )
    return model.embed(model.tokenize(observations)).numpy()[0]


def model_tensor(values):
    return torch.from_numpy(values.copy())


def test_every_row_gets_what_is_its_own(releases, sky, every_survey_model):
    record = run(
        releases["catalog"], survey=OBJECTS, sources=declared(releases), model=every_survey_model,
        workers=0, dtype="float32", batch_rows=4,
    )  # fmt: skip
    assert record.rows == ROWS
    rows = embedded_rows(releases["catalog"])
    model = load_model(every_survey_model)
    for row, object_id in enumerate(sky["id"].tolist()):
        found = rows[object_id]
        with_image, with_spectrum = row in WITH_IMAGE, row in WITH_SPECTRUM
        assert (found["hsc_id"] == str(7 * 10**16 + row)) == with_image
        assert (found["desi_id"] == str(object_id)) == with_spectrum
        keys = modalities_of(found["modalities"])
        assert ("tok_image_hsc" in keys) == with_image
        assert ("tok_spectrum_desi" in keys) == with_spectrum
        if not (with_image or with_spectrum):
            assert found["status"] == "failed"
            assert found["flags"] & Flag.NO_INPUT
            assert np.isnan(found["vector"]).all()
            continue
        assert found["status"] == ("ok" if with_image and with_spectrum else "partial")
        assert np.array_equal(found["vector"], expected_vector(sky, row, model))
        if with_image:
            assert found["hsc_arcsec"] == pytest.approx(
                0.2 * np.hypot(1, np.cos(np.radians(sky["dec"][row]))), rel=1e-3
            )


def test_bits_do_not_depend_on_batches_or_partitions(releases, sky, every_survey_model, factory):
    common = {"survey": OBJECTS, "model": every_survey_model, "workers": 0, "dtype": "float32"}
    run(releases["catalog"], sources=declared(releases), batch_rows=2, **common)
    table = pa.table({"object_id": sky["id"], "ra": sky["ra"], "dec": sky["dec"]})
    other = factory.write_collection(table, releases["catalog"].parent / "fine", order=8)
    run(other, sources=declared(releases), batch_rows=64, **common)
    ours, theirs = embedded_rows(releases["catalog"]), embedded_rows(other)
    assert ours.keys() == theirs.keys()
    for object_id, row in ours.items():
        for key, value in row.items():
            if key != "_healpix_29":
                assert np.array_equal(value, theirs[object_id][key], equal_nan=key == "vector")


def test_lsdb_reads_the_matches_as_columns(releases, every_survey_model):
    run(releases["catalog"], survey=OBJECTS, sources=declared(releases), model=every_survey_model,
        workers=0)  # fmt: skip
    frame = (
        lsdb.open_catalog(releases["catalog"])
        .load_extension("every_v1")
        .compute(progress_bar=False)
    )
    assert frame["every_v1_hsc_id"].notna().sum() == len(WITH_IMAGE)
    assert frame["every_v1_desi_arcsec"].notna().sum() == len(WITH_SPECTRUM)


def test_the_record_counts_what_was_found(releases, every_survey_model):
    record = run(releases["catalog"], survey=OBJECTS, sources=declared(releases),
                 model=every_survey_model, workers=0)  # fmt: skip
    matched = {
        name: sum(quantum.sources[name]["counts"]["matched"] for quantum in record.quanta)
        for name in ("hsc", "desi")
    }
    assert matched == {"hsc": len(WITH_IMAGE), "desi": len(WITH_SPECTRUM)}


def test_ids_join_where_both_sides_share_them(releases, every_survey_model):
    prepared = plan(releases["catalog"], survey=OBJECTS, sources=declared(releases),
                    model=every_survey_model)  # fmt: skip
    assert [spec.rule.by for spec in prepared.job.sources] == ["position", "id"]


def test_tokens_of_sources_and_their_labels(releases, sky, every_survey_model):
    run(releases["catalog"], survey=OBJECTS, sources=declared(releases), model=every_survey_model,
        product="tokens", workers=0)  # fmt: skip
    release = HatsRelease.open(releases["catalog"] / "every_tokens")
    table = pa.concat_tables(
        pq.read_table(release.leaf(pixel), partitioning=None) for pixel in release.pixels
    )
    names = set(table.column_names)
    assert {"tok_image_hsc", "tok_mag_g", "tok_spectrum_desi", "tok_z", "hsc_id"} <= names
    order = {int(i): row for row, i in enumerate(sky["id"])}
    rows = np.array([order[i] for i in table.column("object_id").to_pylist()])
    assert np.array_equal(table.column("tok_z").is_valid().to_numpy(), np.isin(rows, WITH_SPECTRUM))


def test_a_changed_source_is_refused_in_the_same_extension(releases, every_survey_model):
    choices = {"survey": OBJECTS, "model": every_survey_model, "workers": 0}
    first = run(releases["catalog"], sources=declared(releases), **choices)
    again = run(releases["catalog"], sources=declared(releases), **choices)
    assert again.skipped == len(first.quanta)
    with pytest.raises(OutputExistsError, match="sources"):
        run(releases["catalog"], sources=declared(releases, radius=2.0), **choices)
    for file in releases["desi"].rglob("*.hdf5"):
        with h5py.File(file, "r+") as opened:
            opened["spectrum_flux"][0] += 1
    with pytest.raises(OutputExistsError, match="other input data"):
        run(releases["catalog"], sources=declared(releases), **choices)


def test_two_sources_may_not_feed_one_modality(releases, every_survey_model):
    twice = declared_sources([f"hsc={releases['hsc']}"]) * 2
    with pytest.raises(ConfigurationError, match="tok_image_hsc, which source hsc feeds already"):
        plan(releases["catalog"], survey=OBJECTS, sources=twice, model=every_survey_model)


def test_a_model_without_the_codec_says_which(releases, model_folder):
    with pytest.raises(ConfigurationError, match="no codec for spectrum of source desi"):
        plan(
            releases["catalog"], survey=OBJECTS, model=model_folder,
            sources=declared_sources([f"desi={releases['desi']}"]),
        )  # fmt: skip


def test_rows_in_another_order_than_they_were_joined_are_not_published(
    releases, every_survey_model, monkeypatch
):
    def turned(*arguments, **options):
        keys = read_catalog_keys(*arguments, **options)
        own = np.r_[np.arange(keys.rows)[::-1], np.arange(keys.rows, len(keys.ids))]
        return replace(keys, ids=keys.ids[own], ra=keys.ra[own], dec=keys.dec[own])

    monkeypatch.setattr("skyvec.stage.joined.read_catalog_keys", turned)
    record = run(releases["catalog"], survey=OBJECTS, sources=declared(releases),
                 model=every_survey_model, workers=0)  # fmt: skip
    assert record.exit_code == 30
    assert all("not those that were joined" in problem for problem in record.problems)
    assert record.properties is None


@pytest.mark.parametrize("by", ["auto", "position"])
def test_a_broken_file_is_one_pixels_failure(releases, every_survey_model, by):
    broken = sorted(releases["desi"].rglob("*.hdf5"))[0]
    broken.write_bytes(broken.read_bytes()[:1000])
    specs = declared_sources([f"desi={releases['desi']}"])
    record = run(
        releases["catalog"], survey=OBJECTS, model=every_survey_model, workers=0,
        sources=[replace(spec, rule=replace(spec.rule, by=by)) for spec in specs],
    )  # fmt: skip
    assert record.exit_code == 30
    assert any(broken.name in problem for problem in record.problems)
    assert any(quantum.outcome == "done" for quantum in record.quanta)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[hsc]\n", "has no path"),
        ("[hsc]\npath = 'x'\nband = 'g'\n", "unknown key band"),
        ("[mine]\npath = 'x'\n", "no survey is called 'mine'"),
        ("[hsc]\npath = 'x'\njoin = 'magic'\n", "join is 'magic'"),
        ("[hsc]\npath = 'x'\nradius = -1\n", "radius is -1"),
        ("[hsc]\npath = 'x'\nradius = 'far'\n", "radius is 'far'"),
        ("[hsc]\npath = 'nowhere'\n", "no such folder"),
        ("[hsc]\npath = '.'\nwithout = ['no_such']\n", "no column no_such"),
        ("[hsc]\npath = '.'\nwithout = 'a_y'\n", "without is 'a_y'. Give a list"),
        ("[hsc]\npath = '.'\nformat = 'mmu-hdf5'\ncolumns = {a = 'b'}\n", "columns is not heeded"),
        ("hsc = 3\n", "'hsc' is not a table"),
        ("[hsc\n", "not TOML"),
    ],
)
def test_a_wrong_sources_file_is_one_line(tmp_path, text, words):
    file = tmp_path / "sources.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        declared_sources(file=file)


def test_wrong_pairs_are_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match="not NAME=PATH"):
        declared_sources(["hsc"])
    with pytest.raises(ConfigurationError, match="declared twice"):
        declared_sources([f"hsc={tmp_path}", f"hsc={tmp_path}"])
    with pytest.raises(ConfigurationError, match="no format is recognized"):
        declared_sources([f"hsc={tmp_path}"])


def test_withdrawn_objects_of_a_release_are_not_matched(releases, sky, every_survey_model):
    store = releases["desi"].parent / "store"
    gone = {str(sky["id"][WITH_SPECTRUM[0]]): "bad fibre"}
    first = make_release(releases["desi"], store=store, name="dr1", survey="desi")
    choices = {"survey": OBJECTS, "model": every_survey_model, "workers": 0}
    before = run(releases["catalog"], sources=declared_sources([f"desi={store}"]), **choices)
    withdraw(first, name="dr2", withdrawn=gone)
    after = run(releases["catalog"], sources=declared_sources([f"desi={store}"]), name="second",
                **choices)  # fmt: skip
    prepared = plan(releases["catalog"], sources=declared_sources([f"desi={store}"]),
                    survey=OBJECTS, model=every_survey_model, name="third")  # fmt: skip
    assert not [found for found in lint_plan(prepared) if found.severity == "error"]
    assert before.sources["desi"]["matched"] == len(WITH_SPECTRUM)
    assert after.sources["desi"]["matched"] == len(WITH_SPECTRUM) - 1
    assert after.sources["desi"]["quarantined"] == 1
    changed = [q.key for q, p in zip(after.quanta, before.quanta, strict=True)
               if q.sources["desi"]["counts"] != p.sources["desi"]["counts"]]  # fmt: skip
    difference = diff_releases(first, Release.open(store))
    assert len(changed) == 1
    assert difference.counts["withdrawn"] == 1


def test_a_working_copy_gives_the_same_bits(releases, every_survey_model):
    copy = releases["hsc"].parent / "copy"
    opened = open_folder(releases["hsc"], HSC, window=96)
    repack(opened.source, copy, pixels=opened.pixels, dtype="float32", window=96,
           provenance=opened.provenance)  # fmt: skip
    choices = {"survey": OBJECTS, "model": every_survey_model, "workers": 0, "dtype": "float32"}
    run(releases["catalog"], sources=declared_sources([f"hsc={releases['hsc']}"]), **choices)
    run(releases["catalog"], sources=declared_sources([f"hsc={copy}"]), name="copied", **choices)
    ours = embedded_rows(releases["catalog"])
    theirs = embedded_rows(releases["catalog"], "copied")
    for object_id, row in ours.items():
        for key in ("vector", "status", "flags", "hsc_id"):
            assert np.array_equal(row[key], theirs[object_id][key], equal_nan=key == "vector")


def test_a_working_copy_smaller_than_the_codecs_window_is_refused(releases, every_survey_model):
    copy = releases["hsc"].parent / "copy"
    opened = open_folder(releases["hsc"], HSC, window=64)
    repack(opened.source, copy, pixels=opened.pixels, dtype="float32", window=64,
           provenance=opened.provenance)  # fmt: skip
    with pytest.raises(ConfigurationError, match="have 64 pixels, the codec's window has 96"):
        plan(releases["catalog"], survey=OBJECTS, sources=declared_sources([f"hsc={copy}"]),
             model=every_survey_model)  # fmt: skip


def test_position_columns_are_those_that_the_catalog_declares(releases, sky, every_survey_model):
    index = compute_spatial_index(sky["ra"], sky["dec"])
    order = np.argsort(index)
    table = pa.table({"_healpix_29": index, "object_id": sky["id"], "RA": sky["ra"],
                      "DEC": sky["dec"]}).take(pa.array(order))  # fmt: skip
    place = releases["catalog"].parent / "capital"
    pixels = spatial_index_to_healpix(np.sort(index), 1)
    for pixel in np.unique(pixels):
        leaf = hats_paths.new_pixel_catalog_file(place, HealpixPixel(1, int(pixel)))
        pq.write_table(table.filter(pa.array(pixels == pixel)), str(leaf))
    finish_catalog(
        place, name="capital", ra_column="RA", dec_column="DEC", builder="tests", properties={},
        rows={HealpixPixel(1, int(p)): int((pixels == p).sum()) for p in np.unique(pixels)},
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()),
    )  # fmt: skip
    record = run(place, out=place.parent / "out", survey=OBJECTS, sources=declared(releases),
                 model=every_survey_model, workers=0)  # fmt: skip
    assert record.rows == ROWS
    assert record.sources["hsc"]["matched"] == len(WITH_IMAGE)
