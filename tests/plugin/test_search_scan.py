"""What one scan of a file rests on: bounds of the fast cosines, floors, memory let go of."""

import gc
import os
import shutil
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search import best, metrics, partitions, products_loop, scan, search
from skyvec.search.metrics import Scorer
from skyvec.search.products import fits, in_singles, products_of, widened
from skyvec.search.scan import LeafTask, Question, Scanner, _Scan
from skyvec.stage.leaf_writer import LeafWriter
from skyvec.vector_pages.known import KnownLeaf
from skyvec.vector_pages.pages import VectorPages
from skyvec_schemas.errors import ContractError


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("origin", [False, True])
def test_products_are_those_of_float64_up_to_rounding(dtype, origin):
    rng = np.random.default_rng(2)
    for rows, dim in ((1, 1), (300, 768), (7, 1029), (5, 3)):
        values = rng.normal(size=(rows, dim)).astype(dtype)
        query = rng.normal(size=dim).astype(np.float32)
        center = rng.normal(size=dim).astype(np.float32) if origin else None
        exact = values.astype(np.float64) - (0 if center is None else center)
        product, square = products_of(values, center, query)
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(query.astype(np.float64))
        assert (np.abs(product - exact @ query) <= 1e-6 * lengths).all()
        assert np.allclose(square, (exact**2).sum(axis=1), rtol=1e-5)
        if dtype == np.float16:
            wide, again = widened(values, center, np.empty(values.shape, np.float32))
            assert np.allclose(wide, exact, rtol=1e-5, atol=1e-6)
            assert np.allclose(again, square, rtol=1e-5)


def test_rows_of_another_width_than_the_query_are_refused(asked):
    values, query = np.ones((3, 8), np.float32), np.ones(9, np.float32)
    for rows, origin in ((values, None), (np.ones((3, 9), np.float32), values[0])):
        with pytest.raises(ValueError, match="values, a query of 9"):
            products_of(rows, origin, query)
    task, question = asked
    with pytest.raises(ContractError, match=r"Npix.*has vectors of 32 values, the query has 31"):
        Scanner(replace(question, queries=np.ones((1, 31)))).scan(task)


def test_loops_run_where_they_cannot_be_kept(monkeypatch):
    usual = products_loop.njit

    def njit(loop, *, cache=False, **options):
        if cache:
            raise RuntimeError("no locator available")
        return usual(loop, **options)

    monkeypatch.setattr(products_loop, "njit", njit)
    loop = products_loop._compiled(products_loop._widening)
    rows, squares = np.empty((2, 3), np.float32), np.empty(2, np.float32)
    loop(np.ones((2, 3), np.float32), None, rows, squares)
    assert squares.tolist() == [3, 3]


def test_every_float16_is_widened_to_its_own_value():
    bits = np.arange(1 << 16, dtype=np.uint16)
    product, square = products_of(bits.view(np.float16)[:, None], None, np.ones(1, np.float32))
    exact = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(product, exact, equal_nan=True)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(square, exact**2, equal_nan=True)
    assert np.array_equal(in_singles(bits.view(np.float16)[:, None])[:, 0], exact, equal_nan=True)


def test_rows_with_gaps_or_at_odd_places_are_left_to_others():
    wide = np.random.default_rng(4).normal(size=(40, 96)).astype(np.float16)
    at_odd_places = np.frombuffer(b"x" + wide.tobytes(), np.float16, offset=1).reshape(40, 96)
    scorer = Scorer(np.ones((1, 96)), "cosine")
    for rows in (wide, at_odd_places, wide[::2], np.asfortranarray(wide)):
        assert fits(rows) == (rows is wide)
        off = scorer.score(rows).upper[:, 0] - scorer.exact(rows, np.zeros(len(rows), np.int64))
        assert (off >= 0).all()
        assert off.max() < 1e-3
    assert not fits(wide.astype(np.float64))


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_vectors_without_a_direction_are_told_from_others(metric):
    values = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float16)
    values[0, 3], values[1, 39], values[2, 0], values[3] = np.nan, np.inf, -np.inf, 0
    values[4, 1:] = 0
    query = np.zeros((1, 40))
    query[0, 2] = 1
    scores = Scorer(query, metric).score(values)
    assert np.isinf(scores.upper[:3]).all(), "none of them may be left out unseen"
    assert np.isfinite(scores.lengths).tolist() == [False, False, False, True, True, True]
    if metric == "cosine":
        assert scores.lengths[3] == 0
        assert np.allclose(scores.lengths[4], abs(float(values[4, 0])))


ONE = {"vector": np.random.default_rng(3).normal(size=32), "k": 20}


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_answers_do_not_depend_on_who_multiplies(embedded, monkeypatch, metric):
    used = search(embedded, metric=metric, **ONE).table
    monkeypatch.setattr(metrics, "fits", lambda _: False)
    assert search(embedded, metric=metric, **ONE).table.equals(used)


@pytest.mark.parametrize("where", [None, "Z < 0.5"])
@pytest.mark.parametrize("metric", metrics.METRICS)
def test_answers_do_not_depend_on_how_many_are_looked_at_together(
    embedded, monkeypatch, metric, where
):
    used = search(embedded, metric=metric, where=where, **ONE).table
    assert len(used) > 10
    for look, block in ((7, 5), (1, 1), (1 << 15, 9)):
        monkeypatch.setattr(scan, "LOOK_ROWS", look)
        monkeypatch.setattr(scan, "BLOCK_ROWS", block)
        assert search(embedded, metric=metric, where=where, **ONE).table.equals(used)
    monkeypatch.setattr(scan, "AVAILABLE", False)
    assert search(embedded, metric=metric, where=where, **ONE).table.equals(used)


def test_a_vector_is_read_twice_only_where_it_may_count(embedded, monkeypatch):
    usual, read = VectorPages.rows, []

    def watched(self, rows, memory):
        read.extend(rows.tolist())
        return usual(self, rows, memory)

    monkeypatch.setattr(VectorPages, "rows", watched)
    search(embedded, vector=ONE["vector"], k=2, threads=1)
    vectors = VectorCatalog.open(embedded)
    rows = sum(pq.read_metadata(vectors.release.leaf(p)).num_rows for p in vectors.release.pixels)
    assert 2 <= len(read) < rows / 4


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
    answer = Scanner(question).scan(task)
    replace()
    with closing(answer.leaf):
        told = answer.table(answer.rows, question)
    assert told.column("id").to_pylist() == [ids[row].as_py() for row in answer.rows.row.tolist()]
    assert pq.read_table(task.path).column(question.id_column) != ids, "it was replaced"


def test_a_file_that_is_replaced_as_the_scan_begins_is_searched_as_it_was(replaced, monkeypatch):
    task, question, replace = replaced
    with closing(Scanner(question).scan(task).leaf) as leaf:
        ids = leaf.file.read(columns=[question.id_column])
    usual = KnownLeaf.vectors

    def late(leaf):
        replace()
        return usual(leaf)

    monkeypatch.setattr(KnownLeaf, "vectors", late)
    with closing(Scanner(question).scan(task).leaf) as leaf:
        assert leaf.file.read(columns=[question.id_column]) == ids


def test_a_file_that_is_written_to_during_the_scan_is_refused(replaced, monkeypatch):
    task, question, _ = replaced
    usual = KnownLeaf.vectors

    def late(leaf):
        os.utime(task.path, (1, 1))
        return usual(leaf)

    monkeypatch.setattr(KnownLeaf, "vectors", late)
    with pytest.raises(ContractError, match="changed while it was read"):
        Scanner(question).scan(task)


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
        Scanner(question).scan(task).leaf.close()
        assert not [one for one in gc.get_objects() if type(one) in {Scorer, _Scan}]
    finally:
        gc.enable()
