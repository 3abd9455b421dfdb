"""The stage: rows are sacred, bad input is one line, nothing mixes."""

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage import pools
from skyvec.stage.driver import Patience
from skyvec.stage.plan import plan
from skyvec.stage.run import run
from skyvec_schemas.errors import (
    BandError,
    ConfigurationError,
    ContractError,
    MissingColumnError,
    OutputExistsError,
)
from skyvec_schemas.vectors import tensor_values

pytestmark = pytest.mark.filterwarnings("ignore:Right catalog does not have a margin")


def vectors_of(collection, name="small_v1"):
    """id -> (vector, status, flags) straight from the files."""
    release = HatsRelease.open(collection / name)
    found = {}
    for pixel in release.pixels:
        table = pq.read_table(release.leaf(pixel), partitioning=None)
        vectors = tensor_values(table.column(name), missing=np.nan)
        for i, row in enumerate(table.select(["object_id", f"{name}_status", f"{name}_flags"])
                                .to_pylist()):  # fmt: skip
            found[row["object_id"]] = (vectors[i], *list(row.values())[1:])
    return found


def test_lsdb_sees_every_row_once_in_order_with_its_own_id_type(embedded):
    before = lsdb.open_catalog(embedded).compute(progress_bar=False)
    after = lsdb.open_catalog(embedded).load_extension("small_v1").compute(progress_bar=False)
    assert after["object_id"].to_list() == before["object_id"].to_list()
    assert after["object_id"].dtype == before["object_id"].dtype
    assert after.index.equals(before.index)
    assert (after["small_v1_status"] == "ok").all()


def test_string_ids_come_out_as_strings(make_collection, model_folder):
    ids = pa.array([f"brick-{i:03d}" for i in range(12)])
    collection = make_collection(object_id=ids)
    run(collection, model=model_folder, workers=0)
    frame = lsdb.open_catalog(collection).load_extension("small_v1").compute(progress_bar=False)
    assert sorted(frame["object_id"]) == ids.to_pylist()


def test_vectors_do_not_depend_on_batches_or_partitions(make_collection, model_folder, factory):
    table = factory.survey_table(12)
    whole = make_collection(table)
    run(whole, model=model_folder, workers=0)
    shuffled = make_collection(table.take(pa.array([5, 3, 11, 0, 7])), name="part")
    run(shuffled, model=model_folder, workers=0, batch_rows=2)
    expected = vectors_of(whole)
    for object_id, (vector, *_) in vectors_of(shuffled).items():
        assert np.array_equal(vector, expected[object_id][0])


def test_a_second_run_finds_nothing_to_do(make_collection, model_folder):
    collection = make_collection()
    first = run(collection, model=model_folder, workers=0)
    second = run(collection, model=model_folder, workers=0)
    assert (first.skipped, second.skipped) == (0, 2)
    assert second.rows == first.rows == 12
    assert second.properties == first.properties


@pytest.mark.parametrize("harm", ["deleted", "torn", "shortened"])
def test_a_finished_file_that_was_harmed_is_made_again(make_collection, model_folder, harm):
    collection = make_collection()
    run(collection, model=model_folder, workers=0)
    expected = vectors_of(collection)
    release = HatsRelease.open(collection / "small_v1")
    leaf = release.leaf(release.pixels[0])
    if harm == "deleted":
        leaf.unlink()
    elif harm == "torn":
        leaf.write_bytes(leaf.read_bytes()[:-20])
    else:
        table = pq.read_table(leaf, partitioning=None)
        pq.write_table(table.slice(0, len(table) - 1), leaf)
    again = run(collection, model=model_folder, workers=0)
    assert (again.exit_code, again.skipped, again.rows) == (0, 1, 12)
    assert {k: v[0].tobytes() for k, v in vectors_of(collection).items()} == {
        k: v[0].tobytes() for k, v in expected.items()
    }


def test_another_model_is_refused_in_the_same_extension(
    make_collection, model_folder, other_model_folder
):
    collection = make_collection()
    run(collection, model=model_folder, name="vectors", workers=0)
    with pytest.raises(
        OutputExistsError,
        match=r"vectors: holds embedding of small, made otherwise: model digest .* --name",
    ):
        run(collection, model=other_model_folder, name="vectors", workers=0)


def test_changed_input_is_refused_in_the_same_extension(make_collection, model_folder):
    collection = make_collection()
    run(collection, model=model_folder, workers=0)
    release = HatsRelease.open(collection)
    leaf = release.leaf(release.pixels[0])
    table = pq.read_table(leaf, partitioning=None)
    pq.write_table(table.slice(0, len(table) - 1), leaf)
    with pytest.raises(OutputExistsError, match="made from other input data"):
        run(collection, model=model_folder, workers=0)


def test_a_folder_of_somebody_else_is_never_written_to(make_collection, model_folder):
    collection = make_collection()
    with pytest.raises(OutputExistsError, match=r"cat: exists and was not made by skyvec"):
        run(collection, model=model_folder, name="cat", workers=0)


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("image", "no column 'image'.*--image-column"),
        ("object_id", "no column 'object_id'.*--id-column"),
        ("FLUX_W4", r"no column 'FLUX_W4' \(nearest: 'FLUX_W3'\).*--without FLUX_W4"),
    ],
)
def test_a_missing_column_is_named_with_its_remedy(
    make_collection, model_folder, factory, dropped, message
):
    collection = make_collection(factory.survey_table().drop_columns([dropped]))
    with pytest.raises(MissingColumnError, match=message):
        run(collection, model=model_folder, workers=0)
    assert not (collection / "small_v1").exists()


def test_an_image_column_of_another_kind_is_refused(make_collection, model_folder):
    collection = make_collection(image=pa.array(np.zeros(12)))
    with pytest.raises(ContractError, match=r"column 'image' is double, not struct<band, flux"):
        plan(collection, model=model_folder)


def test_a_catalog_with_the_bands_of_another_survey_is_refused(
    make_collection, model_folder, factory
):
    bands = ("hsc-g", "hsc-r", "hsc-i", "hsc-z")
    collection = make_collection(cutouts=[factory.cutout(i, bands=bands) for i in range(12)])
    with pytest.raises(BandError, match=r"bands hsc-g, .* where the survey has des-g, .*--survey"):
        run(collection, model=model_folder, workers=0)


def test_the_order_and_spelling_of_bands_do_not_matter(make_collection, model_folder, factory):
    plain = [factory.cutout(i) for i in range(12)]
    turned = [
        c | {"band": ["DES-Z", "DES-I", "DES-R", "DES-G"], "flux": c["flux"][::-1]} for c in plain
    ]
    first, second = make_collection(cutouts=plain), make_collection(cutouts=turned, name="turned")
    run(first, model=model_folder, workers=0)
    run(second, model=model_folder, workers=0)
    expected = vectors_of(first)
    assert all(np.array_equal(v, expected[k][0]) for k, (v, *_) in vectors_of(second).items())


def test_duplicate_ids_fail_their_pixel_and_publish_nothing(make_collection, model_folder):
    ids = pa.array([*range(10), 11, 11], pa.int64())
    collection = make_collection(object_id=ids)
    record = run(collection, model=model_folder, workers=0)
    assert record.exit_code == 30
    assert record.properties is None
    assert len(record.problems) == 1
    assert "1 ids in column 'object_id' occur more than once (11;" in record.problems[0]
    with pytest.raises(FileNotFoundError):
        lsdb.open_catalog(collection).load_extension("small_v1")


def test_a_corrupt_leaf_fails_alone_and_the_run_continues_after_repair(
    make_collection, model_folder
):
    collection = make_collection()
    release = HatsRelease.open(collection)
    leaf = release.leaf(release.pixels[1])
    healthy = leaf.read_bytes()
    leaf.write_bytes(healthy[: len(healthy) // 2])
    record = run(collection, model=model_folder, workers=0)
    assert [q.outcome for q in record.quanta] == ["done", "data"]
    assert "not a complete Parquet file" in record.problems[0]
    leaf.write_bytes(healthy)
    again = run(collection, model=model_folder, workers=0)
    assert (again.exit_code, again.skipped, again.rows) == (0, 1, 12)


def test_a_failure_of_the_machine_is_reported_and_the_next_run_continues(
    make_collection, model_folder, monkeypatch
):
    collection = make_collection()
    real, calls = pools.run_quantum, []
    at_once = Patience(attempts=2, first_pause=0)

    def full_disk_at_first(job, order, pixel, **how):
        calls.append(pixel)
        if len(calls) <= 2:
            raise OSError("No space left on device")
        return real(job, order, pixel, **how)

    monkeypatch.setattr(pools, "run_quantum", full_disk_at_first)
    record = run(collection, model=model_folder, workers=0, patience=at_once)
    assert (record.exit_code, record.properties) == (20, None)
    assert "OSError: No space left on device (tried 2 times; run" in record.problems[0]
    again = run(collection, model=model_folder, workers=0)
    assert (again.exit_code, again.skipped, again.rows) == (0, 1, 12)


def test_bad_objects_are_null_with_a_reason_and_touch_no_other_row(
    make_collection, model_folder, factory
):
    good = [factory.cutout(i) for i in range(12)]
    ragged = factory.cutout(3)
    ragged["flux"] = [plane.tolist() for plane in ragged["flux"]]
    ragged["flux"][1] = ragged["flux"][1][:50]
    bad = {
        1: (factory.cutout(1, bands=("des-g", "des-r", "des-i", "hsc-y")), "image_wrong_bands"),
        2: (factory.cutout(2, flux=np.full((4, 96, 96), np.nan)), "image_unusable"),
        3: (ragged, "image_malformed"),
    }
    table = factory.survey_table(cutouts=[bad.get(i, (g,))[0] for i, g in enumerate(good)])
    ids = table.column("object_id").to_pylist()
    clean, poisoned = make_collection(cutouts=good), make_collection(table, name="poisoned")
    run(clean, model=model_folder, workers=0)
    record = run(poisoned, model=model_folder, workers=0, max_bad=0.5)
    assert (record.exit_code, record.failed_rows, record.rows) == (0, 3, 12)
    assert {reason for _, reason in bad.values()} <= set(record.flags)
    expected = vectors_of(clean)
    for object_id, (vector, status, _) in vectors_of(poisoned).items():
        if ids.index(object_id) in bad:
            assert status == "failed"
            assert np.isnan(vector).all()
        else:
            assert np.array_equal(vector, expected[object_id][0])


def test_too_many_bad_objects_publish_nothing_and_say_which_option_allows_them(
    make_collection, model_folder, factory
):
    bad = factory.cutout(1, bands=("des-g", "des-r", "des-i", "hsc-y"))
    collection = make_collection(cutouts=[bad] * 2 + [factory.cutout(i) for i in range(10)])
    record = run(collection, model=model_folder, workers=0, max_bad=0.1)
    assert (record.exit_code, record.properties) == (30, None)
    assert record.problems == ("16.7% of the rows are bad, 10.0% may be (--max-bad)",)
    again = run(collection, model=model_folder, workers=0, max_bad=0.2, strict=True)
    assert (again.exit_code, again.skipped, again.quarantined) == (10, 2, 2)
    assert again.properties.is_file()


def test_a_few_nan_pixels_are_masked_and_flagged(make_collection, model_folder, factory):
    spotted = factory.cutout(0)
    spotted["flux"][:, 10:13, 20] = np.nan
    collection = make_collection(cutouts=[spotted, *(factory.cutout(i) for i in range(1, 12))])
    record = run(collection, model=model_folder, workers=0)
    assert record.flags == {"image_bad_pixels": 1}
    assert record.failed_rows == record.partial_rows == 0


def test_a_missing_cutout_or_scalar_leaves_a_partial_row(make_collection, model_folder, factory):
    flux = pa.array([None, float("nan"), *[1.0] * 10], pa.float32())
    collection = make_collection(
        cutouts=[
            factory.cutout(0),
            factory.cutout(1),
            None,
            *(factory.cutout(i) for i in range(9)),
        ],
        FLUX_G=flux,
    )
    record = run(collection, model=model_folder, workers=0)
    assert record.flags == {"scalar_missing": 2, "image_missing": 1}
    assert (record.partial_rows, record.failed_rows) == (3, 0)


def test_small_cutouts_are_padded_with_a_mask(make_collection, model_folder, factory):
    collection = make_collection(cutouts=[factory.cutout(i, size=23) for i in range(12)])
    record = run(collection, model=model_folder, workers=0)
    assert record.flags == {"image_padded": 12}
    frame = lsdb.open_catalog(collection).load_extension("small_v1").compute(progress_bar=False)
    assert set(frame["small_v1_tokens"]) == {36 + 12}


def test_an_empty_partition_leaves_the_rest_whole(make_collection, model_folder):
    collection = make_collection()
    release = HatsRelease.open(collection)
    leaf = release.leaf(release.pixels[0])
    table = pq.read_table(leaf, partitioning=None)
    pq.write_table(table.slice(0, 0), leaf)
    record = run(collection, model=model_folder, workers=0)
    assert [q.outcome for q in record.quanta] == ["empty", "done"]
    assert record.exit_code == 0
    frame = lsdb.open_catalog(collection).load_extension("small_v1").compute(progress_bar=False)
    assert len(frame) == 12 - len(table)
    assert frame["small_v1"].notna().all()


def test_a_catalog_without_a_collection_needs_a_place_for_the_extension(
    make_collection, model_folder, tmp_path
):
    catalog = make_collection() / "cat"
    with pytest.raises(ConfigurationError, match=r"cannot hold an extension.*--out"):
        run(catalog, model=model_folder, workers=0)
    record = run(catalog, model=model_folder, workers=0, out=tmp_path / "elsewhere")
    frame = lsdb.open_catalog(catalog).load_extension(record.properties)
    assert len(frame.compute(progress_bar=False)) == 12


def test_what_is_no_catalog_is_said_to_be_none(tmp_path, model_folder):
    with pytest.raises(ConfigurationError, match="nowhere: there is no such folder"):
        run(tmp_path / "nowhere", model=model_folder)
    with pytest.raises(ConfigurationError, match="not a HATS catalog"):
        run(tmp_path, model=model_folder)


def test_tokens_can_be_stored_and_name_their_labels(make_collection, model_folder):
    collection = make_collection()
    record = run(collection, model=model_folder, product="tokens", workers=0)
    frame = lsdb.open_catalog(collection).load_extension(record.name).compute(progress_bar=False)
    assert record.name == "small_tokens"
    assert frame["tok_image"].iloc[0].shape == (576,)
    assert frame["tok_z"].between(0, 1023).all()


def test_planning_writes_nothing(make_collection, model_folder):
    collection = make_collection()
    ready = plan(collection, model=model_folder)
    assert (ready.rows, len(ready.todo), len(ready.done)) == (12, 2, 0)
    assert not (collection / "small_v1").exists()
