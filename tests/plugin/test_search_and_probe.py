"""Search and probe: right answers, and refusals that say why."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probe import Probe, cross_validate, r_squared, ridge
from skyvec.search import find_vector, search
from skyvec.stage.run import run
from skyvec_schemas.errors import ConfigurationError, MissingColumnError, WeightsError


def everything(collection):
    parts = list(VectorCatalog.open(collection).parts())
    ids = pa.concat_arrays([part.ids for part in parts]).to_pylist()
    return ids, np.concatenate([part.vectors for part in parts]).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_search_finds_what_brute_force_finds(embedded, metric):
    ids, vectors = everything(embedded)
    found = search(embedded, like=ids[5], k=7, metric=metric)
    centred = vectors - (vectors.astype(np.float64).mean(0) if metric == "cosine" else 0)
    if metric == "cosine":
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        expected = 1 - unit @ unit[5]
    else:
        expected = np.linalg.norm(centred - centred[5], axis=1)
    expected[5] = np.inf
    order = np.argsort(expected)[:7]
    assert np.allclose(found.column("distance").to_numpy(), expected[order], atol=1e-5)
    assert found.column("object_id").to_pylist() == [ids[i] for i in order]


def test_search_takes_ids_as_text_from_the_command_line(embedded):
    ids, _ = everything(embedded)
    assert search(embedded, like=str(ids[3]), k=3).equals(search(embedded, like=ids[3], k=3))


def test_more_neighbours_than_objects_returns_all_others(embedded):
    ids, _ = everything(embedded)
    found = search(embedded, like=ids[0], k=1000).column("object_id").to_pylist()
    assert sorted(found) == sorted(set(ids) - {ids[0]})


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"like": -1}, "no object -1 with a vector"),
        ({"vector": np.ones(3)}, r"has shape \(3,\), the vectors have 32 values"),
        ({}, "give either an id or a vector"),
        ({"like": 1, "k": 0}, "k = 0: must be at least 1"),
        ({"like": 1, "extension": "nope"}, r"no extension 'nope' \(there are: small_v1\)"),
    ],
)
def test_a_question_without_an_answer_says_why(embedded, question, message):
    with pytest.raises(ConfigurationError, match=message):
        search(embedded, **question)


def test_a_vector_belongs_to_its_id(embedded):
    ids, vectors = everything(embedded)
    catalog = VectorCatalog.open(embedded)
    assert all(np.array_equal(find_vector(catalog, ids[i]), vectors[i]) for i in (0, 31, 59))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, model_folder, factory):
    """A collection whose ``TRUTH`` is linear in the vectors; order 4 blocks over 40 degrees."""
    folder = tmp_path_factory.mktemp("labelled")
    table = factory.survey_table(60)
    first = factory.write_collection(table, folder / "first")
    run(first, model=model_folder, workers=0)
    ids, vectors = everything(first)
    truth = dict(zip(ids, vectors.astype(np.float64) @ np.linspace(-1, 1, 32), strict=True))
    order = [truth[i] for i in table.column("object_id").to_pylist()]
    second = factory.write_collection(
        table.append_column("TRUTH", pa.array(order)).append_column("FLAT", pa.array(np.ones(60))),
        folder / "second",
    )
    run(second, model=model_folder, workers=0)
    return second


def test_a_linear_truth_is_found_and_saved(labelled, tmp_path):
    probe = Probe("TRUTH").fit(labelled)
    assert probe.score.r2 > 0.9
    loaded = Probe.load(probe.save(tmp_path / "p"))
    predicted = loaded.apply(labelled)
    assert predicted.equals(probe.apply(labelled))
    truth = {}
    for leaf in (labelled / "cat/dataset").glob("Norder*/*/*.parquet"):
        for row in pq.read_table(
            leaf, columns=["object_id", "TRUTH"], partitioning=None
        ).to_pylist():
            truth[row["object_id"]] = row["TRUTH"]
    expected = np.array([truth[i] for i in predicted.column("object_id").to_pylist()])
    assert r_squared(expected, predicted.column("TRUTH_predicted").to_numpy()) > 0.95


def test_a_probe_refuses_the_vectors_of_another_model(labelled, other_model_folder, tmp_path):
    probe = Probe("TRUTH").fit(labelled)
    record = run(labelled, model=other_model_folder, out=tmp_path / "other", workers=0)
    with pytest.raises(ConfigurationError, match=r"learnt on vectors .* these are .* by other"):
        probe.apply(record.properties)


def test_a_target_that_is_no_column_lists_the_columns(labelled):
    with pytest.raises(MissingColumnError, match=r"no column 'REDSHIFT'.*FLUX_G"):
        Probe("REDSHIFT").fit(labelled)


def test_a_target_of_words_is_refused(make_collection, model_folder):
    collection = make_collection(TYPE=pa.array(["SER", "DEV"] * 6))
    run(collection, model=model_folder, workers=0)
    with pytest.raises(MissingColumnError, match=r"column 'TYPE' is not numeric\. Choose one of"):
        Probe("TYPE").fit(collection)


def test_a_constant_target_is_refused(labelled):
    with pytest.raises(ConfigurationError, match="is constant"):
        Probe("FLAT").fit(labelled)


def test_what_is_not_a_probe_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"not a probe .*Probe\.save"):
        Probe.load(tmp_path)


def test_shuffled_labels_score_chance():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 16)), rng.normal(size=400)
    _, score = cross_validate(features, labels, np.arange(400) // 20)
    assert score.r2 < 0.02
    assert score.r2_low < 0 < score.r2_high + 0.1


def test_a_fold_never_holds_one_block_on_both_sides():
    """Labels that are constants of their block cannot be learnt when whole blocks are left out."""
    rng = np.random.default_rng(0)
    blocks = np.arange(300) // 10
    features = np.eye(30)[blocks] + rng.normal(0, 0.01, (300, 30))
    labels = rng.normal(size=30)[blocks]
    predicted, score = cross_validate(features, labels, blocks, model=ridge())
    assert len(predicted) == 300
    assert score.r2 < 0.1
