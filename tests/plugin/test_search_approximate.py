"""The approximate index: its recall is as stated, and it is refused when it is stale."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from skyvec.cli import app
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search import find_vectors, search
from skyvec.search.approximate import FACTS, ApproximateIndex
from skyvec.search.graphs import wilson_interval
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.vectors import tensor_array


@pytest.fixture(scope="module")
def large(embedded, tmp_path_factory):
    """The embedded collection with 3,000 made-up vectors in each of its two pixels."""
    copy = shutil.copytree(embedded, tmp_path_factory.mktemp("large") / "sky")
    vectors = VectorCatalog.open(copy)
    for number, pixel in enumerate(vectors.release.pixels):
        rng = np.random.default_rng(number)
        path = vectors.release.leaf(pixel)
        table = pq.read_table(path, partitioning=None)
        table = table.take(pa.array(np.zeros(3000, np.int64)))
        columns = {
            vectors.name: tensor_array(rng.normal(size=(3000, 32)).astype(np.float16)),
            "object_id": pa.array(np.arange(3000) + 10_000 * number),
        }
        for name, column in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, pa.field(name, column.type), column)
        pq.write_table(table, path)
    return copy


@pytest.fixture(scope="module")
def index(large, tmp_path_factory):
    pytest.importorskip("usearch")
    folder = tmp_path_factory.mktemp("index")
    return ApproximateIndex.build(large, folder, expansion=32, queries=300)


def test_the_recall_of_other_queries_is_as_stated(large, index):
    queries = np.random.default_rng(9).normal(size=(400, 32))
    exact = search(large, vector=queries, k=10).to_pandas().groupby("query")["object_id"]
    near = index.search(vector=queries, k=10).to_pandas().groupby("query")["object_id"]
    found = np.mean([len({*near.get_group(q)} & {*exact.get_group(q)}) / 10 for q in range(400)])
    assert 0.5 < index.recall.recall < 1
    assert index.recall.low <= index.recall.recall <= index.recall.high
    # Both are means over hundreds of queries, of which each misses some.
    assert abs(found - index.recall.recall) < 0.02
    assert index.recall.low - 0.01 < found < index.recall.high + 0.01


def test_every_answer_states_the_recall_and_has_exact_scores(large, index):
    found = index.search(like=5, k=4)
    assert "recall@10 0." in found.question["searched"]
    assert "on 300 objects held out" in found.question["searched"]
    exact = search(large, like=5, k=3000).to_pandas().set_index("object_id")["similarity"]
    for row in found.table.to_pylist():
        assert row["similarity"] == exact[row["object_id"]]
    assert 5 not in found.table.column("object_id").to_pylist()
    assert len(found) == 4


def test_objects_that_were_held_out_are_in_the_index(large, index):
    ids = np.r_[np.arange(3000), np.arange(3000) + 10_000]
    vectors = find_vectors(VectorCatalog.open(large), ids[::37].tolist())
    found = index.search(vector=vectors, k=1).table
    assert np.mean(found.column("object_id").to_numpy() == ids[::37]) > 0.9


def test_an_index_is_opened_again_and_refused_when_stale(large, index, tmp_path):
    opened = ApproximateIndex.open(large, index.folder)
    assert opened.recall == index.recall
    assert opened.search(like=5, k=4).table.equals(index.search(like=5, k=4).table)
    facts = json.loads((index.folder / FACTS).read_text())
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigurationError, match="is no finished index"):
        ApproximateIndex.open(large, other)
    (other / FACTS).write_text(json.dumps(facts | {"fingerprint": "0"}))
    with pytest.raises(ConfigurationError, match=r"is stale: .* another model or setting"):
        ApproximateIndex.open(large, other)
    copy = shutil.copytree(large, tmp_path / "sky")
    vectors = VectorCatalog.open(copy)
    path = vectors.release.leaf(vectors.release.pixels[0])
    pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)
    with pytest.raises(ConfigurationError, match=r"is stale: .* other rows"):
        ApproximateIndex.open(copy, index.folder)


def test_the_interval_is_wilsons():
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson_interval(1.0, 100)[0] == pytest.approx(0.963, abs=1e-3)


def test_the_terminal_builds_asks_and_refuses_what_an_index_cannot_do(large):
    pytest.importorskip("usearch")
    said = CliRunner().invoke(app, ["index", str(large), "--queries", "50"])
    assert said.exit_code == 0, said.output
    assert "recall@10" in said.output
    ask = ["search", str(large), "--like", "5", "--approximate", "-k", "3"]
    said = CliRunner().invoke(app, ask)
    assert said.exit_code == 0, said.output
    assert "approximately" in said.output
    assert len(search(large, like=5, k=3)) == 3
    for more in (["--cone", "0,0,10"], ["--metric", "l2"], ["--like", "6"]):
        said = CliRunner().invoke(app, [*ask, *more])
        assert isinstance(said.exception, ConfigurationError) or said.exit_code
        assert "does not go with" in str(said.exception or said.output)
