"""Answers: pages, exports, vectors, and what they refuse."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table
from rich.console import Console
from typer.testing import CliRunner

from skyvec.answers.answer import Answer
from skyvec.answers.atlas import principal_plane
from skyvec.answers.scores import ScoreSampler
from skyvec.commands import answers as commands
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search import search
from skyvec.stage.run import run
from skyvec_schemas.errors import ConfigurationError, ContractError

SUFFIXES = (".parquet", ".vot", ".fits", ".csv")


def answer_of(collection, rows=7, **changes):
    """Some objects of both pixels, in no order that the catalog has."""
    vectors = VectorCatalog.open(collection)
    parts = list(vectors.parts())
    ids = pa.concat_arrays([part.ids for part in parts])
    positions = np.concatenate([part.positions for part in parts])
    chosen = np.random.default_rng(3).permutation(len(ids))[:rows]
    table = pa.table({
        "object_id": ids.take(pa.array(chosen)),
        "ra": positions[chosen, 0],
        "dec": positions[chosen, 1],
        "similarity": np.linspace(0.9, 0.5, len(chosen)).astype(np.float32),
    })  # fmt: skip
    facts = {
        "table": table, "id_column": "object_id", "catalog": Path(collection),
        "extension": vectors.name, "fingerprint": vectors.provenance.fingerprint(),
        "question": {"like": "object <5> & co", "metric": "cosine"},
    }  # fmt: skip
    return Answer(**facts | changes)


def stored(collection):
    return {
        key: vector
        for part in VectorCatalog.open(collection).parts()
        for key, vector in zip(part.ids.to_pylist(), part.vectors, strict=True)
    }


# ---- to be seen


def test_a_page_shows_every_object_and_loads_nothing(embedded, tmp_path):
    answer = answer_of(embedded)
    path = answer.gallery(tmp_path / "new" / "answer.html")
    page = path.read_text(encoding="utf-8")
    for key in answer.table.column("object_id").to_pylist():
        assert str(key) in page
    # 7 cutouts and the sky map.
    assert page.count("data:image/png;base64,") == 8
    sources = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|<script|@import|<link", page)
    assert "object &lt;5&gt; &amp; co" in page
    assert answer.fingerprint in page
    assert "no probability" in page
    assert [p.name for p in path.parent.iterdir()] == ["answer.html"]


def test_what_was_asked_with_is_shown_beside_what_was_found(embedded, tmp_path):
    liked, other = sorted(stored(embedded))[:2]
    found = search(embedded, like=liked, unlike=[other], k=3)
    assert found.examples.column("object_id").to_pylist() == [liked, other]
    assert found.examples.column("role").to_pylist() == ["like", "unlike"]
    vectors = VectorCatalog.open(embedded)
    position = {
        key: tuple(place)
        for part in vectors.parts()
        for key, place in zip(part.ids.to_pylist(), part.positions, strict=True)
    }
    for row in found.examples.to_pylist():
        assert (row["ra"], row["dec"]) == position[row["object_id"]]
    page = found.gallery()
    # Two examples and three objects.
    assert page.count('class="tile"') == 5
    assert "Asked with" in page
    assert ">unlike</i>" in page
    assert "Sky map: 3 objects and 2 asked with, " in page
    assert "stars: what was asked with" in page
    read = Answer.load(found.save(tmp_path / "found.parquet"))
    assert read.examples.equals(found.examples)
    assert "sked with" not in answer_of(embedded).gallery()


def test_predictions_stand_under_the_thumbnails(embedded):
    answer = answer_of(embedded)
    table = answer.table.rename_columns(["object_id", "ra", "dec", "photoz"])
    page = dataclasses.replace(answer, table=table).gallery()
    assert "Beside the number: photoz." in page
    assert ">0.9</i>" in page
    assert "<h2>Sky</h2>" in page


def test_only_the_first_objects_are_looked_at(embedded):
    page = answer_of(embedded).gallery(shown=2)
    assert page.count("data:image/png;base64,") == 3
    assert "The first 2 of 7 objects" in page


def test_a_notebook_gets_the_same_without_a_page_round_it(embedded):
    html = answer_of(embedded)._repr_html_()
    assert html.lstrip().startswith("<style>")
    assert "<html" not in html
    # Nothing of its style may reach the rest of the notebook.
    style = html[html.index("<style>") + 7 : html.index("</style>")]
    rules = re.findall(r"^([^@{}\n][^{}]*)\{", re.sub(r"@media[^{]*\{", "", style), re.MULTILINE)
    assert rules
    assert all(part.strip().startswith((".skyvec-answer", "main.skyvec-answer"))
               for rule in rules for part in rule.split(","))  # fmt: skip


def test_objects_without_pixels_get_a_tile_that_says_so(make_collection, model_folder, factory):
    cutouts = [factory.cutout(i) for i in range(12)]
    cutouts[3] = None
    collection = make_collection(factory.survey_table(12, cutouts=cutouts))
    run(collection, model=model_folder, workers=0)
    page = answer_of(collection, rows=12).gallery()
    assert page.count('class="pixels"') == 11
    assert page.count('<div class="plain">no usable image</div>') == 1


def test_a_catalog_that_is_gone_leaves_the_table(embedded, tmp_path):
    answer = answer_of(embedded, catalog=tmp_path / "gone")
    page = answer.gallery()
    assert page.count('<div class="plain">not readable: there is no such folder</div>') == 7
    assert str(answer.table.column("object_id")[0].as_py()) in page


def test_an_object_at_another_place_is_not_shown_as_if_it_were_it(embedded):
    answer = answer_of(embedded, rows=3)
    lost = answer.table.set_column(1, "ra", pa.array([np.nan, 100.0, 355.0]))
    page = answer_of(embedded, rows=3, table=lost).gallery()
    assert page.count("not found in the catalog at this position") == 3


def test_an_empty_answer_is_still_an_answer(embedded, tmp_path):
    answer = answer_of(embedded, rows=0)
    assert "No object answers this question" in answer.gallery()
    assert len(Answer.load(answer.save(tmp_path / "none.parquet"))) == 0
    with pytest.raises(ConfigurationError, match="no object in it"):
        answer.to_lsdb()


def test_a_terminal_shows_question_rows_and_vectors(embedded):
    console = Console(width=200)
    answer = answer_of(embedded, rows=30)
    with console.capture() as caught:
        console.print(answer)
    text = caught.get()
    assert "object <5> & co" in text
    assert "no probability" in text
    assert answer.fingerprint[:12] in text
    assert "... 30 rows in all" in text
    assert str(answer.table.column("object_id")[19].as_py()) in text
    assert str(answer.table.column("object_id")[20].as_py()) not in text


# ---- files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_back_what_was_saved(embedded, tmp_path, suffix):
    sampler = ScoreSampler()
    sampler.add(np.linspace(-1, 1, 300, dtype=np.float32))
    answer = answer_of(embedded, scores=sampler.sample(), question={"words": "größer als 5″"})
    kinds = pa.table({
        "kind": ["spiral", None, "", "a,b", 'c"d', "ß" if suffix != ".fits" else "ss", "x"],
        "count": pa.array([1, None, 3, 4, 5, 6, 7], pa.int32()),
        "good": [True, False, True, True, False, True, False],
        "z": pa.array([0.5, None, np.nan, 1, 2, 3, 4], pa.float32()),
    })  # fmt: skip
    table = answer.table
    for name in kinds.column_names:
        table = table.append_column(name, kinds.column(name))
    answer = answer_of(embedded, table=table, scores=answer.scores, question=answer.question)
    found = Answer.load(answer.save(tmp_path / f"a{suffix}"))
    assert found.table.schema.names == table.schema.names
    for name in ("object_id", "ra", "dec", "similarity", "count", "good"):
        assert found.table.column(name).equals(table.column(name)), name
    # FITS and ECSV hold a null and an empty text alike.
    kept = [value or None for value in found.table.column("kind").to_pylist()]
    assert kept == ["spiral", None, None, *kinds.column("kind").to_pylist()[3:]]
    z = found.table.column("z").to_pylist()
    assert z[0] == 0.5
    assert z[1] is None or np.isnan(z[1])
    assert (found.extension, found.fingerprint, found.id_column, found.catalog) == (
        answer.extension, answer.fingerprint, "object_id", answer.catalog,
    )  # fmt: skip
    assert found.question == answer.question
    assert found.model == "small"
    assert np.allclose(found.scores.values, answer.scores.values, atol=1e-6)
    assert found.scores.searched == 300


def test_other_tools_find_units_ucds_and_the_vectors_origin(embedded, tmp_path):
    answer = answer_of(embedded)
    paths = {suffix: answer.save(tmp_path / f"a{suffix}") for suffix in SUFFIXES}

    votable = parse(str(paths[".vot"]))
    fields = {field.name: field for field in votable.get_first_table().fields}
    assert str(fields["ra"].unit) == "deg"
    assert fields["ra"].ucd == "pos.eq.ra;meta.main"
    assert fields["object_id"].ucd == "meta.id;meta.main"
    infos = {info.name: info.value for info in votable.resources[0].infos}
    assert infos["skyvec_fingerprint"] == answer.fingerprint
    assert infos["skyvec_question_like"] == "object <5> & co"

    header = fits.getheader(paths[".fits"], "ANSWER")
    assert (header["TTYPE3"], header["TUNIT3"], header["TUCD3"]) == (
        "dec", "deg", "pos.eq.dec;meta.main",
    )  # fmt: skip
    assert (header["SVFINGER"], header["SVMODEL"]) == (answer.fingerprint, "small")
    assert "like: object <5> & co" in list(header["HISTORY"])

    assert list(pd.read_csv(paths[".csv"], comment="#").columns) == answer.table.column_names
    assert str(Table.read(paths[".csv"], format="ascii.ecsv")["ra"].unit) == "deg"

    plain = pq.read_table(paths[".parquet"])
    assert plain.schema.field("ra").metadata[b"unit"] == b"deg"
    facts = json.loads(plain.schema.metadata[b"skyvec_answer"])
    assert (facts["extension"], facts["model"]) == ("small_v1", "small")


def test_columns_that_a_format_cannot_hold_are_named(embedded, tmp_path):
    answer = answer_of(embedded, rows=2)
    table = answer.table.append_column("codes", pa.array([[1], [2, 3]]))
    answer = answer_of(embedded, table=table)
    assert Answer.load(answer.save(tmp_path / "a.parquet")).table.equals(table)
    with pytest.raises(ConfigurationError, match=r"'codes'.*only Parquet can"):
        answer.save(tmp_path / "a.fits")


def test_text_that_fits_cannot_hold_is_named(embedded, tmp_path):
    answer = answer_of(embedded, rows=1)
    answer = answer_of(embedded, table=answer.table.append_column("who", pa.array(["Öpik"])))
    with pytest.raises(ConfigurationError, match="'who': holds text beyond ASCII"):
        answer.save(tmp_path / "a.fits")


def test_lists_of_one_length_go_into_every_format(embedded, tmp_path):
    answer = answer_of(embedded, rows=3)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 2)
    answer = answer_of(embedded, table=answer.table.append_column("interval", pairs))
    for suffix in (".parquet", ".vot", ".fits"):
        found = Answer.load(answer.save(tmp_path / f"a{suffix}"))
        assert found.table.column("interval").to_pylist() == pairs.to_pylist(), suffix


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.xlsx", ConfigurationError, r"no format for '\.xlsx'.*\.parquet"),
        ("absent.parquet", ConfigurationError, "there is no such file"),
        ("plain.parquet", ContractError, "is not an answer of skyvec"),
        ("torn.fits", ContractError, "is not an answer of skyvec"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, name, error, message):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "plain.parquet")
    (tmp_path / "torn.fits").write_bytes(b"SIMPLE")
    with pytest.raises(error, match=message):
        Answer.load(tmp_path / name)


# ---- vectors


def test_vectors_come_in_the_answers_order(embedded):
    answer = answer_of(embedded, rows=20)
    twice = pa.concat_tables([answer.table, answer.table.slice(4, 3)])
    answer = answer_of(embedded, table=twice)
    known = stored(embedded)
    expected = [known[key] for key in twice.column("object_id").to_pylist()]
    assert np.array_equal(answer.vectors(), np.array(expected, np.float32))


def test_an_object_without_a_vector_is_nan(make_collection, model_folder, factory):
    table = factory.survey_table(12)
    for scalar in [
        name for name in table.column_names if name.startswith(("FLUX", "SHAPE", "EBV"))
    ]:
        column = table.column(scalar).to_numpy().copy()
        column[0] = np.nan
        table = table.set_column(table.column_names.index(scalar), scalar, pa.array(column))
    cutouts = [None, *(factory.cutout(i) for i in range(1, 12))]
    table = table.set_column(table.column_names.index("image"), "image", factory.images(cutouts))
    collection = make_collection(table)
    run(collection, model=model_folder, workers=0)
    first = table.slice(0, 1).select(["object_id", "ra", "dec"])
    answer = answer_of(collection, table=first)
    assert np.isnan(answer.vectors()).all()
    with pytest.raises(ConfigurationError, match="no object of it has a vector"):
        answer.to_atlas(collection / "atlas.parquet")


def test_vectors_of_another_model_are_refused(embedded):
    answer = answer_of(embedded, fingerprint="f" * 64)
    with pytest.raises(ConfigurationError, match=r"holds vectors .* the answer is about ffff"):
        answer.vectors()
    assert "not readable: holds vectors" in answer.gallery()


def test_an_atlas_is_plain_parquet(embedded, tmp_path):
    answer = answer_of(embedded, rows=9)
    table = pq.read_table(answer.to_atlas(tmp_path / "atlas.parquet"))
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    assert np.array_equal(vectors, answer.vectors())
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    assert all(row["bytes"].startswith(b"\x89PNG") for row in table.column("image").to_pylist())
    # The plane is the one that keeps the most variance, up to signs.
    plane = np.stack([table.column(f"projection_{c}").to_numpy() for c in "xy"], axis=1)
    centred = vectors - vectors.mean(0)
    spread = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1]
    assert np.allclose((plane**2).sum(0), spread[:2], rtol=1e-3)
    bare = answer.to_atlas(tmp_path / "bare.parquet", projection=False, thumbnails=False)
    assert "image" not in pq.read_schema(bare).names


def test_a_plane_of_one_object_is_a_point():
    assert principal_plane(np.ones((1, 4), np.float32)).tolist() == [[0, 0]]


def test_an_atlas_does_not_write_over_columns(embedded, tmp_path):
    answer = answer_of(embedded, rows=2)
    answer = answer_of(embedded, table=answer.table.append_column("image", pa.array(["a", "b"])))
    with pytest.raises(ConfigurationError, match="has columns image of its own"):
        answer.to_atlas(tmp_path / "atlas.parquet")


def test_an_answer_becomes_a_catalog_again(embedded):
    answer = answer_of(embedded, rows=9)
    catalog = answer.to_lsdb()
    found = catalog.compute(progress_bar=False)
    assert sorted(found["object_id"]) == sorted(answer.table.column("object_id").to_pylist())
    inside = catalog.cone_search(20, 0, 3600 * 15).compute(progress_bar=False)
    assert len(inside) == sum(r < 100 for r in answer.table.column("ra").to_pylist())


# ---- commands


def invoke(command, *words):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_a_saved_answer_is_shown_and_converted(embedded, tmp_path):
    saved = answer_of(embedded).save(tmp_path / "a.parquet")
    found = invoke(
        commands.show, saved, "--gallery", tmp_path / "a.html", "--save", tmp_path / "a.fits",
        "--atlas", tmp_path / "m.parquet", "--labels", "FLUX_R > 1",
    )  # fmt: skip
    assert found.exit_code == 0
    assert "prevalence" in found.output
    assert "--vector vector --x projection_x" in found.output
    assert "prevalence" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert Answer.load(tmp_path / "a.fits").precision.searched == 60
    assert pq.read_metadata(tmp_path / "m.parquet").num_rows == 7


def test_a_catalog_that_moved_is_found_again(embedded, tmp_path):
    saved = answer_of(embedded, catalog=tmp_path / "before", model="small").save(tmp_path / "a.csv")
    invoke(commands.show, saved, "--gallery", tmp_path / "a.html", "--catalog", embedded)
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count('class="pixels"') == 7
