"""Precision beside prevalence: right counts, and labels that are refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import beta

from skyvec.answers.answer import Answer
from skyvec.answers.catalog_scores import catalog_scores
from skyvec.answers.precision import Precision
from skyvec.answers.scores import KEPT, ScoreSampler
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.stage.run import run
from skyvec_schemas.errors import ConfigurationError, MissingColumnError


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, model_folder, factory):
    """60 objects: a class that 12 of 50 labelled ones have, and one object without a vector."""
    folder = tmp_path_factory.mktemp("labelled")
    table = factory.survey_table(60)
    rng = np.random.default_rng(0)
    kind = np.array(["SER"] * 12 + ["PSF"] * 38 + [""] * 10)
    kinds = pa.array([k or None for k in rng.permutation(kind).tolist()])
    table = table.append_column("KIND", kinds)
    cutouts = [None, *(factory.cutout(i) for i in range(1, 60))]
    table = table.set_column(table.column_names.index("image"), "image", factory.images(cutouts))
    for name in [n for n in table.column_names if n.startswith(("FLUX", "SHAPE", "EBV"))]:
        values = table.column(name).to_numpy().copy()
        values[0] = np.nan
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    collection = factory.write_collection(table, folder / "sky")
    run(collection, model=model_folder, workers=0)
    return collection, table


def answer_of(collection, table):
    vectors = VectorCatalog.open(collection)
    return Answer(
        table=table.select(["object_id", "ra", "dec"]), id_column="object_id", catalog=collection,
        extension=vectors.name, fingerprint=vectors.provenance.fingerprint(),
    )  # fmt: skip


def test_precision_stands_beside_prevalence(labelled):
    collection, table = labelled
    kinds = np.array(table.column("KIND").to_pylist(), object)
    rows = np.r_[np.flatnonzero(kinds == "SER")[:6], np.flatnonzero(kinds == "PSF")[:2],
                 np.flatnonzero(kinds == None)[:2]]  # noqa: E711  # fmt: skip
    rows = rows[rows != 0]
    found = answer_of(collection, table.take(rows)).judged("KIND == 'SER'").precision
    there = np.arange(60) != 0  # the first object has no vector, so it was not searched
    assert found.searched == 59
    assert found.labelled == int(sum(kinds[there] != None))  # noqa: E711
    assert found.positives == int(sum(kinds[there] == "SER"))
    chosen = kinds[rows]
    assert (found.rows, found.judged, found.hits) == (
        len(rows), int(sum(chosen != None)), int(sum(chosen == "SER")),  # noqa: E711
    )  # fmt: skip
    assert found.precision == found.hits / found.judged
    assert found.lift == pytest.approx(found.precision / (found.positives / found.labelled))
    lines = found.lines
    assert list(lines) == [f"precision at {len(rows)}", "prevalence", "lift", "without a label"]
    assert f"of {found.labelled} labelled" in lines["prevalence"]


def test_a_table_of_labels_says_the_same_as_the_column(labelled):
    collection, table = labelled
    wanted = pa.array([None if k is None else k == "SER"
                       for k in table.column("KIND").to_pylist()])  # fmt: skip
    labels = pa.table({"object_id": table.column("object_id"), "serendipity": wanted})
    answer = answer_of(collection, table.slice(5, 20))
    ours, theirs = answer.judged(labels).precision, answer.judged("KIND == 'SER'").precision
    assert ours == Precision(**{**theirs.to_json(), "wanted": "serendipity"})
    assert (
        answer.judged(labels.to_pandas().dropna().astype({"serendipity": bool})).precision == ours
    )


def test_prevalence_is_that_of_what_was_searched(labelled):
    collection, table = labelled
    ids = table.column("object_id").combine_chunks()
    found = answer_of(collection, table.slice(1, 5)).judged("KIND == 'SER'", among=ids.slice(1, 20))
    kinds = table.column("KIND").to_pylist()[1:21]
    assert (found.precision.searched, found.precision.positives) == (20, kinds.count("SER"))


def test_prevalence_without_the_filters_says_so(labelled):
    collection, table = labelled
    answer = replace(answer_of(collection, table.slice(1, 5)), question={"cone": "20,0,90000"})
    lines = answer.judged("KIND == 'SER'").precision.lines
    assert "in the whole extension, without the filters" in lines["prevalence"]
    ids = table.column("object_id").combine_chunks()
    lines = answer.judged("KIND == 'SER'", among=ids.slice(1, 20)).precision.lines
    assert "in what was searched" in lines["prevalence"]


def test_a_page_shows_both_or_neither(labelled):
    collection, table = labelled
    page = answer_of(collection, table.slice(1, 8)).judged("KIND == 'SER'").gallery(shown=2)
    assert page.index("precision at 8") < page.index("prevalence") < page.index("lift")


def test_what_nobody_has_gives_no_lift(labelled):
    collection, table = labelled
    found = answer_of(collection, table.slice(1, 8)).judged("KIND == 'QSO'").precision
    assert (found.positives, found.precision) == (0, 0)
    assert np.isnan(found.lift)
    assert found.lines["lift"].startswith("cannot be told")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("NOPE > 1", MissingColumnError, "no column NOPE.*It has .*KIND"),
        ("KIND ==", ConfigurationError, "is no expression over columns"),
        ("Z + 1", ConfigurationError, "gives float32, not true or false"),
        ("KIND > 3", ConfigurationError, "cannot be evaluated"),
        ("@os > 1", ConfigurationError, "is no expression over columns"),
        (pa.table({"object_id": [1], "x": [True]}), ConfigurationError, "no object that was searc"),
        (pa.table({"x": [True]}), MissingColumnError, "needs 'object_id' and one column"),
        (pa.table({"object_id": [1], "x": [0.5]}), ConfigurationError, "is double, not true or"),
        (pd.DataFrame({"object_id": [1], "x": [True], "y": [True]}), MissingColumnError, "wanted="),
    ],
)
def test_labels_that_say_nothing_are_refused(labelled, labels, error, message):
    collection, table = labelled
    with pytest.raises(error, match=message):
        answer_of(collection, table.slice(1, 4)).judged(labels)


def test_precision_survives_a_file(labelled, tmp_path):
    collection, table = labelled
    answer = answer_of(collection, table.slice(1, 8)).judged("KIND == 'SER'")
    for suffix in (".parquet", ".vot", ".fits", ".csv"):
        assert Answer.load(answer.save(tmp_path / f"a{suffix}")).precision == answer.precision


# ---- numbers


def precision(hits, judged, positives=100, labelled=1000):
    return Precision(wanted="x", rows=judged, judged=judged, hits=hits, labelled=labelled,
                     positives=positives, searched=labelled)  # fmt: skip


def test_the_interval_is_wilsons():
    # Newcombe (1998), table I: 0 of 20 and 1 of 29.
    assert precision(0, 20).interval == pytest.approx((0, 0.1611), abs=1e-4)
    assert precision(1, 29).interval == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert precision(0, 0).interval == (0, 1)


def test_the_interval_covers():
    """Averaged over shares, Wilson's interval holds the truth as often as it says."""
    rng = np.random.default_rng(0)
    shares = beta(1, 1).rvs(3000, random_state=rng)
    held = 0
    for share in shares:
        low, high = precision(int(rng.binomial(20, share)), 20).interval
        held += low <= share <= high
    assert abs(held / len(shares) - 0.95) < 0.015


def test_chance_is_that_of_a_blind_draw():
    rng = np.random.default_rng(1)
    population = np.r_[np.ones(100), np.zeros(900)]
    drawn = np.array([rng.choice(population, 20, replace=False).sum() for _ in range(4000)])
    assert precision(4, 20).chance == pytest.approx((drawn >= 4).mean(), abs=0.02)
    assert precision(0, 20).chance == 1


# ---- scores


def test_a_sample_is_fair_and_does_not_grow():
    sampler = ScoreSampler(kept=2000)
    for start in range(0, 100_000, 1000):
        sampler.add(np.arange(start, start + 1000, dtype=np.float32))
    sampler.add(np.array([np.nan, np.inf], np.float32))
    sample = sampler.sample()
    assert (len(sample.values), sample.searched) == (2000, 100_000)
    deciles = np.quantile(sample.values, np.arange(0.1, 1, 0.1))
    assert np.allclose(deciles, np.arange(10_000, 100_000, 10_000), atol=4000)


def test_a_small_catalog_is_scored_whole(labelled):
    collection, _ = labelled
    vectors = VectorCatalog.open(collection)
    stored = np.concatenate([part.vectors for part in vectors.parts()]).astype(np.float64)
    sample = catalog_scores(vectors, stored[3])
    expected = stored @ stored[3] / np.linalg.norm(stored, axis=1) / np.linalg.norm(stored[3])
    assert np.allclose(sample.values, np.sort(expected), atol=1e-5)
    assert (sample.searched, KEPT) == (59, 10_000)
    centre = stored.mean(0)
    centred = catalog_scores(vectors, stored[3], center=centre).values
    own = stored - centre
    expected = own @ own[3] / np.linalg.norm(own, axis=1) / np.linalg.norm(own[3])
    assert np.allclose(centred, np.sort(expected), atol=1e-3)


def test_a_large_catalog_is_sampled(labelled):
    collection, _ = labelled
    vectors = VectorCatalog.open(collection)
    query = next(iter(vectors.parts())).vectors[0].astype(np.float32)
    sample = catalog_scores(vectors, query, rows=20)
    assert len(sample.values) == 20


def test_labels_are_read_without_pixels(labelled, monkeypatch):
    collection, table = labelled
    read = []
    plain = pq.ParquetFile.iter_batches

    def spied(self, *arguments, columns=None, **options):
        read.extend(columns or ["everything"])
        return plain(self, *arguments, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spied)
    answer_of(collection, table.slice(1, 4)).judged("KIND == 'SER'")
    assert set(read) == {"object_id", "KIND", "small_v1_status"}
