"""Attentive probes: what they learn from tokens, what they are bound to, what they refuse."""

import shutil
from types import SimpleNamespace

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from skyvec.commands.probe import probe_app
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.models import load_model
from skyvec.probes import attentive, token_inputs
from skyvec.probes.contexts import Contexts, ContextSpool
from skyvec.probes.probe import Probe
from skyvec.probes.report import report_lines
from skyvec.probes.scores import r_squared
from skyvec.probes.token_inputs import TokenInputs
from skyvec.stage.run import run
from skyvec.surveys import chosen_survey
from skyvec_core.weights import load_transformer, save_transformer
from skyvec_schemas.errors import ConfigurationError, MissingColumnError, WeightsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY
from skyvec_schemas.vectors import tensor_values

ROWS = 300
NULL = slice(7, 12)
"""Rows of the table of which nothing was observed."""
LEVELS = np.array([1.0, 3.0, 9.0, 27.0], np.float32)
IDS = ["object_id", "ra", "dec"]
ENOUGH = 100
"""Steps after which a probe knows most of what there is to know here."""
TOKENS, VECTORS = "tokens_v1", "vec_v1"


def sky_table(factory):
    """Fluxes of few values, so that an encoder of random weights shows the same one again."""
    rng = np.random.default_rng(0)
    level, size = rng.integers(0, 4, ROWS), rng.integers(0, 3, ROWS)
    same = {s.name: np.ones(ROWS, np.float32) for s in LEGACY_SURVEY.scalars}
    columns = same | {"FLUX_R": LEVELS[level], "SHAPE_R": 1 + size.astype(np.float32)}
    hidden = np.zeros(ROWS, np.bool_)
    hidden[NULL] = True
    scalars = {name: pa.array(values, mask=hidden) for name, values in columns.items()}
    truth = level + 0.3 * rng.normal(size=ROWS)
    plain = factory.survey_table(ROWS, cutouts=[None] * ROWS).select([*IDS, "Z"])
    more = {"TRUTH": truth, "OTHER": 5.0 - 2 * size, "KIND": np.where(level > 1, "SER", "DEV"),
            "ODD": np.where(np.arange(ROWS) == 0, 1.0, 0.0)}  # fmt: skip
    for name, values in (scalars | more).items():
        plain = plain.append_column(name, pa.array(values))
    return plain


@pytest.fixture(scope="module")
def model(model_folder, tmp_path_factory):
    """``small`` with tokens as loud as their places, as training makes them."""
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("models") / "loud")
    transformer = load_transformer(folder)
    with torch.no_grad():
        transformer.token_table.weight *= 20
    save_transformer(transformer, folder)
    return folder


@pytest.fixture(scope="module")
def sky(tmp_path_factory, factory, model):
    """A collection with tokens, and with the vectors that the stage makes of them."""
    collection = factory.write_collection(
        sky_table(factory), tmp_path_factory.mktemp("attentive") / "sky"
    )
    survey = chosen_survey("legacysurvey", id_column=None, image_column=None, without="image")
    made = {"model": model, "workers": 0, "max_bad": 1}
    run(collection, product="tokens", name=TOKENS, survey=survey, **made)
    run(collection, tokens=TOKENS, name=VECTORS, **made)
    return collection


@pytest.fixture(scope="module")
def retrained(model, tmp_path_factory, factory):
    """Another transformer over the same codecs."""
    folder = factory.save_model(tmp_path_factory.mktemp("models") / "retrained", seed=5)
    shutil.rmtree(folder / "codecs")
    shutil.copytree(model / "codecs", folder / "codecs")
    return folder


def learnt(sky, model, target="TRUTH", *, steps=5, labels=None, workers=2, **settings):
    """A probe of few steps, where it does not matter what it learnt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attentive, "EPOCHS", 1)
        patch.setattr(attentive, "LEAST_STEPS", steps)
        return Probe(target, kind="attentive", **settings).fit(
            sky, extension=TOKENS, model=model, labels=labels, workers=workers
        )


@pytest.fixture(scope="module")
def probe(sky, model):
    return learnt(sky, model, name="guess", steps=ENOUGH)


@pytest.fixture
def inputs(sky, model):
    return TokenInputs.open(VectorCatalog.open(sky, TOKENS), model)


def truth_of(sky, ids):
    primary = lsdb.open_catalog(sky, columns=["object_id", "TRUTH"]).compute(progress_bar=False)
    return primary.set_index("object_id")["TRUTH"].reindex(ids).to_numpy()


def test_it_learns_from_tokens_what_they_say(sky, probe, model):
    metrics, record = probe.metrics["TRUTH"], probe.record
    assert metrics["r2"] > 0.8
    assert metrics["r2_low"] < metrics["r2"] < metrics["r2_high"]
    assert metrics["r2_shuffled"] < 0.1
    assert probe.intervals["TRUTH"].coverage == pytest.approx(0.9, abs=0.06)
    model = load_model(model)
    assert (record["model"], record["model_digest"]) == ("loud", model.digest)
    assert record["folds"] == 5
    assert probe.fingerprint == VectorCatalog.open(sky, TOKENS).provenance.fingerprint()
    found = probe.apply(sky)
    assert found.model == "loud"
    assert found.table.column_names == [*IDS, "guess", "guess_low", "guess_high", "guess_width"]
    truth = truth_of(sky, found.table.column("object_id").to_pylist())
    predicted, low, high = (found.table.column(c).to_numpy() for c in found.table.column_names[3:6])
    assert r_squared(truth, predicted) > 0.8
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.9, abs=0.06)


def test_shuffled_labels_score_chance(sky, model, factory):
    table = sky_table(factory).select(["object_id", "TRUTH"])
    mixed = np.random.default_rng(1).permutation(table.column("TRUTH").to_numpy())
    labels = table.set_column(1, "TRUTH", pa.array(mixed))
    found = learnt(sky, model, labels=labels, steps=ENOUGH).metrics["TRUTH"]
    assert found["r2"] < 0.05
    assert abs(found["r2"] - found["r2_shuffled"]) < 0.3


def test_chance_is_unknown_where_shuffled_labels_teach_nothing(sky, model, monkeypatch):
    usual = attentive.chance

    def of_one_fold(mixed, folds, **options):
        return usual(mixed, np.zeros_like(folds), **options)

    monkeypatch.setattr("skyvec.probes.context_fitting.chance", of_one_fold)
    number, word = learnt(sky, model), learnt(sky, model, "KIND")
    assert np.isnan(number.metrics["TRUTH"]["r2_shuffled"])
    assert "labels shuffled: unknown" in report_lines(number)["R2"]
    assert "labels shuffled: unknown" in report_lines(word)["AUROC"]


def test_the_mean_of_the_contexts_is_the_vector_that_the_stage_writes(sky, inputs):
    vectors, rows = VectorCatalog.open(sky, VECTORS), 0
    for pixel in vectors.release.pixels:
        table = pq.read_table(vectors.release.leaf(pixel), partitioning=None)
        there = table.column(VECTORS).is_valid().to_numpy()
        stored = tensor_values(table.column(VECTORS), missing=np.nan).astype(np.float32)
        assert np.array_equal(inputs.present(pixel), there)
        for found, contexts in inputs.read(pixel, np.ones(len(table), np.bool_)):
            means = torch.stack([context.float().mean(0) for context in contexts]).numpy()
            assert np.allclose(means, stored[found], atol=3e-3)
            assert {context.shape for context in contexts} == {(len(LEGACY_SURVEY.scalars), 32)}
            assert there[found].all()
            rows += len(found)
    assert rows == ROWS - 5


def test_labels_that_the_extension_holds_for_training_are_no_input(sky, inputs, model):
    assert "tok_z" in inputs.catalog.release.schema.names
    assert "tok_z" not in inputs.tokens.keys
    assert learnt(sky, model, "Z").record["notes"][0].startswith("5 labelled rows")


def test_each_fold_is_judged_by_labels_that_its_pool_has_not_seen(sky, model, monkeypatch):
    """Every pool gets raw labels of its own part, and standardizes these."""
    seen, usual = [], attentive.fit_attention_pool

    def noted(pool, contexts, labels, **options):
        usual(pool, contexts, labels, **options)
        seen.append((len(labels), float(pool.target_mean[0]), float(labels.mean())))

    monkeypatch.setattr(attentive, "fit_attention_pool", noted)
    monkeypatch.setattr("skyvec.probes.context_fitting.SHUFFLED_ROWS", 100)
    whole = learnt(sky, model)
    used = whole.record["sample"]
    parts = [rows for rows, _, _ in seen if 100 < rows < used]
    assert len(parts) == 5
    assert sum(used - rows for rows in parts) == used
    assert all(mean == pytest.approx(own, abs=1e-5) for _, mean, own in seen)
    assert len({mean for _, mean, _ in seen}) > 5


def test_a_probe_comes_back_with_the_same_bits(sky, probe, inputs, tmp_path):
    folder = probe.save(tmp_path / "p")
    assert {f.name for f in folder.iterdir()} == {"probe.json", "probe.safetensors"}
    loaded = Probe.load(folder)
    assert loaded.get_params() == probe.get_params()
    assert loaded.intervals == probe.intervals
    pixel = inputs.catalog.release.pixels[0]
    _, contexts = next(inputs.read(pixel, np.ones(len(inputs.present(pixel)), np.bool_)))
    assert np.array_equal(loaded.predict(contexts), probe.predict(contexts))
    # What an object is told does not depend on its company.
    assert np.array_equal(loaded.predict(contexts[3:5]), probe.predict(contexts)[3:5])
    assert loaded.apply(sky).table.equals(probe.apply(sky).table)


def test_the_seed_fixes_it_whatever_the_number_of_threads(sky, model):
    settings = ({"workers": 1}, {"workers": 3}, {"seed": 1})
    one, other, different = (learnt(sky, model, **more).attentive.pool for more in settings)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(one.queries, different.queries)


def test_lazy_columns_are_what_apply_says(sky, probe):
    catalog = probe.apply(lsdb.open_catalog(sky, columns=IDS))
    assert isinstance(catalog, lsdb.Catalog)
    lazy = catalog.compute(progress_bar=False).set_index("object_id")
    table = probe.apply(sky).table.to_pandas().set_index("object_id")
    assert len(lazy) == ROWS
    assert lazy["guess"].isna().sum() == 5
    both = lazy.dropna(subset="guess")
    for column in ("guess", "guess_low", "guess_high", "guess_width"):
        assert np.array_equal(both[column], table[column].reindex(both.index))
    few = probe.apply(sky, where="guess > 2").table
    lazily = catalog.query("guess > 2").compute(progress_bar=False)
    assert set(few.column("object_id").to_pylist()) == set(lazily["object_id"])
    assert 0 < len(few) < ROWS - 5


def test_rows_without_tokens_are_counted_and_told(sky, probe):
    record = probe.record
    assert (record["rows"], record["labelled"], record["used"]) == (ROWS, ROWS, ROWS - 5)
    assert (record["null_vectors"], record["sample"]) == (5, ROWS - 5)
    assert "5 labelled rows have no vector" in record["notes"][0]
    found = probe.apply(sky)
    assert len(found) == ROWS - 5
    assert found.question["rows without a vector, left out"] == "5"


def test_contexts_of_a_bounded_sample_lie_on_disk_and_some_rows_in_memory(sky, model, monkeypatch):
    held, spools = [], []
    put, close = ContextSpool.put, ContextSpool.close
    monkeypatch.setattr(ContextSpool, "put", lambda s, rows: held.append(len(rows)) or put(s, rows))
    monkeypatch.setattr(ContextSpool, "close", lambda s: spools.append(s._end) or close(s))
    monkeypatch.setattr(token_inputs, "_TOGETHER", 16)
    found = learnt(sky, model, max_rows=100)
    assert found.record["sample"] <= 100
    assert f"a sample of {found.record['sample']} of {ROWS}" in found.record["notes"][-1]
    assert max(held) <= 16
    # 12 tokens each; lots give about as many rows as are asked for.
    assert [spools[0] <= 150 * 12, len(spools)] == [True, 1]
    assert sum(held) < ROWS / 2


def test_a_sample_does_not_depend_on_the_order_of_work(sky, model):
    one = learnt(sky, model, max_rows=100)
    again = learnt(sky, model, max_rows=100, workers=1)
    assert one.metrics == again.metrics


def test_words_are_classes_with_probabilities(sky, model, tmp_path):
    found = learnt(sky, model, "KIND", steps=ENOUGH)
    assert found.classes == ("DEV", "SER")
    assert found.metrics["auroc"] > 0.95
    assert found.metrics["auroc_shuffled"] == pytest.approx(0.5, abs=0.15)
    assert found.metrics["ece"] < 0.1
    loaded = Probe.load(found.save(tmp_path / "p"))
    assert loaded.temperature == found.temperature != 1
    table = loaded.apply(sky).table
    assert table.equals(found.apply(sky).table)
    both = sum(table.column(f"KIND_predicted_p_{c}").to_numpy() for c in ("DEV", "SER"))
    assert np.allclose(both, 1)
    lazy = loaded.apply(lsdb.open_catalog(sky, columns=IDS)).compute(progress_bar=False)
    assert lazy["KIND_predicted"].isna().sum() == 5
    with pytest.raises(MissingColumnError, match="'KIND' is not numeric"):
        learnt(sky, model, ("KIND", "TRUTH"))


def test_several_numbers_are_learnt_at_once(sky, model):
    found = learnt(sky, model, ("TRUTH", "OTHER"), steps=ENOUGH)
    assert found.metrics["TRUTH"]["r2"] > 0.7
    assert found.metrics["OTHER"]["r2"] > 0.9
    assert list(found.apply(sky, name="p").table.column_names)[3:5] == ["p_TRUTH", "p_TRUTH_low"]


def test_published_predictions_name_the_model_that_read_the_tokens(probe, sky, tmp_path, model):
    collection = shutil.copytree(sky, tmp_path / "sky")
    place = probe.publish(collection, "guess_v1", workers=2)
    catalog = lsdb.open_catalog(collection, columns=IDS).load_extension("guess_v1")
    found = catalog.compute(progress_bar=False)
    assert len(found) == ROWS
    assert found["guess"].isna().sum() == 5
    assert "skyvec_model=loud" in place.read_text()
    # Neither tokens nor predictions are vectors, whatever they are called.
    assert Probe("TRUTH").fit(collection, workers=1).extension == VECTORS
    with pytest.raises(ConfigurationError, match="holds 0 token extensions"):
        Probe("TRUTH", kind="attentive").fit(collection / "cat", model=model)


# ---- refusals


def test_another_model_is_refused_and_the_right_one_is_found_elsewhere(
    sky, probe, retrained, model, tmp_path
):
    with pytest.raises(ConfigurationError, match=r"learnt on contexts of loud \w+, this is retra"):
        probe.apply(sky, model=retrained)
    elsewhere = shutil.copytree(model, tmp_path / "moved")
    assert probe.apply(sky, model=elsewhere).table.equals(probe.apply(sky).table)
    # Tokens are the same under another transformer: a probe of its own is another probe.
    other = learnt(sky, retrained)
    assert other.fingerprint == probe.fingerprint
    assert other.record["model_digest"] != probe.record["model_digest"]


def test_a_model_that_is_gone_is_named(sky, model, tmp_path):
    moving = shutil.copytree(model, tmp_path / "moving")
    found = learnt(sky, moving)
    shutil.rmtree(moving)
    with pytest.raises(WeightsError, match="moving: neither a model of the package nor a folder"):
        found.apply(sky)


def test_tokens_of_other_inputs_are_refused(sky, probe, tmp_path, model):
    collection = shutil.copytree(sky, tmp_path / "sky")
    fewer = chosen_survey("legacysurvey", id_column=None, image_column=None, without="image,EBV")
    run(collection, model=model, workers=0, product="tokens", name="fewer", survey=fewer,
        max_bad=1)  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"learnt on tokens \w+, these are"):
        probe.apply(collection, extension="fewer")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"extension": VECTORS}, ConfigurationError, "is no token extension.*skyvec tokenize"),
        ({"extension": "nothing"}, ConfigurationError, "no extension 'nothing'"),
        ({"model": "other"}, ConfigurationError, r"tokens of tok_\w+.* made by other codecs than"),
        ({"model": "no-such-model"}, WeightsError, "no-such-model: neither a model of the package"),
        ({"target": "FLUX_R"}, ConfigurationError, r"made the tokens: FLUX_R \(the model read FLU"),
        ({"target": "ODD"}, ConfigurationError, "ODD: constant but for one fold of the sky"),
        ({"client": object()}, ConfigurationError, "is not used by an attentive probe"),
        ({"kind": "ridge"}, ConfigurationError, "model .*: is not asked for: a ridge probe"),
        ({"kind": "ridge", "model": None}, ConfigurationError, "holds tokens, this kind of probe"),
        ({"where": "FLUX_R > 99"}, ConfigurationError, "only 0 rows"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(
    sky, model, other_model_folder, change, error, message
):
    asked = {"extension": TOKENS, "model": model, "workers": 1} | change
    asked["model"] = other_model_folder if asked["model"] == "other" else asked["model"]
    target, kind = asked.pop("target", "TRUTH"), asked.pop("kind", "attentive")
    with pytest.raises(error, match=message):
        Probe(target, kind=kind).fit(sky, **asked)


def test_vectors_bridges_and_arrays_are_refused(sky, probe):
    with pytest.raises(ConfigurationError, match=r"is no token extension.*skyvec tokenize"):
        probe.apply(sky, extension=VECTORS)
    ends = SimpleNamespace(source=SimpleNamespace(extension=VECTORS),
                           target=SimpleNamespace(extension="older"))  # fmt: skip
    with pytest.raises(ConfigurationError, match="bridge from vec_v1 to older: leads from vectors"):
        probe.apply(sky, bridge=ends)
    with pytest.raises(ConfigurationError, match="a probe of kind 'attentive' loses on a bridge"):
        probe.singles()
    with pytest.raises(ConfigurationError, match=r"one row has shape \(32,\).*contexts_of_objects"):
        probe.predict(np.zeros((4, 32)))
    with pytest.raises(ConfigurationError, match=r"one row has shape \(3, 16\)"):
        probe.predict([torch.zeros(3, 16)])
    with pytest.raises(ConfigurationError, match=r"one row has shape \(0, 32\)"):
        probe.predict([torch.zeros(0, 32)])
    with pytest.raises(ConfigurationError, match="not fitted"):
        Probe("TRUTH", kind="attentive").predict([torch.zeros(3, 32)])


# ---- the spool, and commands


def test_a_spool_gives_back_what_went_in_from_any_thread():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 8, generator=generator).half() for n in (3, 1, 7, 2)]
    spool = ContextSpool(8)
    late, early = spool.put(rows[2:]), spool.put(rows[:2])
    assert spool.put([]).shape == (0, 2)
    contexts = Contexts(spool, np.concatenate([early, late]))
    assert len(contexts) == 4
    assert all(torch.equal(a, b) for a, b in zip(contexts, rows, strict=True))
    assert torch.equal(contexts.of(np.array([2, 0]))[0], rows[2])
    spool.close()


def test_the_commands_name_the_model(sky, model, tmp_path, monkeypatch):
    monkeypatch.setattr(attentive, "EPOCHS", 1)
    monkeypatch.setattr(attentive, "LEAST_STEPS", 5)
    runner, folder = CliRunner(), str(tmp_path / "p")
    fit = runner.invoke(
        probe_app,
        ["fit", str(sky), "--target", "TRUTH", "--kind", "attentive", "--extension", TOKENS,
         "--model", str(model), "--name", "guess", "--out", folder],
    )  # fmt: skip
    assert fit.exit_code == 0, fit.output
    assert "tokens_v1 read by loud" in fit.output
    assert "Intervals of TRUTH at 90% by prediction" in fit.output
    report = runner.invoke(probe_app, ["report", folder])
    assert fit.output.startswith(report.output)
    kept = tmp_path / "found.parquet"
    apply = runner.invoke(
        probe_app,
        ["apply", str(sky), "--probe", folder, "--where", "guess > -9", "--save", str(kept),
         "--model", str(model)],
    )  # fmt: skip
    assert apply.exit_code == 0, apply.output
    assert (pq.read_table(kept).column("guess").to_numpy() > -9).all()
