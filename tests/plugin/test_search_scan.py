"""What one scan of a file rests on: bounds of the fast cosines, floors, memory let go of."""

import gc
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search import best, half_cosines, metrics, partitions, search
from skyvec.search.metrics import Scorer
from skyvec.search.scan import LeafTask, Question, scan
from skyvec.stage.leaf_writer import LeafWriter
from skyvec.vector_pages.opening import open_vectors
from skyvec_schemas.errors import ContractError

FIRST = np.zeros(300, np.int64)


@pytest.fixture
def numkong():
    pytest.importorskip("numkong")
    assert half_cosines.by_numkong(), "NumKong fails the trial on this processor"


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.usefixtures("numkong")
def test_cosines_of_halves_never_fall_below_the_exact_ones(scale, offset):
    rng = np.random.default_rng(2)
    values = ((rng.normal(size=(300, 768)) + offset) * scale).astype(np.float16)
    for query in (rng.normal(size=768) + offset, values[7].astype(np.float64), np.ones(768)):
        scorer = Scorer(query[None], "cosine")
        scores, exact = scorer.score(values), scorer.exact(values, FIRST)
        assert (scores.upper[:, 0] >= exact).all()
        assert (scores.kth_lowest(10) <= np.sort(exact)[-10]).all()
        sure = np.isfinite(scores.slack)
        assert sure.sum() >= 299
        # The query rounded to float16, beside the rounding of sums.
        assert (scores.upper[sure, 0] - exact[sure]).max() < 1e-3


@pytest.mark.usefixtures("numkong")
def test_halves_without_a_direction_are_told_from_vectors():
    values = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float16)
    values[0, 3], values[1, 39], values[2, 0], values[3] = np.nan, np.inf, -np.inf, 0
    values[4, 1:] = 0
    query = np.zeros((1, 40))
    query[0, 2] = 1
    scores = Scorer(query, "cosine").score(values)
    assert np.isinf(scores.upper[:5]).all(), "none of them may be left out unseen"
    assert np.isfinite(scores.lengths).tolist() == [False, False, False, True, True, True]
    assert scores.lengths[3] == 0
    assert np.allclose(scores.lengths[4], abs(float(values[4, 0])))


@pytest.mark.usefixtures("numkong")
@pytest.mark.parametrize("odd", [None, 0.0, np.nan, np.inf])
def test_rows_are_left_unseen_only_if_all_are_far_and_all_are_vectors(odd):
    rng = np.random.default_rng(3)
    values, query = rng.normal(size=(500, 64)).astype(np.float16), rng.normal(size=(1, 64))
    if odd is not None:
        values[17] = odd
    scorer = Scorer(query, "cosine")
    best = np.nanmax(scorer.exact(np.delete(values, 17, 0), np.zeros(499, np.int64)))
    for least in (-1.0, best - 1e-3, best):
        assert scorer.score(values, np.array([least])) is not None
    assert (scorer.score(values, np.array([best + 0.01])) is None) == (odd is None)


def test_a_kernel_is_not_used_that_sums_in_float16_or_hides_what_is_no_number():
    def exact(rows, query):
        rows, query = rows.astype(np.float32), query[0].astype(np.float32)
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
            return 1 - (rows @ query) / lengths

    def coarse(rows, query):
        return exact(rows, query).astype(np.float16).astype(np.float32)

    def silent(rows, query):
        return np.nan_to_num(exact(rows, query), nan=0.5)

    assert half_cosines._trial(exact)
    assert not half_cosines._trial(coarse)
    assert not half_cosines._trial(silent)


@pytest.mark.usefixtures("numkong")
def test_answers_are_the_same_without_numkong(embedded, monkeypatch):
    vector = np.random.default_rng(3).normal(size=32)
    used = search(embedded, vector=vector, k=20).table
    monkeypatch.setattr(metrics, "by_numkong", lambda: None)
    assert search(embedded, vector=vector, k=20).table.equals(used)


def candidates(*scores):
    count = len(scores)
    return best.Candidates(
        query=np.zeros(count, np.int64), score=np.array(scores, float), row=np.arange(count)
    )


def test_the_floor_is_the_kth_best_of_all_files_together():
    floor = best.Floor(1, 3)
    for scores in ((5.0, 1.0), (4.0,), (3.0, 2.0)):
        floor.add(candidates(*scores))
    assert floor.scores.tolist() == [3.0]
    floor.add(candidates(2.0))
    assert floor.scores.tolist() == [3.0]
    assert floor.reached_by(candidates(3.5, 2.9, 3.0)).score.tolist() == [3.5, 3.0]


@pytest.fixture
def asked(embedded):
    """A leaf of its own, and a question to it."""
    vectors = VectorCatalog.open(embedded)
    info = vectors.release.catalog.catalog_info
    question = Question(
        queries=np.ones((1, 32)), metric="cosine", k=3, column=vectors.name,
        id_column=vectors.id_column, ra_column=info.ra_column, dec_column=info.dec_column,
    )  # fmt: skip
    return LeafTask(place=0, path=vectors.release.leaf(vectors.release.pixels[0])), question


@pytest.fixture
def replaced(asked, tmp_path):
    """The same question to a copy, and what puts a file of other ids in its place."""
    task, question = asked
    copy, other = tmp_path / "leaf.parquet", tmp_path / "other.parquet"
    shutil.copy(task.path, copy)
    table = pq.read_table(copy)
    place = table.schema.get_field_index(question.id_column)
    backwards = table.column(place).take(pa.array(np.arange(len(table))[::-1]))
    table = table.set_column(place, table.schema.field(place), backwards)
    plain = f"{question.column}.list.element"
    with LeafWriter(other, table.schema, plain=plain, unique=frozenset()) as writer:
        writer.write(table)
    return LeafTask(place=0, path=copy), question, partial(other.replace, copy)


def test_ids_are_those_of_the_file_that_was_scanned(replaced):
    task, question, replace = replaced
    ids = pq.read_table(task.path).column(question.id_column)
    answer = scan(task, question)
    replace()
    with answer.file:
        told = answer.table(answer.rows, question)
    assert told.column("id").to_pylist() == [ids[row].as_py() for row in answer.rows.row.tolist()]
    assert pq.read_table(task.path).column(question.id_column) != ids, "it was replaced"


def test_a_file_that_is_written_again_during_the_scan_is_refused(replaced, monkeypatch):
    task, question, replace = replaced

    def late(path, column, *, file):
        replace()
        return open_vectors(path, column, file=file)

    monkeypatch.setattr("skyvec.search.scan.open_vectors", late)
    with pytest.raises(ContractError, match="changed while it was read"):
        scan(task, question)


def test_answers_do_not_depend_on_how_many_files_stay_open(embedded, monkeypatch):
    vectors = np.random.default_rng(3).normal(size=(3, 32))
    whole = search(embedded, vector=vectors, k=20).table
    monkeypatch.setattr(partitions, "_OPEN", 1)
    assert len(VectorCatalog.open(embedded).release.pixels) > 1
    assert search(embedded, vector=vectors, k=20).table.equals(whole)


def test_a_scan_leaves_nothing_for_the_collector(asked):
    """Memory of one file after the other would add up until Python looks for rings."""
    task, question = asked
    gc.collect()
    gc.disable()
    try:
        scan(task, question)
        assert not [one for one in gc.get_objects() if type(one) is Scorer]
    finally:
        gc.enable()


@pytest.mark.usefixtures("numkong")
def test_rows_that_do_not_lie_together_have_their_own_cosines():
    wide = np.random.default_rng(4).normal(size=(40, 96)).astype(np.float16)
    scorer = Scorer(np.ones((1, 32)), "cosine")
    for rows in (wide[:, 8:40], wide[::3, :32], wide[::-1, 64:]):
        exact = scorer.exact(np.ascontiguousarray(rows), np.zeros(len(rows), np.int64))
        off = scorer.score(rows).upper[:, 0] - exact
        assert (off >= 0).all()
        assert off.max() < 1e-3
