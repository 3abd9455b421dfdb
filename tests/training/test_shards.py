"""Token extensions compiled into shards: there and back, and what is refused."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec_core.modalities import MODALITIES
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import (
    ConfigurationError,
    ContractError,
    InfrastructureError,
    MissingColumnError,
    OutputExistsError,
)
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.token_columns import token_array
from skyvec_training.commands import compile_tokens
from skyvec_training.data import compiling, shard_writing
from skyvec_training.data.compiling import compile_shards
from skyvec_training.data.corpus import ShardCorpus, open_corpus
from skyvec_training.data.shard_files import MANIFEST
from skyvec_training.data.shards import Shards
from skyvec_training.data.split import keys_of_ids
from skyvec_training.data.tokens import TokenStore
from skyvec_training.recipe.data import DataRun

IMAGES = ("tok_flux_g", "tok_flux_r", "tok_image", "tok_z")
STARS = ("catalog", "tok_xp_bp", "tok_z")
MADE = Provenance(
    product="tokens", model="m", model_digest="d" * 64, precision="float32", device="cpu",
    numerics_version=1, vector_type="int16", survey="legacysurvey", inputs=(), skyvec_version="1",
    codecs=tuple(f"{key}=codec-of-{key}" for key in sorted({*IMAGES, *STARS})),
)  # fmt: skip


def tokens(keys, rows, *, seed=0, present=0.8):
    """Codes (rows, A): modalities that are missing, grids with holes, sequences of any length."""
    vocabulary, rng = Vocabulary(keys), np.random.default_rng(seed)
    codes = np.full((rows, vocabulary.num_positions), -1, np.int16)
    for key in keys:
        size = MODALITIES[key].num_tokens
        own = rng.integers(0, MODALITIES[key].vocabulary, (rows, size))
        own[rng.random((rows, size)) < (0.1 if size > 1 else 0)] = -1
        if key == "catalog":
            own[np.arange(size) >= rng.integers(0, size, rows)[:, None]] = -1
        own[rng.random(rows) > present] = -1
        codes[:, vocabulary.positions[key].rows] = own
    return codes


def write(folder, keys, codes, *, made=MADE, leaves=3, ids=None, id_column="object_id", sky=True):
    """A token catalog of several leaves."""
    vocabulary = Vocabulary(keys)
    ids = np.arange(len(codes)) * 7 if ids is None else ids
    for leaf, rows in enumerate(np.array_split(np.arange(len(codes)), leaves)):
        table = {id_column: pa.array(ids[rows])}
        if sky:
            table["_healpix_29"] = pa.array(rows.astype(np.int64) << 50)
        for key in keys:
            own = codes[rows][:, vocabulary.positions[key].rows].astype(np.int64)
            table[key] = token_array(own, own >= 0)
        place = folder / "dataset" / "Norder=2" / "Dir=0" / f"Npix={leaf + 8}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        metadata = {FOOTER_KEY: made.to_json()} if made else None
        pq.write_table(pa.table(table).replace_schema_metadata(metadata), place)
    return folder


@pytest.fixture
def images():
    codes = tokens(IMAGES, 40)
    codes[:, 0] = codes[:, 1] = 5  # so that all of them have two tokens
    return codes


@pytest.fixture
def catalog(tmp_path, images):
    return write(tmp_path / "images", IMAGES, images)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_tokens_come_back_in_any_order_with_their_holes(catalog, out, images):
    compile_shards({"ls": catalog}, out)
    shards = Shards.open(out)
    rows = np.random.default_rng(1).integers(0, 40, 100)
    read = shards.codes(rows, Vocabulary(IMAGES))
    np.testing.assert_array_equal(read, images[rows])
    assert read.dtype == np.int16
    assert shards.codes(rows[:0], Vocabulary(IMAGES)).shape == (0, images.shape[1])


def test_a_vocabulary_may_have_fewer_domains_in_another_order(catalog, out, images):
    compile_shards({"ls": catalog}, out)
    read = Shards.open(out).codes(np.arange(40), Vocabulary(("tok_z", "tok_flux_r")))
    np.testing.assert_array_equal(read, images[:, [-1, 1]])


def test_data_sets_lie_one_after_the_other_whatever_they_have(tmp_path, catalog, out, images):
    stars = tokens(STARS, 25, seed=3, present=1.0)
    compile_shards({"ls": catalog, "gaia": write(tmp_path / "stars", STARS, stars)}, out)
    shards = Shards.open(out)
    assert shards.datasets == {"ls": range(40), "gaia": range(40, 65)}
    both = Vocabulary(tuple(key for key in MODALITIES if key in {*IMAGES, *STARS}))
    expected = np.full((65, both.num_positions), -1)
    for start, keys, codes in ((0, IMAGES, images), (40, STARS, stars)):
        for key in keys:
            own = codes[:, Vocabulary(keys).positions[key].rows]
            expected[start : start + len(codes), both.positions[key].rows] = own
    order = np.random.default_rng(0).permutation(65)
    np.testing.assert_array_equal(shards.codes(order, both), expected[order])


@pytest.mark.parametrize("rows_per_shard", [1, 14, 10**6])
def test_the_size_of_shards_changes_nothing(catalog, out, images, rows_per_shard):
    manifest = compile_shards({"ls": catalog}, out, rows_per_shard=rows_per_shard)
    assert len(manifest.datasets[0].shards) == {1: 3, 14: 2, 10**6: 1}[rows_per_shard]
    read = Shards.open(out).codes(np.arange(40), Vocabulary(IMAGES))
    np.testing.assert_array_equal(read, images)


def test_the_manifest_says_what_was_compiled(catalog, out):
    manifest = compile_shards({"ls": catalog}, out)
    assert manifest.codecs == {key: f"codec-of-{key}" for key in IMAGES}
    assert manifest.domains["tok_image"] == (576, 4375)
    assert manifest.datasets[0].fingerprints == (MADE.fingerprint(),)
    assert Shards.open(out).manifest.datasets[0].shards[0].files["codes.i16"].bytes > 0
    assert not list(out.rglob("*.tmp"))


def test_an_object_can_be_traced(catalog, out):
    compile_shards({"ls": catalog}, out, rows_per_shard=14)
    found = Shards.open(out).objects(np.array([39, 0])).to_pylist()
    assert found == [
        {"dataset": "ls", "object_id": str(39 * 7), "order": 2, "pixel": 10},
        {"dataset": "ls", "object_id": "0", "order": 2, "pixel": 8},
    ]


def test_ids_may_be_text_under_another_name(tmp_path, out, images):
    ids = np.array([f"star {i}" for i in range(40)])
    catalog = write(tmp_path / "c", IMAGES, images, ids=ids, id_column="source_id")
    compile_shards({"gaia": catalog}, out)
    assert Shards.open(out).objects(np.array([3]))["object_id"].to_pylist() == ["star 3"]


def test_objects_with_less_than_two_tokens_are_counted(tmp_path, out, images):
    images[3] = images[17] = images[18] = -1
    images[17, 0] = 4
    images[18, 5] = 4  # one token of an image
    manifest = compile_shards({"ls": write(tmp_path / "c", IMAGES, images)}, out)
    assert (manifest.rows, manifest.too_few) == (37, 3)
    kept = np.delete(images, [3, 17, 18], axis=0)
    read = Shards.open(out).codes(np.arange(37), Vocabulary(IMAGES))
    np.testing.assert_array_equal(read, kept)


def test_a_catalog_without_tokens_is_refused(tmp_path, out):
    empty = np.full((5, Vocabulary(IMAGES).num_positions), -1, np.int16)
    with pytest.raises(ContractError, match=r"no object has 2 tokens.*Tokenize again"):
        compile_shards({"ls": write(tmp_path / "c", IMAGES, empty)}, out)
    assert not (out / MANIFEST).exists()


def test_different_codecs_are_not_mixed(tmp_path, catalog, out, images):
    lines = [line for line in MADE.codecs if not line.startswith("tok_image=")]
    other = replace(MADE, codecs=(*lines, "tok_image=retrained"))
    second = write(tmp_path / "second", IMAGES, images, made=other)
    message = "second.*tok_image was made by codec retrained, that of .*images.*codec-of-tok_image"
    with pytest.raises(ConfigurationError, match=f"{message}.*tokenize both with one model"):
        compile_shards({"old": catalog, "new": second}, out)


def test_tokens_without_a_record_are_not_mixed_with_others(tmp_path, catalog, out, images):
    bare = write(tmp_path / "bare", IMAGES, images, made=None)
    assert compile_shards({"bare": bare}, out).codecs["tok_z"] == "unknown"
    with pytest.raises(ConfigurationError, match="codec unknown"):
        compile_shards({"ls": catalog, "bare": bare}, out)


def test_vectors_are_not_tokens(tmp_path, out, images):
    made = replace(MADE, product="embedding")
    with pytest.raises(ConfigurationError, match=r"holds embedding, not tokens.*skyvec tokenize"):
        compile_shards({"ls": write(tmp_path / "c", IMAGES, images, made=made)}, out)


def test_a_code_outside_its_domain_is_refused(tmp_path, out, images):
    images[20, 0] = 1024
    with pytest.raises(ContractError, match=r"Npix=9.parquet: tok_flux_g does not hold 1 codes"):
        compile_shards({"ls": write(tmp_path / "c", IMAGES, images)}, out)
    assert not (out / MANIFEST).exists()


def test_leaves_with_other_columns_are_refused(catalog, out):
    leaf = sorted(catalog.rglob("*.parquet"))[-1]
    pq.write_table(pq.read_table(leaf, partitioning=None).drop_columns(["tok_z"]), leaf)
    with pytest.raises(MissingColumnError, match="other token columns"):
        compile_shards({"ls": catalog}, out)


@pytest.mark.parametrize("dropped", [["object_id"], list(IMAGES)])
def test_a_catalog_without_ids_or_tokens_is_refused(catalog, out, dropped):
    for leaf in catalog.rglob("*.parquet"):
        pq.write_table(pq.read_table(leaf, partitioning=None).drop_columns(dropped), leaf)
    with pytest.raises(MissingColumnError, match=r"there is no .*skyvec tokenize"):
        compile_shards({"ls": catalog}, out)


def test_a_name_that_is_no_folder_name_is_refused(catalog, out):
    with pytest.raises(ConfigurationError, match="cannot name a data set"):
        compile_shards({"../x": catalog}, out)


def test_a_stopped_compilation_goes_on(catalog, out, images, monkeypatch):
    make = compiling.write_shard
    made = []

    def stop(job):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(job.folder.name)
        return make(job)

    monkeypatch.setattr(compiling, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        compile_shards({"ls": catalog}, out, rows_per_shard=1)
    with pytest.raises(ConfigurationError, match="nothing was compiled here, or it was stopped"):
        Shards.open(out)
    monkeypatch.setattr(compiling, "write_shard", make)
    write_shard, written = shard_writing._write, []

    def tell(job, folder):
        written.append(folder.name)
        return write_shard(job, folder)

    monkeypatch.setattr(shard_writing, "_write", tell)
    compile_shards({"ls": catalog}, out, rows_per_shard=1)
    assert written == ["ls-00002.tmp"]
    read = Shards.open(out).codes(np.arange(40), Vocabulary(IMAGES))
    np.testing.assert_array_equal(read, images)
    assert compile_shards({"ls": catalog}, out, rows_per_shard=1).rows == 40
    assert len(written) == 1


def test_a_changed_source_is_not_taken_for_the_old_one(tmp_path, catalog, out, images):
    compile_shards({"ls": catalog}, out)
    images[0, 0] = 77
    write(tmp_path / "images", IMAGES, images)
    with pytest.raises(OutputExistsError, match=r"shards of other sources.*another --out"):
        compile_shards({"ls": catalog}, out)
    (out / MANIFEST).unlink()
    compile_shards({"ls": catalog}, out)
    assert Shards.open(out).codes(np.array([0]), Vocabulary(IMAGES))[0, 0] == 77


def test_a_full_disk_leaves_complete_shards_and_a_remedy(catalog, out, monkeypatch):
    append = shard_writing._append

    def full(file, values):
        if "00001" in file.name:
            raise OSError(28, "No space left on device")
        append(file, values)

    monkeypatch.setattr(shard_writing, "_append", full)
    with pytest.raises(InfrastructureError, match=r"No space left.*Make room and run the same"):
        compile_shards({"ls": catalog}, out, rows_per_shard=1)
    monkeypatch.setattr(shard_writing, "_append", append)
    assert compile_shards({"ls": catalog}, out, rows_per_shard=1).rows == 40


def test_a_file_of_another_length_is_refused_at_once(catalog, out):
    compile_shards({"ls": catalog}, out)
    place = next(out.rglob("codes.i16"))
    place.write_bytes(place.read_bytes()[:-2])
    with pytest.raises(ContractError, match=r"codes.i16: it changed since it was compiled: it has"):
        Shards.open(out)


def test_one_flipped_bit_is_found_on_request(catalog, out):
    compile_shards({"ls": catalog}, out)
    place = next(out.rglob("codes.i16"))
    content = bytearray(place.read_bytes())
    content[11] ^= 1
    place.write_bytes(content)
    shards = Shards.open(out)
    with pytest.raises(ContractError, match=r"codes.i16: .* its digest.*compile the tokens again"):
        shards.verify()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layout", 99, "layout 99, this version reads layout 1.*Compile the tokens again"),
        ("domains", {"tok_new": [3, 9]}, "tok_new has 3 tokens of 9 codes, which is no domain"),
    ],
)
def test_shards_of_another_version_are_refused(catalog, out, key, value, message):
    compile_shards({"ls": catalog}, out)
    facts = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({**facts, key: value}))
    with pytest.raises(ConfigurationError, match=message):
        Shards.open(out)


def test_a_domain_that_nobody_has_is_refused(catalog, out):
    compile_shards({"ls": catalog}, out)
    with pytest.raises(MissingColumnError, match=r"column tok_ebv is missing.*recipe"):
        open_corpus(out, Vocabulary((*IMAGES, "tok_ebv")), DataRun(held_out=0.2))


def test_a_killed_compiler_leaves_no_corpus_and_can_go_on(catalog, out, images):
    killed = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from skyvec_training.data import compiling, shard_writing\n"
        "append, calls = shard_writing._append, []\n"
        "def count(file, values):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 11: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    append(file, values)\n"
        "shard_writing._append = count\n"
        "compiling.compile_shards({'ls': Path(sys.argv[1])}, Path(sys.argv[2]), rows_per_shard=1)\n"
    )
    words = [sys.executable, "-c", killed, str(catalog), str(out)]
    assert subprocess.run(words, check=False).returncode == -9
    assert not (out / MANIFEST).exists()
    compile_shards({"ls": catalog}, out, rows_per_shard=1)
    Shards.open(out).verify()
    assert not list(out.rglob("*.tmp"))
    read = Shards.open(out).codes(np.arange(40), Vocabulary(IMAGES))
    np.testing.assert_array_equal(read, images)


def test_processes_make_the_same_shards(catalog, tmp_path):
    one = compile_shards({"ls": catalog}, tmp_path / "one", rows_per_shard=1)
    two = compile_shards({"ls": catalog}, tmp_path / "two", rows_per_shard=1, workers=2)
    assert [s.files for s in one.datasets[0].shards if s.files.pop("objects.parquet")] == [
        s.files for s in two.datasets[0].shards if s.files.pop("objects.parquet")
    ]


def test_held_out_objects_stay_so_in_a_release_of_another_order(tmp_path, images):
    ids = np.arange(400) * 13
    codes = np.tile(images, (10, 1))
    more = np.concatenate([ids[200:], ids[:200], 10**6 + np.arange(200)])
    corpora = []
    for name, own in (("dr1", ids), ("dr2", more)):
        folder = write(tmp_path / name, IMAGES, np.tile(codes, (2, 1))[: len(own)], ids=own)
        compile_shards({name: folder}, tmp_path / f"{name}-shards", rows_per_shard=100)
        run = DataRun(held_out=0.2)
        corpora.append(open_corpus(tmp_path / f"{name}-shards", Vocabulary(IMAGES), run))
    held = [
        {int(i) for i in c.shards.objects(c.held_out_rows)["object_id"].to_pylist()}
        for c in corpora
    ]
    assert held[0] == held[1] & set(ids.tolist())
    assert len(held[0]) == pytest.approx(80, abs=25)
    assert len(corpora[0].train) == 400 - len(held[0])


def test_a_row_is_trained_on_or_held_out_never_both(catalog, out):
    compile_shards({"ls": catalog}, out, rows_per_shard=14)
    corpus = open_corpus(out, Vocabulary(IMAGES), DataRun(held_out=0.3))
    held = set(corpus.held_out_rows.tolist())
    trained = corpus.train.rows_of_slots(seed=0, step=0, slots=range(200), batch=200)
    assert held
    assert held | set(trained.tolist()) == set(range(40))
    assert not held & set(trained.tolist())


def test_whole_pixels_are_held_out_by_sky(tmp_path, out):
    codes = np.tile(tokens(("tok_flux_g", "tok_z"), 1, present=1.0), (2000, 1))
    compile_shards({"ls": write(tmp_path / "c", ("tok_flux_g", "tok_z"), codes)}, out)
    run = DataRun(held_out=0.2, held_out_by="sky", sky_order=0)  # 1 << 50: 256 rows to a pixel
    corpus = open_corpus(out, Vocabulary(("tok_flux_g", "tok_z")), run)
    pixels = set((corpus.held_out_rows >> 8).tolist())
    assert len(corpus.held_out_rows) == sum(min(256, 2000 - 256 * p) for p in pixels)


def test_without_places_nothing_is_held_out_by_sky(tmp_path, out, images):
    compile_shards({"ls": write(tmp_path / "c", IMAGES, images, sky=False)}, out)
    with pytest.raises(ConfigurationError, match=r'have no _healpix_29.*held_out_by = "id"'):
        open_corpus(out, Vocabulary(IMAGES), DataRun(held_out=0.2, held_out_by="sky"))


def test_holding_out_nothing_by_mistake_is_refused(catalog, out):
    compile_shards({"ls": catalog}, out)
    with pytest.raises(ConfigurationError, match=r"holds out no object.*Raise it"):
        open_corpus(out, Vocabulary(IMAGES), DataRun(held_out=1e-9))
    assert not len(open_corpus(out, Vocabulary(IMAGES), DataRun(held_out=0)).held_out_rows)


def test_objects_too_small_for_a_vocabulary_are_not_trained_on(tmp_path, out, images):
    narrow = Vocabulary(("tok_image", "tok_z"))
    compile_shards({"ls": write(tmp_path / "c", IMAGES, images)}, out, rows_per_shard=14)
    corpus = ShardCorpus(Shards.open(out), narrow, DataRun(held_out=0.3))
    few = set(np.flatnonzero((images[:, 2:] >= 0).sum(1) < 2).tolist())
    assert few
    assert corpus.unusable == len(few)
    rows = corpus.train.rows_of_slots(seed=0, step=0, slots=range(200), batch=200)
    assert not few & {*rows.tolist(), *corpus.held_out_rows.tolist()}
    assert (corpus.codes(rows) >= 0).sum(1).min() >= 2


def test_shards_and_memory_are_one_corpus(catalog, out):
    compile_shards({"images": catalog}, out, rows_per_shard=14)
    vocabulary, run = Vocabulary(IMAGES), DataRun(held_out=0.3)
    shards, memory = open_corpus(out, vocabulary, run), open_corpus(catalog, vocabulary, run)
    assert isinstance(memory, TokenStore)
    np.testing.assert_array_equal(shards.held_out_rows, memory.held_out_rows)
    slots = {"seed": 5, "step": 3, "slots": range(32), "batch": 32}
    rows = shards.train.rows_of_slots(**slots)
    np.testing.assert_array_equal(rows, memory.train.rows_of_slots(**slots))
    np.testing.assert_array_equal(shards.codes(rows), memory.codes(rows))


def test_the_hash_of_an_id_never_changes():
    """Another hash would let held-out objects of earlier runs into training."""
    assert keys_of_ids([12, "12", " 12  "]).tolist() == [keys_of_ids([12])[0]] * 3
    assert int(keys_of_ids(["39627"])[0]) == 2280198871788422438


def test_sources_of_the_command_have_names(tmp_path):
    found = compile_tokens._sources([f"ls={tmp_path}/a", f"{tmp_path}/b"])
    assert found == {"ls": tmp_path / "a", "b": tmp_path / "b"}
    with pytest.raises(ConfigurationError, match="two data sets are called b"):
        compile_tokens._sources([f"{tmp_path}/b", f"b={tmp_path}/c"])


def test_the_command_compiles_and_says_what_it_left_out(catalog, out, capsys):
    parser = argparse.ArgumentParser()
    compile_tokens.add_arguments(parser)
    words = [f"ls={catalog}", "--out", str(out), "--rows-per-shard", "14", "--verify"]
    compile_tokens.run(parser.parse_args(words))
    said = " ".join(capsys.readouterr().out.split())
    assert "shards/ls-00001" in said
    assert "ls: 40 objects" in said
    assert "0 objects with fewer than two tokens were left out" in said
    assert len(Shards.open(out)) == 40
