"""`skyvec verify`: what is right passes, and every kind of damage is caught and named."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hats.pixel_math.healpix_pixel import HealpixPixel
from typer.testing import CliRunner

from skyvec.commands.verify import verify as verify_command
from skyvec.extensions.checks.recompute import choose_rows
from skyvec.extensions.checks.report import LINES, Findings
from skyvec.extensions.verify import verify
from skyvec.releases.mmu.writer import write_mmu_release
from skyvec.sources import declared_sources
from skyvec.stage.leaf_writer import file_digest
from skyvec.stage.monitor import Monitor
from skyvec.stage.output import MANIFEST, RUN_FILE, Output
from skyvec.stage.run import run
from skyvec.stage.selection import Selection
from skyvec.stage.status import read_status
from skyvec.surveys import chosen_survey
from skyvec_schemas.errors import ConfigurationError, ContractError, WeightsError
from skyvec_schemas.survey_columns import DESI, OBJECTS
from skyvec_schemas.vectors import tensor_array, tensor_values

NAME = "small_v1"


@pytest.fixture
def sky(embedded, tmp_path):
    """A copy of a collection with a published extension, to be harmed."""
    return shutil.copytree(embedded, tmp_path / "sky")


def leaves(sky):
    return sorted((sky / NAME / "dataset").rglob("Npix=*.parquet"))


def rewrite(leaf, change, *, metadata=None):
    """Write a leaf anew with changed columns or rows: valid Parquet, own footer."""
    table = pq.read_table(leaf, partitioning=None)
    changed = change(table)
    if metadata is not None:
        changed = changed.replace_schema_metadata(metadata)
    pq.write_table(changed, leaf)


def sign(sky):
    """Make records agree with the harmed files: the harm came before the digest was taken."""
    output = Output(sky / NAME)
    signed = []
    for record in output.records().values():
        leaf = output.leaf(HealpixPixel(*record.key))
        signed.append(replace(record, digest=file_digest(leaf), bytes=leaf.stat().st_size))
    output.gather(signed)


def edit(place, old, new):
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new, 1))


def change_vectors(change):
    def changed(table):
        values = tensor_values(table.column(NAME), missing=0).copy()
        column = tensor_array(change(values))
        return table.set_column(table.column_names.index(NAME), table.schema.field(NAME), column)

    return changed


def swap(values):
    values[[3, 4]] = values[[4, 3]]
    return values


def zero(values):
    values[3] = 0
    return values


def neighbours(values):
    values[3] = values[4]
    return values


def infinite(values):
    values[3, 5] = np.inf
    return values


def one_and_the_same(values):
    values[:] = values[0]
    return values


def seed_that_chooses(leaf, row):
    """Of a sample of one row out of two leaves of 30."""
    wanted = [[row] if place == leaf else [] for place in range(2)]
    return next(s for s in range(10_000) if choose_rows([30, 30], 1, seed=s) == wanted)


def outcomes(report):
    return {check.name: check.outcome for check in report.checks}


def failed(report):
    return {check.name for check in report.checks if check.passed is False}


def problems(report, name):
    return "\n".join(report.check(name).problems)


# ---- what is right


def test_an_intact_extension_passes_every_check(sky):
    report = verify(sky)
    assert report.ok
    assert (report.exit_code, report.stale_pixels) == (0, 0)
    assert set(outcomes(report).values()) == {"passed"}
    assert report.check("recompute").summary == "8 rows in 2 pixels, seed 0"


@pytest.mark.parametrize("way", ["collection", "folder", "properties"])
def test_it_is_found_by_collection_by_folder_and_by_properties(sky, way):
    place = {
        "collection": sky,
        "folder": sky / NAME,
        "properties": sky / f"{NAME}.properties",
    }[way]
    report = verify(place, sample=0)
    assert (report.extension, report.ok) == (NAME, True)


def test_failed_and_partial_rows_are_right_as_they_are(make_collection, model_folder, factory):
    cutouts = [factory.cutout(i) for i in range(12)]
    cutouts[1] = factory.cutout(1, flux=np.full((4, 96, 96), np.nan))
    cutouts[2] = None
    collection = make_collection(cutouts=cutouts)
    run(collection, model=model_folder, workers=0)
    report = verify(collection, sample=12)
    assert set(outcomes(report).values()) == {"passed"}
    assert report.check("recompute").summary.startswith("12 rows")


def test_tokens_are_verified_too(make_collection, model_folder):
    collection = make_collection()
    run(collection, model=model_folder, product="tokens", workers=0)
    report = verify(collection)
    assert report.ok
    assert outcomes(report)["recompute"] == "passed"
    assert outcomes(report)["vectors"] == "not done"


def test_vectors_made_of_stored_tokens_are_verified_against_these(make_collection, model_folder):
    collection = make_collection()
    tokens = run(collection, model=model_folder, product="tokens", workers=0).name
    run(collection, model=model_folder, tokens=tokens, name="made", workers=0)
    report = verify(collection, "made", sample=2)
    assert set(outcomes(report).values()) == {"passed"}
    assert not report.check("rows").notes
    shutil.rmtree(collection / tokens)
    alone = verify(collection, "made", sample=2)
    assert outcomes(alone)["rows"] == "passed"
    assert outcomes(alone)["recompute"] == "not done"
    assert "the stored tokens are not to be had" in alone.check("recompute").notes[0]


@pytest.fixture
def joined(tmp_path, factory, every_survey_model):
    """Eight objects with spectra in a source, embedded as ``spectra``."""
    rng = np.random.default_rng(3)
    ids, ra, dec = np.arange(8) + 100, rng.uniform(40, 41, 8), rng.uniform(-1, 1, 8)
    table = pa.table({"object_id": ids, "ra": ra, "dec": dec})
    collection = factory.write_collection(table, tmp_path / "sky")
    part = {
        "object_id": ids, "ra": ra, "dec": dec,
        "spectrum_flux": rng.normal(3, 1, (8, 600)).astype(np.float32),
        "spectrum_ivar": np.ones((8, 600), np.float32),
        "spectrum_lambda": np.tile(np.linspace(3600, 9824, 600, dtype=np.float32), (8, 1)),
        "spectrum_mask": np.zeros((8, 600), bool),
        "Z": np.zeros(8, np.float32),
    }  # fmt: skip
    write_mmu_release(tmp_path / "desi", DESI, [part])
    sources = declared_sources([f"desi={tmp_path / 'desi'}"])
    run(
        collection, model=every_survey_model, survey=OBJECTS, sources=sources, name="spectra",
        workers=0,
    )  # fmt: skip
    return collection


def test_rows_joined_with_sources_are_made_anew_from_them(joined, tmp_path):
    report = verify(joined, sample=3)
    assert set(outcomes(report).values()) == {"passed"}
    assert report.check("recompute").summary.startswith("3 rows")
    leaf = next((joined / "spectra" / "dataset").rglob("Npix=*.parquet"))

    def others(table):
        matched = table.column("spectra_desi_id").take(pa.array([1, 0, *range(2, 8)]))
        place = table.column_names.index("spectra_desi_id")
        return table.set_column(place, table.schema.field(place), matched)

    rewrite(leaf, others)
    assert "embedded again: spectra_desi_id" in problems(verify(joined, sample=8), "recompute")
    shutil.rmtree(tmp_path / "desi")
    gone = verify(joined, sample=3)
    assert (gone.stale_pixels, outcomes(gone)["recompute"]) == (1, "not done")


def test_an_unfinished_run_is_verified_as_far_as_it_is(make_collection, model_folder):
    collection = make_collection()
    second = sorted((collection / "cat" / "dataset").rglob("Npix=*.parquet"))[1]
    second.write_bytes(second.read_bytes()[:50])
    record = run(collection, model=model_folder, workers=0)
    assert record.properties is None
    report = verify(collection)
    assert report.ok
    assert "not published" in report.check("properties").notes[0]
    assert "is not finished" in report.check("files").notes[0]
    assert report.check("recompute").summary == "6 rows in 1 pixels, seed 0"


class StopsAfter(Monitor):
    """Ctrl-C after so many pixels."""

    def __init__(self, pixels):
        self.left = pixels

    def workers(self, _count):
        self._stop_at(0)

    def pixel(self, _record):
        self.left -= 1
        self._stop_at(0)

    def _stop_at(self, left):
        if self.left == left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_was_stopped_is_right_as_far_as_it_goes(
    make_collection, model_folder, factory, monkeypatch, killed, more
):
    ra = np.repeat([10.0, 100.0, 190.0], 6) + np.linspace(1, 19, 18)
    collection = make_collection(factory.survey_table(18, ra=pa.array(ra)))
    embed = partial(run, collection, model=model_folder, workers=0)
    assert embed(selection=Selection(limit=1)).rows == 6
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr("skyvec.stage.run._settle", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            embed(monitor=StopsAfter(more))
    assert (collection / NAME / MANIFEST).exists() is not killed
    done = 6 + 6 * more
    report = verify(collection)
    assert (report.ok, report.exit_code) == (True, 20)
    assert report.unfinished == (
        f"{1 + more} of 3 HEALPix pixels with {done} rows are done; readers find the 6 rows that "
        "were published"
    )
    lines = read_status(collection).lines
    assert "published with 6 rows before" in lines["state"]
    assert killed or lines["rows"].startswith(f"{done} of 18: ")
    properties = collection / NAME / "hats.properties"
    edit(properties, "hats_nrows=6", "hats_nrows=9")
    assert "hats_nrows is 9, the files hold 6 rows" in problems(verify(collection), "properties")
    edit(properties, "hats_nrows=9", "hats_nrows=6")
    assert embed().exit_code == 0
    assert verify(collection).exit_code == 0


def test_a_narrower_run_leaves_a_whole_extension_whole(make_collection, model_folder):
    collection = make_collection()
    embed = partial(run, collection, model=model_folder, workers=0)
    assert embed().rows == 12
    part = embed(selection=Selection(limit=1))
    assert (part.exit_code, part.rows, part.skipped) == (0, 6, 1)
    lines = read_status(collection).lines
    assert (lines["state"], lines["rows"].split(":")[0]) == ("complete", "12")
    assert lines["last run"] == "1 HEALPix pixels: at least 1 rows"
    assert verify(collection).exit_code == 0


def test_a_pixel_that_failed_is_not_forgotten_by_a_choice_without_it(make_collection, model_folder):
    collection = make_collection()
    embed = partial(run, collection, model=model_folder, workers=0)
    second = sorted((collection / "cat" / "dataset").rglob("Npix=*.parquet"))[1]
    second.write_bytes(second.read_bytes()[:50])
    assert embed().exit_code == 30
    assert embed(selection=Selection(limit=1)).exit_code == 0
    report = verify(collection)
    assert (report.ok, report.exit_code) == (True, 20)
    assert "1 of 2 HEALPix pixels with 6 rows are done" in report.unfinished
    assert "is not finished" in report.check("files").notes[0]


def test_a_lost_leaf_is_said_once_and_its_remedy_is_no_deletion(sky):
    leaves(sky)[0].unlink()
    report = verify(sky, sample=0)
    assert "properties" not in failed(report)
    (line,) = report.check("files").problems
    assert line.endswith("is missing. Run the same `skyvec embed` again.")


def test_other_column_names_are_found_in_the_record(make_collection, model_folder, factory):
    table = factory.survey_table().rename_columns({"object_id": "brick", "image": "stamp"})
    survey = chosen_survey(
        "legacysurvey", id_column="brick", image_column="stamp", without="FLUX_W4,EBV"
    )
    collection = make_collection(table)
    run(collection, model=model_folder, survey=survey, workers=0)
    assert set(outcomes(verify(collection, sample=2)).values()) == {"passed"}


def test_a_catalog_that_moved_is_named_by_source(make_collection, model_folder, tmp_path):
    collection = make_collection()
    run(collection, model=model_folder, out=tmp_path / "out", workers=0)
    moved = collection.rename(tmp_path / "moved")
    lost = verify(tmp_path / "out")
    assert lost.ok
    assert outcomes(lost)["rows"] == outcomes(lost)["recompute"] == "not done"
    assert "--source" in lost.check("rows").notes[0]
    found = verify(tmp_path / "out", source=moved, sample=1)
    assert outcomes(found)["rows"] == outcomes(found)["recompute"] == "passed"


def test_a_changed_input_is_told_from_corruption(sky):
    leaf = sorted((sky / "cat" / "dataset").rglob("Npix=*.parquet"))[0]
    rewrite(leaf, lambda table: table.slice(0, len(table) - 1))
    report = verify(sky, sample=2)
    assert report.ok
    assert (report.stale_pixels, report.exit_code) == (1, 20)
    note = report.check("rows").notes[0]
    assert str(leaf) in note
    assert "changed since it was embedded; run `skyvec embed` again" in note
    assert report.check("recompute").summary == "2 rows in 1 pixels, seed 0"


def test_a_model_that_is_gone_leaves_recomputing_undone(sky):
    edit(sky / NAME / "skyvec" / "job.json", '"model": "', '"model": "/nowhere')
    report = verify(sky)
    assert report.ok
    assert outcomes(report)["recompute"] == "not done"
    assert "model small (" in report.check("recompute").notes[0]
    assert "--model" in report.check("recompute").notes[0]


def test_a_model_may_be_named_and_must_be_the_same(sky, model_folder, other_model_folder):
    edit(sky / NAME / "skyvec" / "job.json", '"model": "', '"model": "/nowhere')
    assert outcomes(verify(sky, model=str(model_folder), sample=1))["recompute"] == "passed"
    with pytest.raises(WeightsError, match="is not the model of the extension"):
        verify(sky, model=str(other_model_folder))


def test_what_was_not_recorded_is_said_and_not_passed_over(sky):
    output = Output(sky / NAME)
    output.gather([replace(record, digest="") for record in output.records().values()])
    report = verify(sky, sample=0)
    assert report.ok
    assert "digests of 2 of 2 files were not recorded" in report.check("files").notes[0]
    assert outcomes(report)["recompute"] == "not done"


# ---- files


def test_a_flipped_byte_in_a_vector_page_is_caught(sky):
    leaf = leaves(sky)[1]
    table = pq.read_table(leaf, partitioning=None)
    page = tensor_values(table.column(NAME), missing=0)[7].tobytes()
    content = bytearray(leaf.read_bytes())
    place = content.find(page)
    assert place > 0
    content[place + 2] ^= 1
    leaf.write_bytes(bytes(content))
    report = verify(sky, sample=0)
    assert failed(report) == {"files"}
    assert f"{leaf.relative_to(sky)}: SHA-256 is" in problems(report, "files")
    assert "Delete this file and run the same `skyvec embed` again" in problems(report, "files")
    sign(sky)
    again = verify(sky, sample=1, seed=seed_that_chooses(1, 7))
    assert failed(again) == {"recompute"}
    assert f"{leaf.relative_to(sky)}: row 7 (id" in problems(again, "recompute")
    assert f"embedded again: {NAME}." in problems(again, "recompute")


@pytest.mark.parametrize("harm", ["truncated", "missing", "empty"])
def test_a_leaf_that_is_not_whole_is_caught(sky, harm):
    leaf = leaves(sky)[0]
    if harm == "missing":
        leaf.unlink()
    else:
        leaf.write_bytes(leaf.read_bytes()[:-30] if harm == "truncated" else b"")
    report = verify(sky, sample=1)
    assert "files" in failed(report)
    what = "is missing" if harm == "missing" else "cannot be read"
    assert f"{leaf.relative_to(sky)}: {what}" in problems(report, "files")
    assert report.check("rows").summary.startswith("30 rows")


@pytest.mark.parametrize("name", ["Npix=7.parquet", "notes.txt", ".Npix=25.parquet.tmp"])
def test_an_extra_file_is_caught(sky, name):
    extra = leaves(sky)[0].with_name(name)
    shutil.copy(leaves(sky)[0], extra)
    report = verify(sky, sample=0)
    assert failed(report) == {"files"}
    assert f"{name}: belongs to no pixel that was embedded" in problems(report, "files")


def test_a_leaf_of_another_pixel_is_caught(sky):
    first, second = leaves(sky)
    shutil.copy(first, second)
    sign(sky)
    report = verify(sky, sample=2)
    assert "30 rows do not lie in the HEALPix pixel of their file" in problems(report, "rows")
    assert "differs from the input in 30 rows (the first is row 0" in problems(report, "rows")
    assert "rows" in failed(report)


def test_a_leaf_of_another_model_is_caught(sky, other_model_folder, tmp_path):
    run(sky, model=other_model_folder, name=NAME, out=tmp_path / "other", workers=0)
    leaf = leaves(sky)[0]
    shutil.copy(tmp_path / "other" / leaf.relative_to(sky), leaf)
    sign(sky)
    report = verify(sky, sample=2)  # one row of each pixel
    assert failed(report) == {"provenance", "recompute"}
    assert f"{leaf.relative_to(sky)}: fingerprint" in problems(report, "provenance")
    assert "another model or other settings" in problems(report, "provenance")


def test_a_partition_list_of_others_is_caught(sky):
    edit(sky / NAME / "partition_info.csv", "1,25", "1,26")
    report = verify(sky, sample=0)
    assert "does not list Norder=1 Npix=25" in problems(report, "files")
    assert "lists, against the records, Norder=1 Npix=26" in problems(report, "files")


# ---- rows


def test_rows_swapped_within_a_leaf_are_caught(sky):
    order = pa.array([1, 0, *range(2, 30)])
    rewrite(leaves(sky)[0], lambda table: table.take(order))
    assert {"files", "rows"} <= failed(verify(sky, sample=0))
    sign(sky)
    report = verify(sky, sample=0)
    assert failed(report) == {"rows"}
    assert "column 'object_id' differs from the input in 2 rows" in problems(report, "rows")
    assert "Npix=17.parquet" in problems(report, "rows")


def test_rows_permuted_together_with_their_ids_are_caught(sky):
    order = pa.array(np.random.default_rng(1).permutation(30))
    rewrite(leaves(sky)[1], lambda table: table.take(order))
    sign(sky)
    report = verify(sky, sample=0)
    assert failed(report) == {"rows"}
    assert "Npix=25.parquet: column '_healpix_29' differs" in problems(report, "rows")


def test_rows_with_the_ids_of_others_are_caught(sky):
    def changed(table):
        ids = table.column("object_id").take(pa.array([1, 0, *range(2, 30)]))
        return table.set_column(1, table.schema.field("object_id"), ids)

    rewrite(leaves(sky)[0], changed)
    sign(sky)
    report = verify(sky, sample=0)
    assert failed(report) == {"rows"}
    assert "column 'object_id' differs from the input in 2 rows (the first is row 0:" in problems(
        report, "rows"
    )


def test_a_lost_row_is_caught(sky):
    rewrite(leaves(sky)[0], lambda table: table.slice(1))
    sign(sky)
    report = verify(sky, sample=0)
    assert "holds 29 rows, 30 were written" in problems(report, "files")
    assert "29 rows written of 30" in problems(report, "rows")
    assert "hats_nrows is 60, the files hold 59 rows" in problems(report, "properties")


def test_ids_cast_to_text_are_caught(sky):
    def cast(table):
        return table.set_column(1, "object_id", table.column("object_id").cast(pa.string()))

    rewrite(leaves(sky)[0], cast)
    sign(sky)
    report = verify(sky, sample=0)
    assert "column 'object_id' is string, not int64" in problems(report, "files")
    for leaf in leaves(sky)[1:]:
        rewrite(leaf, cast)
    common = sky / NAME / "dataset" / "_common_metadata"
    pq.write_metadata(pq.read_schema(leaves(sky)[0]), common)
    sign(sky)
    everywhere = verify(sky, sample=0)
    assert "column 'object_id' is string, int64 in the input" in problems(everywhere, "rows")


def test_a_moved_position_is_caught(sky):
    def moved(table):
        ra = table.column("ra").to_numpy().copy()
        ra[5] = np.nextafter(ra[5], 360)
        return table.set_column(2, table.schema.field("ra"), pa.array(ra))

    rewrite(leaves(sky)[0], moved)
    sign(sky)
    report = verify(sky, sample=0)
    assert "column 'ra' differs from the input in 1 rows (the first is row 5" in problems(
        report, "rows"
    )


# ---- vectors


@pytest.mark.parametrize(
    ("harm", "check", "message"),
    [
        (zero, "vectors", "1 vectors are constant (row 3)"),
        (infinite, "vectors", "1 vectors have a value that is not finite (row 3)"),
        (one_and_the_same, "vectors", "all 30 vectors are one and the same"),
        (neighbours, "vectors", "1 rows have exactly the vector of another row although their"),
        (swap, "recompute", "row 3 (id"),
    ],
)
def test_a_wrong_vector_is_caught(sky, harm, check, message):
    rewrite(leaves(sky)[0], change_vectors(harm))
    sign(sky)
    sample = 1 if check == "recompute" else 0
    report = verify(sky, sample=sample, seed=seed_that_chooses(0, 3))
    assert check in failed(report)
    assert message in problems(report, check)


def test_a_null_vector_with_a_good_status_is_caught(sky):
    def changed(table):
        values = tensor_values(table.column(NAME), missing=0)
        absent = np.arange(len(table)) == 3
        column = tensor_array(values, absent=absent)
        return table.set_column(table.column_names.index(NAME), table.schema.field(NAME), column)

    rewrite(leaves(sky)[0], changed)
    sign(sky)
    report = verify(sky, sample=0)
    assert "1 vectors do not match their status (row 3)" in problems(report, "vectors")
    assert "failed rows: 1 in the file, 0 in its record" in problems(report, "vectors")


def test_objects_that_are_there_twice_are_no_corruption(make_collection, model_folder, factory):
    table = factory.survey_table(40)
    # Rows 0, 1 and 2 are one and the same object under three ids.
    inputs = [n for n in table.column_names if n not in {"object_id", "ra", "dec"}]
    order = pa.array([0, 0, 0, *range(3, 40)])
    for name in inputs:
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), table.column(name).take(order))
    collection = make_collection(table)
    run(collection, model=model_folder, workers=0)
    report = verify(collection, sample=0)
    assert outcomes(report)["vectors"] == "passed"


# ---- what it says of itself


def test_a_wrong_row_count_is_caught(sky):
    edit(sky / NAME / "hats.properties", "hats_nrows=60", "hats_nrows=61")
    report = verify(sky, sample=0)
    assert failed(report) == {"properties"}
    assert "hats_nrows is 61, the files hold 60 rows" in problems(report, "properties")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"rows": 60', '"rows": 59', "rows is 59, the records of its pixels have 60"),
        ('"precision": "float32"', '"precision": "bfloat16"', "differs in precision"),
        ('"complete": true', '"complete": false', "complete is False"),
        ("{", "", "cannot be read"),
    ],
)
def test_a_tampered_manifest_is_caught(sky, old, new, message):
    edit(sky / NAME / MANIFEST, old, new)
    report = verify(sky, sample=0)
    assert failed(report) == {"provenance"}
    assert f"{NAME}/skyvec/manifest.json: {message}" in problems(report, "provenance")


def test_a_run_file_of_another_model_is_caught(sky):
    place = sky / NAME / RUN_FILE
    told = json.loads(place.read_text())
    edit(place, told["model_digest"], "0" * 64)
    report = verify(sky, sample=0)
    assert "its fingerprint is not that of its own facts" in problems(report, "provenance")
    assert "Npix=17.parquet: fingerprint" in problems(report, "provenance")


def test_a_missing_or_torn_run_file_is_one_clear_error(sky):
    place = sky / NAME / RUN_FILE
    place.write_text(place.read_text()[:40])
    with pytest.raises(ContractError, match=r"cannot be read .* nothing can be proved"):
        verify(sky)
    place.unlink()
    with pytest.raises(ContractError, match=r"run\.json is missing"):
        verify(sky)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            f"{NAME}.properties",
            f"hats_assn_join_table_url={NAME}",
            "hats_assn_join_table_url=../elsewhere",
            "its data are said to lie in '../elsewhere'",
        ),
        (
            f"{NAME}.properties",
            "hats_primary_table_url=sky",
            "hats_primary_table_url=../../other",
            "its primary catalog is said to be '../../other'",
        ),
        (
            "collection.properties",
            f"{NAME} {NAME}.properties",
            f"{NAME} ../{NAME}.properties",
            f"lists '{NAME}' as '../{NAME}.properties'",
        ),
        (
            "collection.properties",
            "hats_primary_table_url=cat",
            "hats_primary_table_url=../sky/cat",
            "leads out of the collection: '../sky/cat'",
        ),
        ("collection.properties", f"all_extensions={NAME}", "all=x", "does not list"),
        (
            f"{NAME}.properties",
            "hats_col_assn_join=object_id",
            "hats_col_assn_join=id",
            "no column",
        ),
        (
            f"{NAME}.properties",
            "hats_col_assn_primary=object_id",
            "hats_col_assn_primary=TARGET",
            "joins to column 'TARGET'",
        ),
        (f"{NAME}/hats.properties", "_tokens", "_odd", f"has no column {NAME}_odd"),
        (f"{NAME}/properties", "hats_col_ra=ra", "hats_col_ra=dec", "differs from hats.properties"),
    ],
)
def test_tampered_properties_are_caught(sky, file, old, new, message):
    edit(sky / file, old, new)
    report = verify(sky, sample=0)
    assert "properties" in failed(report)
    assert message in problems(report, "properties")
    assert f"{file}: " in problems(report, "properties")


def test_properties_of_another_run_are_caught(sky):
    edit(sky / f"{NAME}.properties", "skyvec_fingerprint=", "skyvec_fingerprint=0")
    report = verify(sky, sample=0)
    assert failed(report) == {"provenance"}
    assert f"{NAME}.properties: skyvec_fingerprint is 0" in problems(report, "provenance")


# ---- asking for it


def test_what_is_not_there_is_said_to_be_none(sky, make_collection, tmp_path):
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=rf"no extension 'big'.*--extension: {NAME}"):
        verify(sky, "big")
    with pytest.raises(ConfigurationError, match="Run `skyvec embed` first"):
        verify(make_collection(name="bare"))
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        verify(sky, source=tmp_path / "nowhere")


def test_the_command_prints_a_table_and_ends_with_its_verdict(sky):
    app = typer.Typer()
    app.command()(verify_command)
    runner = CliRunner()
    good = runner.invoke(app, [str(sky), "--sample", "1"])
    assert good.exit_code == 0
    assert f"{NAME} in {sky / NAME} is right" in good.stdout
    leaves(sky)[0].unlink()
    bad = runner.invoke(app, [str(sky), "--sample", "0"])
    assert bad.exit_code == 30
    assert "Npix=17.parquet: is missing" in bad.stdout
    told = runner.invoke(app, [str(sky), "--sample", "0", "--json"])
    report = json.loads(told.stdout)
    assert (told.exit_code, report["ok"], report["exit_code"]) == (30, False, 30)
    assert {c["name"] for c in report["checks"] if c["outcome"] == "failed"} >= {"files"}


def test_rows_to_recompute_are_spread_and_seeded():
    chosen = choose_rows([5, 1, 100, 3], 8, seed=4)
    assert sorted(map(len, chosen)) in ([1, 2, 2, 3], [1, 1, 3, 3])
    assert chosen == choose_rows([5, 1, 100, 3], 8, seed=4)
    assert chosen != choose_rows([5, 1, 100, 3], 8, seed=5)
    assert choose_rows([2, 1], 50, seed=0) == [[0, 1], [0]]


def test_however_much_is_wrong_the_report_stays_short():
    findings = Findings("rows")
    for row in range(10 * LINES):
        findings.problem(f"row {row}", where="leaf", remedy="Embed again")
    lines = findings.check("").problems
    assert len(lines) == LINES + 1
    assert lines[-1] == f"... and {9 * LINES} more"
