"""Rows that were silently wrong in other projects, each made to happen here, each caught.

The projects and threads: UniverseTBD/platonic-universe #67; PolymathicAI/AION #61, #64, #68, #69 and
its image codec and `encode`; AstroCLIP's and Stein et al.'s embedding scripts; AstroPT's probe;
`write_catalog(resume=True)` of LSDB. A case is caught if the run refuses, or, where what went wrong
is outside its sight, if verifying what was published fails; where two gates see it, both are tried.
"""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from skyvec.extensions.verify import verify
from skyvec.models import load_model
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage import quantum, worker
from skyvec.stage.driver import Patience
from skyvec.stage.output import RUN_FILE, Output
from skyvec.stage.partition import embed_rows, tokenize_rows
from skyvec.stage.row_stream import PixelRows
from skyvec.stage.run import run
from skyvec_core.codecs.spectrum import SpectrumCodec
from skyvec_core.embedder import Model
from skyvec_core.golden import write_golden
from skyvec_core.observations import Images, Tokens
from skyvec_schemas.errors import InfrastructureError, OutputExistsError, WeightsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY, SDSS
from skyvec_schemas.vectors import tensor_values

NAME = "vectors"
QUICK = Patience(first_pause=0.01)
GATES = pytest.mark.parametrize("gate", ["run", "verify"])
"""What must catch a case: the run by itself, and verifying if the run's canaries had been lucky."""


@pytest.fixture(autouse=True)
def process_of_its_own():
    """What a worker keeps through its life must not come from before the harm, nor outlive it."""

    def forget():
        for kept in vars(worker).values():
            if hasattr(kept, "cache_clear"):
                kept.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture(scope="session")
def small_sky(tmp_path_factory, factory):
    home = tmp_path_factory.mktemp("record")
    return factory.write_collection(factory.survey_table(16), home / "sky")


@pytest.fixture
def sky(small_sky, tmp_path):
    """16 objects in two pixels; two batches each where ``batch_rows`` is 4."""
    return shutil.copytree(small_sky, tmp_path / "sky")


@pytest.fixture
def without_canaries(monkeypatch):
    def lucky(*_, **__):
        return None

    return lambda: monkeypatch.setattr(quantum, "prove_canaries", lucky)


def embed(sky, model, *, name=NAME, **choices):
    return run(sky, model=model, name=name, workers=0, batch_rows=4, patience=QUICK, **choices)


def refusal(record, sky):
    """Why a run published nothing."""
    assert record.properties is None
    assert record.exit_code != 0
    assert not (sky / f"{NAME}.properties").exists()
    assert NAME not in (sky / "collection.properties").read_text()
    return "\n".join(record.problems)


def faults(sky, **choices):
    """What verifying a published extension finds."""
    report = verify(sky, NAME, **choices)
    assert report.exit_code == 30
    return {c.name: "\n".join(c.problems) for c in report.checks if c.passed is False}


def caught(gate, sky, model, without_canaries, message, **choices):
    if gate == "run":
        assert "comes out otherwise" in refusal(embed(sky, model), sky)
        return
    without_canaries()
    assert embed(sky, model).exit_code == 0
    assert message in faults(sky, **choices)["recompute"]


# ---- platonic-universe #67: rows in the order in which workers finished


@GATES
def test_platonic_universe_vectors_come_back_in_the_order_of_the_workers(
    sky, model_folder, monkeypatch, without_canaries, gate
):
    def scrambled(rows, model, only=None):
        return np.roll(embed_rows(rows, model, only), 1, axis=0)

    monkeypatch.setattr(quantum, "embed_rows", scrambled)
    caught(gate, sky, model_folder, without_canaries, f"embedded again: {NAME}.")


def test_platonic_universe_rows_come_back_in_the_order_of_the_workers(
    sky, model_folder, monkeypatch
):
    real = HatsRelease.batches

    def scrambled(self, *args, **kwargs):
        yield from reversed(list(real(self, *args, **kwargs)))

    monkeypatch.setattr(HatsRelease, "batches", scrambled)
    found = refusal(embed(sky, model_folder), sky)
    assert "column '_healpix_29' differs from the input" in found


# ---- AION #61: every short spectrum becomes an all-zero latent


def spectra(rows):
    """A table of spectra, a third of them short."""
    rng = np.random.default_rng(5)
    lengths = [1500 if row % 3 == 0 else 3000 for row in range(rows)]
    return [
        {
            "flux": rng.normal(5, 1, n).astype(np.float32).tolist(),
            "ivar": np.ones(n, np.float32).tolist(),
            "mask": np.zeros(n, bool).tolist(),
            "lambda": (10 ** (3.58 + 1e-4 * np.arange(n))).astype(np.float32).tolist(),
        }
        for n in lengths
    ]


def test_aion_sdss_short_spectra_share_one_null_embedding(
    make_collection, factory, every_survey_model, monkeypatch, process_of_its_own
):
    kind = pa.struct(
        [("flux", pa.list_(pa.float32())), ("ivar", pa.list_(pa.float32())),
         ("mask", pa.list_(pa.bool_())), ("lambda", pa.list_(pa.float32()))]
    )  # fmt: skip
    table = factory.survey_table(12).select(["object_id", "ra", "dec"])
    sky = make_collection(table.append_column("spectrum", pa.array(spectra(12), kind)))
    real = SpectrumCodec.encode

    def blanked(self, observed, *, compat=False):
        coded = real(self, observed, compat=compat)
        short = observed.good_BL.sum(1) < 2000
        ids = torch.where(short[:, None], 0, coded.ids_BN)
        return Tokens(ids_BN=ids, valid_BN=coded.valid_BN | short[:, None])

    assert embed(sky, every_survey_model, survey=SDSS, name="right").exit_code == 0
    assert verify(sky, "right", sample=2).ok
    monkeypatch.setattr(SpectrumCodec, "encode", blanked)
    process_of_its_own()
    assert embed(sky, every_survey_model, survey=SDSS).exit_code == 0
    # The codec is as wrong in the verifying process: embedding again agrees, the vectors tell.
    found = faults(sky, sample=2)
    assert set(found) == {"vectors"}
    assert "rows repeat the vector and the tokens of another" in found["vectors"]


# ---- AION's image codec divides the caller's tensor in place


def test_aion_codec_changes_the_callers_tensor_between_two_encodings(
    sky, model_folder, monkeypatch
):
    real = Model.tokenize

    def mutating(self, observations):
        real(self, observations)
        for observed in observations.values():
            if isinstance(observed, Images):
                observed.flux_BCHW.mul_(1 / 63.1)
        return real(self, observations)

    with monkeypatch.context() as patched:
        patched.setattr(Model, "tokenize", mutating)
        record = embed(sky, model_folder)
    assert record.exit_code == 0
    assert f"{NAME}, {NAME}_content" in faults(sky)["recompute"]


def test_our_codecs_leave_what_they_are_given_and_say_the_same_twice(sky, model_folder):
    release, model = HatsRelease.open(sky), load_model(model_folder)
    batch = next(release.batches(release.pixels[0], LEGACY_SURVEY, rows=8))
    before = batch.to_pylist()
    first, second = (tokenize_rows(batch, LEGACY_SURVEY, model) for _ in range(2))
    assert (first.contents == second.contents).all()
    assert batch.to_pylist() == before


# ---- AION's `encode` keeps 256 of 588 tokens


def first_tokens(tokens, limit):
    kept, left = {}, None
    for key, coded in tokens.items():
        left = torch.full((len(coded.ids_BN), 1), limit) if left is None else left
        place = coded.valid_BN.long().cumsum(1)
        valid = coded.valid_BN & (place <= left)
        left = (left - coded.valid_BN.sum(1, keepdim=True)).clamp(min=0)
        kept[key] = Tokens(ids_BN=coded.ids_BN, valid_BN=valid)
    return kept


@pytest.mark.parametrize("process", ["wrong", "right"])
def test_aion_encode_drops_all_tokens_but_256(sky, model_folder, monkeypatch, process):
    real = Model.embed
    monkeypatch.setattr(
        Model,
        "embed",
        lambda self, tokens, **kwargs: real(self, first_tokens(tokens, 256), **kwargs),
    )
    assert embed(sky, model_folder).exit_code == 0
    if process == "right":
        monkeypatch.undo()
        assert f"embedded again: {NAME}." in faults(sky, sample=2)["recompute"]
        return
    found = faults(sky, sample=2)["recompute"]
    assert "the last token of tok_image does not move the vector" in found
    assert "the last token of tok_flux_g does not move the vector" in found


def test_our_model_refuses_to_drop_tokens(model_folder):
    model = load_model(model_folder)
    tokens = {"tok_ebv": Tokens(ids_BN=torch.zeros(1, 1).long(), valid_BN=torch.ones(1, 1).bool())}
    with pytest.raises(ValueError, match="num_encoder_tokens drops tokens"):
        model.embed(tokens, num_encoder_tokens=256)


# ---- AstroCLIP: only the first batch of each file is embedded, ids are full length


def test_astroclip_rest_of_the_file_is_left_unfilled(sky, model_folder, monkeypatch):
    batches = []

    def first_only(rows, model, only=None):
        batches.append(len(rows.flags))
        vectors = embed_rows(rows, model, only)
        return vectors if len(batches) % 2 else np.zeros_like(vectors)

    monkeypatch.setattr(quantum, "embed_rows", first_only)
    assert "4 vectors are constant (rows 4, 5, 6, ...)" in refusal(embed(sky, model_folder), sky)


def test_astroclip_rest_of_the_file_holds_the_first_batch(
    sky, model_folder, monkeypatch, without_canaries
):
    kept = []

    def buffered(rows, model, only=None):
        kept.append(embed_rows(rows, model, only))
        return kept[0]

    monkeypatch.setattr(quantum, "embed_rows", buffered)
    without_canaries()
    assert embed(sky, model_folder).exit_code == 0
    found = faults(sky, sample=0)["vectors"]
    assert "rows have exactly the vector of another row although their tokens differ" in found


def test_astroclip_remainder_is_not_flushed(sky, model_folder, monkeypatch):
    real = PixelRows.__iter__

    def first_only(self):
        yield next(iter(real(self)))

    monkeypatch.setattr(PixelRows, "__iter__", first_only)
    assert "4 rows written of 8" in refusal(embed(sky, model_folder), sky)


# ---- AstroPT: zss.npy is used if it is there, whatever model made it


@GATES
def test_astropt_cached_vectors_of_another_model(
    sky, model_folder, other_model_folder, monkeypatch, without_canaries, gate
):
    cached = load_model(other_model_folder)
    monkeypatch.setattr(
        quantum, "embed_rows", lambda rows, _, only=None: embed_rows(rows, cached, only)
    )
    caught(gate, sky, model_folder, without_canaries, f"embedded again: {NAME}.")


# ---- Stein et al.: files that exist are kept, whatever checkpoint made them


def test_stein_files_of_another_checkpoint_are_refused(sky, model_folder, other_model_folder):
    embed(sky, other_model_folder)
    with pytest.raises(OutputExistsError, match="made otherwise: model digest"):
        embed(sky, model_folder)
    # Somebody removes what says so:
    (sky / NAME / RUN_FILE).unlink()
    with pytest.raises(OutputExistsError):
        embed(sky, model_folder)
    shutil.rmtree(sky / NAME / "skyvec")
    with pytest.raises(OutputExistsError, match="was not made by skyvec"):
        embed(sky, model_folder)


def test_stein_files_of_another_checkpoint_are_found(
    sky, model_folder, other_model_folder, tmp_path
):
    embed(sky, model_folder)
    embed(sky, other_model_folder, out=tmp_path / "other")
    leaf = sorted((tmp_path / "other" / NAME).rglob("Npix=*.parquet"))[0]
    shutil.copy(leaf, sky / leaf.relative_to(tmp_path / "other"))
    found = faults(sky, sample=2)
    assert f"{leaf.name}: fingerprint" in found["provenance"]
    assert f"{leaf.name}: SHA-256" in found["files"]
    assert f"embedded again: {NAME}, {NAME}_content" in found["recompute"]


# ---- LSDB: resume under another model mixes 686 rows with 1,314


def test_lsdb_resume_under_another_model_is_refused(sky, model_folder, other_model_folder):
    release = HatsRelease.open(sky)
    second = release.leaf(release.pixels[1])
    healthy = second.read_bytes()
    second.write_bytes(healthy[:100])
    interrupted = embed(sky, model_folder)
    assert [quantum.outcome for quantum in interrupted.quanta] == ["done", "data"]
    assert interrupted.properties is None
    second.write_bytes(healthy)
    first = Output(sky / NAME).leaf(release.pixels[0])
    content = first.read_bytes()
    with pytest.raises(OutputExistsError, match="never mixes two models"):
        embed(sky, other_model_folder)
    assert first.read_bytes() == content
    assert not Output(sky / NAME).leaf(release.pixels[1]).exists()
    resumed = embed(sky, model_folder)
    assert (resumed.exit_code, resumed.skipped) == (0, 1)
    assert verify(sky, NAME, sample=4).ok


def test_lsdb_mixture_that_was_forced_is_found(sky, model_folder, other_model_folder, tmp_path):
    """Both models wrote; somebody edits the later run's provenance into the first one's files."""
    embed(sky, model_folder)
    embed(sky, other_model_folder, out=tmp_path / "other")
    leaf = Output(sky / NAME).leaf(HatsRelease.open(sky).pixels[1])
    ours, theirs = pq.read_table(leaf, partitioning=None), pq.read_table(
        tmp_path / "other" / leaf.relative_to(sky), partitioning=None
    )  # fmt: skip
    assert not np.array_equal(
        *(tensor_values(t.column(NAME), missing=np.nan) for t in (ours, theirs))
    )
    pq.write_table(theirs.replace_schema_metadata(ours.schema.metadata), leaf)
    found = faults(sky, sample=2)
    assert "provenance" not in found
    assert f"embedded again: {NAME}, {NAME}_content" in found["recompute"]


def test_tokens_that_are_dropped_by_a_worker_are_noticed_by_golden_vectors(
    sky, model_folder, monkeypatch, tmp_path
):
    folder = shutil.copytree(model_folder, tmp_path / "golden")
    write_golden(folder)
    real = Model.embed
    monkeypatch.setattr(
        Model,
        "embed",
        lambda self, tokens, **kwargs: real(self, first_tokens(tokens, 256), **kwargs),
    )
    with pytest.raises((InfrastructureError, WeightsError)):
        embed(sky, folder)
    assert not (sky / f"{NAME}.properties").exists()
