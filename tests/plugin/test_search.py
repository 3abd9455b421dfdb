"""Search: the right answers, whatever the files look like, and refusals that say why."""

import shutil

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mocpy import MOC

import skyvec
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search import Query, example, find_vector, search
from skyvec.search.best import Best, Floor
from skyvec.search.metrics import Scorer
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.vectors import tensor_array, tensor_values

METRICS = ("cosine", "l2", "inner_product")


def everything(collection):
    """Ids, positions and float64 vectors of all rows that have one."""
    parts = list(VectorCatalog.open(collection).parts())
    ids = pa.concat_arrays([part.ids for part in parts]).to_pylist()
    places = np.concatenate([part.positions for part in parts])
    return ids, places, np.concatenate([part.vectors for part in parts]).astype(np.float64)


def brute(ids, vectors, query, *, k, metric="cosine", without=(), keep=None):
    """Ids and scores of the k best, by the definition."""
    if metric == "l2":
        score = -np.linalg.norm(vectors - query, axis=1)
    else:
        score = vectors @ query
        if metric == "cosine":
            score = score / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    allowed = [i for i in range(len(ids)) if ids[i] not in without and (keep is None or keep[i])]
    order = sorted(allowed, key=lambda i: (-score[i], ids[i]))[:k]
    return [ids[i] for i in order], score[order]


def rewritten(collection, folder, change=None, **writing):
    """A copy whose vectors (rows, dim) and nulls (rows,) a function changed, leaf by leaf."""
    copy = shutil.copytree(collection, folder / "sky")
    vectors = VectorCatalog.open(copy)
    for number, pixel in enumerate(vectors.release.pixels):
        path = vectors.release.leaf(pixel)
        table = pq.read_table(path, partitioning=None)
        values = tensor_values(table.column(vectors.name), missing=0).copy()
        null = np.zeros(len(values), bool)
        if change:
            change(number=number, values=values, null=null)
        column = tensor_array(values, absent=null)
        place = table.schema.get_field_index(vectors.name)
        table = table.set_column(place, pa.field(vectors.name, column.type), column)
        pq.write_table(table, path, **writing)
    return copy


@pytest.mark.parametrize("metric", METRICS)
def test_search_finds_what_brute_force_finds(embedded, metric):
    ids, places, vectors = everything(embedded)
    found = search(embedded, like=ids[5], k=7, metric=metric)
    expected, score = brute(ids, vectors, vectors[5], k=7, metric=metric, without={ids[5]})
    assert found.table.column("object_id").to_pylist() == expected
    name = "distance" if metric == "l2" else "similarity"
    assert np.allclose(found.table.column(name).to_numpy(), -score if metric == "l2" else score)
    where = dict(zip(ids, places, strict=True))
    there = np.stack([found.table.column(c).to_numpy() for c in ("ra", "dec")], axis=1)
    assert np.array_equal(there, [where[i] for i in expected])
    assert found.fingerprint == VectorCatalog.open(embedded).provenance.fingerprint()


@pytest.mark.parametrize("metric", METRICS)
def test_many_queries_at_once_are_the_same_as_one_by_one(embedded, metric):
    _, _, vectors = everything(embedded)
    several = search(embedded, vector=vectors[:9], k=4, metric=metric).table
    assert several.column("query").to_pylist() == [q for q in range(9) for _ in range(4)]
    for q in range(9):
        alone = search(embedded, vector=vectors[q], k=4, metric=metric).table
        assert several.slice(4 * q, 4).drop(["query"]).equals(alone)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_answer_does_not_depend_on_the_threads(embedded, threads):
    ids, *_ = everything(embedded)
    assert search(embedded, like=ids[2], threads=threads).table.equals(
        search(embedded, like=ids[2]).table
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "writing",
    [{"compression": "zstd"}, {"compression": "none", "use_dictionary": False},
     {"compression": "snappy", "row_group_size": 3}],
)  # fmt: skip
def test_compressed_files_give_the_same_answers(embedded, tmp_path, metric, writing):
    ids, *_ = everything(embedded)
    copy = rewritten(embedded, tmp_path, **writing)
    assert search(copy, like=ids[7], metric=metric).table.equals(
        search(embedded, like=ids[7], metric=metric).table
    )


def test_a_file_that_threads_share_is_searched_once(embedded, tmp_path, monkeypatch):
    from skyvec.search import partitions

    monkeypatch.setattr(partitions, "SHARE_ROWS", 4)
    copy = rewritten(embedded, tmp_path, row_group_size=3)
    ids, *_ = everything(copy)
    found = search(copy, like=ids[2], threads=5, k=100)
    assert found.question["searched"] == "60 vectors, exactly"
    assert found.table.equals(search(embedded, like=ids[2], threads=1, k=100).table)


def test_null_vectors_are_left_out_and_counted(embedded, tmp_path):
    def lose(null, **_):
        null[[0, 4]] = True

    copy = rewritten(embedded, tmp_path, lose)
    ids, _, vectors = everything(copy)
    assert len(ids) < 60
    found = search(copy, like=ids[3], k=100)
    assert (
        found.table.column("object_id").to_pylist()
        == brute(ids, vectors, vectors[3], k=100, without={ids[3]})[0]
    )
    lost = 60 - len(ids)
    assert found.question["left out"] == f"{lost} rows without a vector"
    assert found.question["searched"] == f"{len(ids)} vectors, exactly"


def test_vectors_without_a_direction_are_left_out_and_counted(embedded, tmp_path):
    def flatten(values, **_):
        values[1] = 0

    copy = rewritten(embedded, tmp_path, flatten)
    ids, _, vectors = everything(copy)
    flat = [ids[i] for i in np.flatnonzero(~vectors.any(axis=1))]
    found = search(copy, like=next(i for i in ids if i not in flat), k=100)
    assert not {*flat} & {*found.table.column("object_id").to_pylist()}
    assert "2 vectors of length 0" in found.question["left out"]
    with pytest.raises(ConfigurationError, match="has length 0"):
        search(copy, like=flat[0])
    assert len(search(copy, like=flat[0], metric="l2", k=100)) == 59


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_vectors_that_are_no_numbers_are_named(embedded, tmp_path, metric, bad):
    def spoil(number, values, **_):
        if number:
            values[2, 5] = bad

    copy = rewritten(embedded, tmp_path, spoil)
    ids = everything(copy)[0]
    with pytest.raises(ContractError, match=r"Npix.*row 2: the vector of object \d+ holds NaN"):
        search(copy, vector=np.ones(32), metric=metric)
    with pytest.raises(ContractError, match=r"Npix.*NaN"):
        search(copy, like=ids[0], center=True)


@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize("metric", METRICS)
def test_equal_scores_are_ordered_by_id_wherever_they_lie(embedded, tmp_path, metric, k):
    def repeat(number, values, **_):
        values[:] = values[:1] if number else values
        values[3:20] = np.arange(32) / 32

    copy = rewritten(embedded, tmp_path, repeat)
    ids, _, vectors = everything(copy)
    found = search(copy, vector=np.arange(32) / 30, k=k, metric=metric)
    expected, _ = brute(ids, np.round(vectors, 6), np.arange(32) / 30, k=k, metric=metric)
    assert found.table.column("object_id").to_pylist() == expected


def test_the_best_of_a_million_equal_rows_fit_in_memory():
    best = Best(3, Floor(1, 3), lambda rows: pa.array(1_000_000 - rows))
    for start in range(0, 1_000_000, 50_000):
        rows = np.arange(start, start + 50_000)
        best.add(np.zeros(50_000, np.int64), np.ones(50_000), rows)
        assert len(best.found()) <= (1 << 16) + 3
    assert {999_999, 999_998, 999_997} <= {*best.found().row.tolist()}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize("metric", METRICS)
def test_the_fast_scores_never_fall_below_the_exact_ones(dtype, scale, offset, metric):
    """The proof of exactness stands on this bound; vectors far from the origin strain it."""
    rng = np.random.default_rng(1)
    values = ((rng.normal(size=(300, 768)) + offset) * scale).astype(dtype)
    queries = (rng.normal(size=(4, 768)) + offset) * scale
    queries[0] = values[7]
    centers = [None, values.astype(np.float64).mean(0).astype(np.float32)]
    for center in centers if metric == "cosine" else centers[:1]:
        scorer = Scorer(queries, metric, center=center)
        upper = scorer.score(values).upper.astype(np.float64)
        lowest = scorer.score(values).kth_lowest(10)
        for q in range(4):
            exact = scorer.exact(values, np.full(300, q))
            unit = exact * scorer.ceilings(np.ones(4))[q]
            assert (upper[:, q] >= unit).all()
            assert np.sort(unit)[-10] >= lowest[q]
            loose = upper[:, q] - unit
            assert loose.max() < 0.02 * max(np.abs(unit).max(), 1e-30)


def test_scores_beyond_the_range_of_float32_are_still_exact():
    values = np.array([[1e20, 1e20], [1e20, 0], [1e-25, 1e-25], [3, 1]], np.float32)
    scorer = Scorer(np.array([[1.0, 1.0]]), "cosine")
    scores = scorer.score(values)
    assert np.isfinite(scores.lengths).all()
    assert (scores.upper[:, 0] >= scorer.exact(values, np.zeros(4, np.int64))).all()
    assert np.allclose(scorer.exact(values, np.zeros(4, np.int64)), [1, 0.5**0.5, 1, 0.8**0.5 * 1])


def test_search_takes_ids_as_text_from_the_command_line(embedded):
    ids, *_ = everything(embedded)
    assert search(embedded, like=str(ids[3]), k=3).table.equals(
        search(embedded, like=ids[3], k=3).table
    )


def test_more_neighbours_than_objects_returns_all_others(embedded):
    ids, *_ = everything(embedded)
    found = search(embedded, like=ids[0], k=1000).table.column("object_id").to_pylist()
    assert sorted(found) == sorted(set(ids) - {ids[0]})


def test_several_examples_are_averaged_at_unit_length(embedded):
    ids, _, vectors = everything(embedded)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = search(embedded, like=[ids[1], ids[30]], unlike=ids[2], k=5)
    query = unit[[1, 30]].mean(0) - unit[2]
    expected, _ = brute(ids, vectors, query, k=5, without={ids[1], ids[30], ids[2]})
    assert found.table.column("object_id").to_pylist() == expected
    raw = search(embedded, like=[ids[1], ids[30]], k=5, metric="l2")
    query = vectors[[1, 30]].mean(0)
    expected, _ = brute(ids, vectors, query, k=5, metric="l2", without={ids[1], ids[30]})
    assert raw.table.column("object_id").to_pylist() == expected


def test_each_example_can_be_a_query_of_its_own(embedded):
    ids, *_ = everything(embedded)
    found = search(embedded, like=[ids[1], ids[30]], k=5, together=False).table
    assert found.column("query").to_pylist() == [ids[1]] * 5 + [ids[30]] * 5
    for start, one in ((0, ids[1]), (5, ids[30])):
        assert found.slice(start, 5).drop(["query"]).equals(search(embedded, like=one, k=5).table)


def test_centred_cosines_are_those_of_vectors_without_their_mean(embedded):
    ids, _, vectors = everything(embedded)
    centred = vectors - vectors.mean(0)
    found = search(embedded, like=ids[5], k=7, center=True)
    expected, score = brute(ids, centred, centred[5], k=7, without={ids[5]})
    assert found.table.column("object_id").to_pylist() == expected
    assert np.allclose(found.table.column("similarity").to_numpy(), score, atol=1e-5)


def test_a_head_maps_the_stored_vectors_before_they_are_compared(embedded):
    ids, _, vectors = everything(embedded)
    weights = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    mapped = vectors.astype(np.float32) @ weights
    text = np.ones(6)
    found = search(embedded, vector=text, head=lambda rows: rows @ weights, k=4)
    assert found.table.column("object_id").to_pylist() == brute(ids, mapped, text, k=4)[0]
    found = search(embedded, like=ids[8], head=lambda rows: rows @ weights, k=4)
    expected = brute(ids, mapped, mapped[8], k=4, without={ids[8]})[0]
    assert found.table.column("object_id").to_pylist() == expected


def test_an_object_is_found_by_its_position(embedded):
    ids, places, _ = everything(embedded)
    found = search(embedded, at=tuple(places[12] + 1e-5), k=4)
    assert found.table.equals(search(embedded, like=ids[12], k=4).table)
    assert str(ids[12]) in found.question["at"]


def test_a_position_outside_of_the_footprint_says_so(embedded):
    with pytest.raises(ConfigurationError, match=r"outside of the footprint .* square degrees"):
        search(embedded, at=(100.0, 80.0))


def test_a_position_without_an_object_says_how_far_the_nearest_is(embedded):
    _, places, _ = everything(embedded)
    with pytest.raises(ConfigurationError, match=r"no object within 2 arcsec; the nearest is"):
        search(embedded, at=tuple(places[12] + [0, 0.01]))


@pytest.fixture(scope="module")
def columns(embedded):
    """FLUX_R and Z of the primary catalog by id."""
    paths = sorted((embedded / "cat/dataset").glob("Norder*/*/*.parquet"))
    names = ["object_id", "FLUX_R", "Z"]
    tables = [pq.read_table(p, columns=names, partitioning=None) for p in paths]
    return pa.concat_tables(tables).to_pandas().set_index("object_id")


def test_an_expression_over_columns_of_the_catalog(embedded, columns):
    ids, _, vectors = everything(embedded)
    table = columns.loc[ids]
    keep = ((table["FLUX_R"] > 10) & (table["Z"] < 0.5)).to_numpy()
    assert 3 < keep.sum() < 57
    found = search(embedded, like=ids[0], k=60, where="FLUX_R > 10 and Z < 0.5")
    expected = brute(ids, vectors, vectors[0], k=60, without={ids[0]}, keep=keep)[0]
    assert found.table.column("object_id").to_pylist() == expected
    assert found.question["where"] == "FLUX_R > 10 and Z < 0.5"


def test_columns_of_the_extension_can_be_in_the_expression(embedded):
    ids, *_ = everything(embedded)
    assert len(search(embedded, like=ids[0], k=60, where="small_v1_flags < 0")) == 0
    assert len(search(embedded, like=ids[0], k=60, where="small_v1_flags >= 0 and Z > -1")) == 59


def test_rows_in_another_order_than_the_catalog_keep_their_own_columns(embedded, tmp_path):
    copy = shutil.copytree(embedded, tmp_path / "sky")
    for path in (copy / "cat/dataset").glob("Norder*/*/*.parquet"):
        table = pq.read_table(path, partitioning=None)
        order = np.random.default_rng(0).permutation(len(table))
        pq.write_table(table.take(pa.array(order)), path)
    ids, *_ = everything(copy)
    found = search(copy, like=ids[0], k=60, where="Z < 0.5").table
    assert found.equals(search(embedded, like=ids[0], k=60, where="Z < 0.5").table)
    assert len(found) > 5


def test_a_region_of_the_sky(embedded):
    ids, places, vectors = everything(embedded)
    (ra, dec), others = places[0], {"without": {ids[0]}}
    near = np.hypot((places[:, 0] - ra) * np.cos(np.deg2rad(dec)), places[:, 1] - dec) < 5
    assert 3 < near.sum() < 50
    found = search(embedded, like=ids[0], k=60, cone=(ra, dec, 5 * 3600)).table
    # A flat sky is good to some percent here, so no object may lie near the edge.
    expected = brute(ids, vectors, vectors[0], k=60, keep=near, **others)[0]
    assert len({*found.column("object_id").to_pylist()} ^ {*expected}) <= 2
    text = search(embedded, like=ids[0], k=60, cone=f"{ra},{dec},18000").table
    assert text.equals(found)
    box = (places[:, 0] < 25) & (places[:, 1] > 0)
    found = search(embedded, like=ids[0], k=60, box=((5, 25), (0, 10))).table
    expected = brute(ids, vectors, vectors[0], k=60, keep=box, **others)[0]
    assert found.column("object_id").to_pylist() == expected


def test_a_coverage_map_and_its_file_are_the_same(embedded, tmp_path):
    ids, places, vectors = everything(embedded)
    moc = MOC.from_cone(lon=20 * u.deg, lat=0 * u.deg, radius=6 * u.deg, max_depth=12)
    moc.save(tmp_path / "area.fits", format="fits")
    inside = moc.contains_lonlat(places[:, 0] * u.deg, places[:, 1] * u.deg)
    assert 3 < inside.sum() < 57
    found = search(embedded, like=ids[0], k=60, moc=moc).table
    expected = brute(ids, vectors, vectors[0], k=60, keep=inside, without={ids[0]})[0]
    assert found.column("object_id").to_pylist() == expected
    assert search(embedded, like=ids[0], k=60, moc=tmp_path / "area.fits").table.equals(found)


def test_among_some_ids(embedded):
    ids, _, vectors = everything(embedded)
    found = search(embedded, like=ids[0], k=60, among=[str(i) for i in ids[10:20]], where="Z > -1")
    keep = np.isin(np.arange(60), np.arange(10, 20))
    assert (
        found.table.column("object_id").to_pylist()
        == brute(ids, vectors, vectors[0], k=60, keep=keep)[0]
    )


def test_pages_that_the_filter_leaves_out_are_not_read(embedded, tmp_path, monkeypatch):
    copy = rewritten(embedded, tmp_path, compression="none", use_dictionary=False, row_group_size=3)
    ids, *_ = everything(copy)
    from skyvec.vector_pages.pages import VectorPages

    looked, blocks = [], VectorPages.blocks

    def watched(self, *, groups=None, **options):
        looked.append(groups)
        return blocks(self, groups=groups, **options)

    monkeypatch.setattr(VectorPages, "blocks", watched)
    search(copy, like=ids[0], k=3, among=ids[10:12])
    assert sum(len(groups) for groups in looked) <= 2


def test_who_asks_for_an_unknown_id_is_told_one_that_is_there(embedded):
    ids, *_ = everything(embedded)
    with pytest.raises(ConfigurationError, match="one that is there: ") as caught:
        search(embedded, like=-1)
    assert int(str(caught.value).split("there: ")[1].split(")")[0]) in ids


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"like": -1}, "no object -1 with a vector"),
        ({"like": "galaxy"}, "'galaxy' is not an id of type int64"),
        ({"like": []}, "like: is empty"),
        ({"vector": np.ones(3)}, r"has shape \(3,\), the vectors have 32 values"),
        ({"vector": np.ones((2, 2, 2))}, r"has shape \(2, 2, 2\), neither"),
        ({"vector": np.full(32, np.nan)}, "query vector 0: holds NaN or infinity"),
        ({"vector": np.zeros(32)}, "query vector: has length 0"),
        ({}, "give either an id, a position or a vector"),
        ({"like": 1, "vector": np.ones(32)}, "give either an id, a position or a vector"),
        ({"vector": np.ones(32), "unlike": 3}, "unlike: needs ids on both sides"),
        ({"like": 1, "k": 0}, "k = 0: must be at least 1"),
        ({"like": 1, "extension": "nope"}, r"no extension 'nope' \(there are: small_v1\)"),
        ({"vector": np.ones(32), "metric": "manhattan"}, "metric 'manhattan': is no metric"),
        ({"vector": np.ones(32), "metric": "l2", "center": True}, "changes nothing but cosines"),
        ({"vector": np.ones(32), "where": "FLUX_R >"}, "cannot be evaluated|is no expression"),
        ({"vector": np.ones(32), "where": "FLUX_R + 1"}, "is no condition on rows"),
        ({"vector": np.ones(32), "where": "@x > 1"}, "'@' is not allowed"),
        ({"vector": np.ones(32), "where": "Z.__class__ == 1"}, "is not allowed"),
        ({"vector": np.ones(32), "where": "FLUX_R > 'a'"}, "cannot be evaluated"),
        ({"vector": np.ones(32), "cone": "1,2"}, "not three numbers"),
        ({"vector": np.ones(32), "cone": (100.0, 80.0, 10.0)}, "no HATS pixel of the catalog"),
        ({"vector": np.ones(32), "box": ((1, 2), (95, 99))}, "is no region"),
        ({"vector": np.ones(32), "box": ((99, 102), (70, 80))}, "no partition of the catalog"),
    ],
)  # fmt: skip
def test_a_question_without_an_answer_says_why(embedded, question, message):
    with pytest.raises(ConfigurationError, match=message):
        search(embedded, **question)


def test_a_column_that_there_is_not_is_named_with_its_neighbours(embedded):
    with pytest.raises(MissingColumnError, match=r"no column 'FLUX_Y'; is it FLUX_"):
        search(embedded, vector=np.ones(32), where="FLUX_Y > 1")


def test_a_contrast_has_no_distance(embedded):
    ids, *_ = everything(embedded)
    with pytest.raises(ConfigurationError, match="a contrast is a direction"):
        search(embedded, like=ids[0], unlike=ids[1], metric="l2")


def test_an_object_without_a_vector_is_no_example(embedded, tmp_path):
    def lose(null, **_):
        null[0] = True

    copy = rewritten(embedded, tmp_path, lose)
    lost = {*everything(embedded)[0]} - {*everything(copy)[0]}
    with pytest.raises(ConfigurationError, match=r"has no vector: it could not be embedded"):
        search(copy, like=lost.pop())


def test_vectors_of_another_model_are_refused(embedded, other_model_folder, tmp_path):
    from skyvec.stage.run import run

    record = run(embedded, model=other_model_folder, out=tmp_path / "other", workers=0)
    ids, *_ = everything(embedded)
    query = example(record.properties, ids[0])
    with pytest.raises(ConfigurationError, match=r"was made by other .* mean nothing"):
        search(embedded, vector=query)
    same = example(embedded, ids[0])
    found = search(embedded, vector=same, k=1).table
    assert found.column("object_id").to_pylist() == [ids[0]]


def test_a_vector_belongs_to_its_id(embedded):
    ids, _, vectors = everything(embedded)
    catalog = VectorCatalog.open(embedded)
    assert all(np.array_equal(find_vector(catalog, ids[i]), vectors[i]) for i in (0, 31, 59))


def test_the_name_is_the_function_however_often_it_is_used(embedded):
    ids, *_ = everything(embedded)
    for _ in range(2):
        assert len(skyvec.search(embedded, like=ids[0], k=2)) == 2
    assert Query.of(np.ones(3)).vectors.shape == (1, 3)
