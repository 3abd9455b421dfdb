"""Only what changed is computed: from stored tokens, and with an earlier extension at hand."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage import quantum
from skyvec.stage.run import run
from skyvec.surveys import chosen_survey
from skyvec_schemas.errors import ConfigurationError, OutputExistsError
from skyvec_schemas.vectors import tensor_values

NAME = "small_v1"


@pytest.fixture(scope="module")
def model_of_same_codecs(model_folder, tmp_path_factory, factory):
    """Another transformer over the codecs of ``small``."""
    folder = factory.save_model(tmp_path_factory.mktemp("models") / "retrained", seed=5)
    shutil.rmtree(folder / "codecs")
    shutil.copytree(model_folder / "codecs", folder / "codecs")
    return folder


@pytest.fixture
def encoded(monkeypatch):
    """Rows that went through the encoder, canaries left out."""
    counts = []
    real = quantum.embed_rows

    def counted(rows, model, only=None):
        counts.append(len(rows.flags) if only is None else len(only))
        return real(rows, model, only)

    monkeypatch.setattr(quantum, "embed_rows", counted)
    return counts


def leaves(folder):
    release = HatsRelease.open(folder)
    return {pixel: release.leaf(pixel) for pixel in release.pixels}


def stored(folder, name=NAME):
    """id -> bytes of the vector, status, flags, content."""
    found = {}
    for leaf in leaves(folder).values():
        table = pq.read_table(leaf, partitioning=None)
        vectors = tensor_values(table.column(name), missing=np.nan)
        columns = [
            f"{name}_{end}" for end in ("status", "flags", "modalities", "tokens", "content")
        ]
        for i, row in enumerate(table.select(["object_id", *columns]).to_pylist()):
            found[row.pop("object_id")] = (vectors[i].tobytes(), *row.values())
    return found


def spoilt(factory, rows=12):
    """Rows of which two are partial, one has bad pixels and one fails."""
    cutouts = [factory.cutout(i) for i in range(rows)]
    cutouts[1] = None
    cutouts[4]["flux"][:, 10:13, 20] = np.nan
    cutouts[8] = factory.cutout(8, flux=np.full((4, 96, 96), np.nan))
    flux = pa.array([None, *[1.0] * (rows - 1)], pa.float32())
    return factory.survey_table(rows, cutouts=cutouts, FLUX_W1=flux)


def without_pixels(monkeypatch):
    def touched(*_, **__):
        raise AssertionError("the pixels were touched")

    monkeypatch.setattr(HatsRelease, "batches", touched)
    monkeypatch.setattr(HatsRelease, "single_rows", touched)


def test_vectors_from_stored_tokens_have_the_same_bits_and_reasons(
    make_collection, model_folder, factory, monkeypatch
):
    collection = make_collection(spoilt(factory))
    run(collection, model=model_folder, workers=0, max_bad=1)
    run(collection, model=model_folder, workers=0, product="tokens", max_bad=1)
    without_pixels(monkeypatch)
    record = run(collection, model=model_folder, workers=0, tokens="small_tokens", name="again",
                 max_bad=1, batch_rows=5)  # fmt: skip
    assert (record.exit_code, record.rows, record.failed_rows) == (0, 12, 1)
    assert stored(collection / "again", "again") == stored(collection / NAME)


def test_a_new_transformer_embeds_from_tokens_what_it_embeds_from_pixels(
    make_collection, model_folder, model_of_same_codecs, monkeypatch
):
    collection = make_collection()
    run(collection, model=model_folder, workers=0, product="tokens")
    run(collection, model=model_of_same_codecs, workers=0, name="direct")
    without_pixels(monkeypatch)
    run(collection, model=model_of_same_codecs, workers=0, name="again", tokens="small_tokens")
    assert stored(collection / "again", "again") == stored(collection / "direct", "direct")


def test_tokens_do_not_depend_on_the_transformer_so_they_are_not_made_twice(
    make_collection, model_folder, model_of_same_codecs
):
    collection = make_collection()
    run(collection, model=model_folder, workers=0, product="tokens", name="tokens")
    again = run(collection, model=model_of_same_codecs, workers=0, product="tokens", name="tokens")
    assert (again.exit_code, again.skipped) == (0, 2)


def test_inputs_cannot_be_chosen_anew_where_tokens_are_read(make_collection, model_folder):
    collection = make_collection()
    run(collection, model=model_folder, workers=0, product="tokens")
    fewer = chosen_survey("legacysurvey", id_column=None, image_column=None, without="EBV")
    with pytest.raises(ConfigurationError, match="--tokens small_tokens: another survey, other"):
        run(collection, model=model_folder, workers=0, tokens="small_tokens", survey=fewer)


def test_tokens_of_other_codecs_are_refused(make_collection, model_folder, other_model_folder):
    collection = make_collection()
    run(collection, model=model_folder, workers=0, product="tokens")
    with pytest.raises(ConfigurationError, match=r"tokens of tok_\w+.* made by other codecs than"):
        run(collection, model=other_model_folder, workers=0, tokens="small_tokens")


def test_what_is_no_token_extension_is_refused(make_collection, model_folder):
    collection = make_collection()
    run(collection, model=model_folder, workers=0)
    with pytest.raises(ConfigurationError, match="is no token extension"):
        run(collection, model=model_folder, workers=0, name="other", tokens=NAME)
    with pytest.raises(ConfigurationError, match="no extension 'nothing'"):
        run(collection, model=model_folder, workers=0, name="other", tokens="nothing")


def test_tokens_that_changed_since_are_refused_in_the_same_extension(make_collection, model_folder):
    collection = make_collection()
    run(collection, model=model_folder, workers=0, product="tokens")
    run(collection, model=model_folder, workers=0, tokens="small_tokens")
    table = collection / "small_tokens" / "skyvec" / "quanta.parquet"
    rows = pq.read_table(table).to_pylist()
    rows[0]["fingerprint"] = "0" * 64
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(table)), table)
    with pytest.raises(OutputExistsError, match="made from other input data"):
        run(collection, model=model_folder, workers=0, tokens="small_tokens")


def test_a_pixel_without_tokens_says_so_and_the_others_are_done(make_collection, model_folder):
    from skyvec.stage.selection import Selection

    collection = make_collection()
    first = HatsRelease.open(collection).pixels[0]
    chosen = Selection.parse(pixels=f"{first.order}/{first.pixel}")
    run(collection, model=model_folder, workers=0, product="tokens", selection=chosen)
    record = run(collection, model=model_folder, workers=0, tokens="small_tokens")
    assert [q.outcome for q in record.quanta] == ["done", "data"]
    assert "holds no tokens of pixel" in record.problems[0]


# ---- an earlier extension at hand


def later_release(factory, make_collection, *, name="later", order=1):
    """`survey_table` a release later: one flux and one position changed, two rows new."""
    old, new = factory.survey_table(12), factory.survey_table(14, seed=3)
    rows = old.to_pylist()
    rows[0] |= {"FLUX_G": 0.5}  # other tokens
    rows[1] |= {"ra": rows[1]["ra"] + 1e-5}  # same tokens
    added = new.slice(12).to_pylist()
    for place, row in enumerate(added):
        row["object_id"] = 5 * 10**12 + place
    table = pa.Table.from_pylist([*rows, *added], old.schema)
    collection = make_collection(table, name=name)
    if order != 1:
        shutil.rmtree(collection)
        factory.write_collection(table, collection, order=order)
    return collection


@pytest.mark.parametrize("order", [1, 0, 3])
def test_a_new_release_pays_for_changed_rows_only(
    make_collection, model_folder, factory, encoded, order
):
    old = make_collection(name="old")
    run(old, model=model_folder, workers=0)
    new = later_release(factory, make_collection, order=order)
    encoded.clear()
    record = run(new, model=model_folder, workers=0, reuse=old / f"{NAME}.properties")
    assert (record.rows, record.reused_rows) == (14, 11)
    assert sum(encoded) == 3
    run(new, model=model_folder, workers=0, name="anew")
    assert stored(new / NAME) == stored(new / "anew", "anew")


def test_a_pixel_whose_input_is_the_same_is_taken_over_as_a_file(
    make_collection, model_folder, factory, encoded
):
    table = factory.survey_table(12)
    old, new = make_collection(table, name="old"), make_collection(table, name="new")
    release = HatsRelease.open(new)
    leaf = release.leaf(release.pixels[1])
    changed = pq.read_table(leaf, partitioning=None).to_pylist()
    changed[2]["FLUX_R"] = 0.5
    pq.write_table(pa.Table.from_pylist(changed, pq.read_schema(leaf)), leaf)
    run(old, model=model_folder, workers=0)
    encoded.clear()
    record = run(new, model=model_folder, workers=0, reuse=old / NAME)
    assert record.reused_rows == 11
    assert sum(encoded) == 1
    before, after = leaves(old / NAME), leaves(new / NAME)
    same, other = release.pixels
    assert before[same].samefile(after[same])
    assert not before[other].samefile(after[other])


def test_another_model_takes_nothing_over(make_collection, model_folder, model_of_same_codecs):
    table_old, table_new = make_collection(name="old"), make_collection(name="new")
    run(table_old, model=model_folder, workers=0)
    record = run(table_new, model=model_of_same_codecs, workers=0, name=NAME,
                 reuse=table_old / NAME)  # fmt: skip
    assert (record.exit_code, record.reused_rows) == (0, 0)
    run(table_new, model=model_of_same_codecs, workers=0, name="anew")
    assert stored(table_new / NAME) == stored(table_new / "anew", "anew")


def test_a_harmed_file_is_not_taken_over(make_collection, model_folder):
    old, new = make_collection(name="old"), make_collection(name="new")
    run(old, model=model_folder, workers=0)
    leaf = next(iter(leaves(old / NAME).values()))
    content = bytearray(leaf.read_bytes())
    content[200] ^= 255
    leaf.write_bytes(content)
    record = run(new, model=model_folder, workers=0, reuse=old / NAME)
    assert (record.exit_code, record.reused_rows) == (0, 6)
    run(new, model=model_folder, workers=0, name="anew")
    assert stored(new / NAME) == stored(new / "anew", "anew")


def test_vectors_of_another_type_are_not_taken_over(make_collection, model_folder):
    old, new = make_collection(name="old"), make_collection(name="new")
    run(old, model=model_folder, workers=0)
    record = run(new, model=model_folder, workers=0, reuse=old / NAME, dtype="float32")
    assert (record.exit_code, record.reused_rows) == (0, 0)


def test_large_ids_and_null_ids_are_told_apart(make_collection, model_folder):
    ids = pa.array([2**62 + i for i in range(11)] + [None], pa.int64())
    old, new = (
        make_collection(name="old", object_id=ids),
        make_collection(name="new", object_id=ids),
    )
    run(old, model=model_folder, workers=0, max_bad=1)
    release = HatsRelease.open(new)
    for pixel in release.pixels:  # another writer: other footers, same rows
        table = pq.read_table(release.leaf(pixel), partitioning=None)
        pq.write_table(table, release.leaf(pixel), row_group_size=3)
    record = run(new, model=model_folder, workers=0, reuse=old / NAME, max_bad=1)
    assert record.reused_rows == 11
    assert stored(new / NAME) == stored(old / NAME)


# ---- memory and attempts


def test_where_memory_runs_out_half_the_rows_are_taken_and_the_bits_stay(
    make_collection, model_folder, monkeypatch
):
    collection = make_collection()
    run(collection, model=model_folder, workers=0)
    real = quantum.embed_rows

    def small(rows, model, only=None):
        if len(rows.flags) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(rows, model, only)

    monkeypatch.setattr(quantum, "embed_rows", small)
    record = run(collection, model=model_folder, workers=0, name="small", batch_rows=16)
    assert [q.batch_rows for q in record.quanta] == [2, 2]
    assert stored(collection / "small", "small") == stored(collection / NAME)


def test_a_leaf_has_the_same_bytes_whatever_the_batches(make_collection, model_folder, tmp_path):
    collection = make_collection()
    digests = []
    for rows in (3, 128):
        record = run(collection, model=model_folder, workers=0, out=tmp_path / str(rows),
                     batch_rows=rows, name=NAME)  # fmt: skip
        digests.append([q.digest for q in record.quanta])
    assert digests[0] == digests[1]


def test_a_pixel_that_another_worker_finished_meanwhile_is_not_made_again(
    make_collection, model_folder, encoded
):
    from skyvec.stage.output import Output
    from skyvec.stage.plan import plan

    collection = make_collection()
    prepared = plan(collection, model=model_folder)
    pixel = prepared.todo[0]
    first = quantum.run_quantum(prepared.job, pixel.order, pixel.pixel)
    encoded.clear()
    assert quantum.run_quantum(prepared.job, pixel.order, pixel.pixel) == first
    assert encoded == []
    assert Output(prepared.job.output).record(HealpixPixel(*first.key)) == first


def test_records_are_gathered_into_one_table_and_read_back_whole(make_collection, model_folder):
    from skyvec.stage.output import Output

    collection = make_collection()
    record = run(collection, model=model_folder, workers=0)
    output = Output(collection / NAME)
    assert list((output.root / "skyvec" / "records").glob("*")) == []
    assert output.records() == {q.key: q for q in record.quanta}
    manifest = json.loads((output.root / "skyvec" / "manifest.json").read_text())
    assert (manifest["complete"], manifest["published"], manifest["pixels"]) == (True, True, 2)
