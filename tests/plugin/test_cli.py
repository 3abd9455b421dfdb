"""The command line: what it prints and how it ends."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from skyvec import cli
from skyvec.commands import terminal


def call(capsys, monkeypatch, *arguments):
    """Exit code, output and errors of one call."""
    monkeypatch.setattr(sys, "argv", ["skyvec", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.fixture
def skyvec(capsys, monkeypatch):
    """Call the command line in this process."""
    monkeypatch.setattr(terminal.out, "_width", 200)
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


def test_embed_says_what_it_did_and_how_to_read_it(skyvec, make_collection, model_folder):
    collection = make_collection()
    code, printed, _ = skyvec("embed", collection, "--model", model_folder, "--workers", 0)
    assert code == 0
    assert "12: 12 ok, 0 partial, 0 failed" in printed
    assert f'lsdb.open_catalog("{collection}").load_extension("small_v1")' in printed


def test_columns_that_a_catalog_lacks_can_be_left_out(
    skyvec, make_collection, model_folder, factory
):
    table = factory.survey_table().drop_columns(["SHAPE_R"]).rename_columns({"object_id": "name"})
    collection = make_collection(table)
    options = ("--model", model_folder, "--workers", 0)
    code, _, problem = skyvec("embed", collection, *options)
    assert code == 30
    assert problem.count("\n") == 1
    assert "'object_id'" in problem and "'SHAPE_R'" in problem  # noqa: PT018 - one message
    code, *_ = skyvec("embed", collection, *options, "--id-column", "name", "--without", "SHAPE_R")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "nowhere"], 40, "skyvec: nowhere: there is no such folder"),
        (["embed", "SKY", "--survey", "sloan"], 40, "sloan: no such survey. Known surveys: legac"),
        (
            ["embed", "SKY", "--model", "gpt"],
            40,
            "gpt: neither a model of the package nor a folder",
        ),
        (["embed", "SKY", "--dtype", "int3"], 40, "--dtype: 'int3' is not known. Choose from"),
        (["embed", "SKY", "--without", "X"], 40, "--without: the survey has no column X"),
        (["embed", "SKY", "--image-column", "img"], 30, "no column 'img' (nearest: 'image')"),
        (["status", "SKY"], 40, "0 runs to choose from"),
        (["search", "SKY", "--like", "1"], 40, "holds 0 embedding extensions"),
        (["mock-survey", "--rows", "0", "--out", "SKY2"], 40, "rows"),
        (["models", "show", "gpt"], 40, "gpt: neither a model"),
        (["models", "show", "hf://a/b@main"], 40, "a hub model needs a pinned revision"),
        (["status", "nowhere"], 40, "nowhere: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(skyvec, make_collection, arguments, code, message):
    collection = make_collection()
    places = {"SKY": collection, "SKY2": collection.parent / "other"}
    found, _, problem = skyvec(*(places.get(a, a) for a in arguments))
    assert found == code
    assert message in problem
    assert problem.startswith("skyvec: ")
    assert problem.count("\n") == 1


def test_an_incomplete_run_says_what_to_do(skyvec, make_collection, model_folder):
    collection = make_collection(object_id=pa.array([1] * 12, pa.int64()))
    given = ("embed", collection, "--model", model_folder, "--workers", 0)
    code, _, problem = skyvec(*given)
    assert code == 30
    assert "occur more than once" in problem
    code, printed, problem = skyvec(*given, "--unchecked")
    assert code == 30
    assert "occur more than once" in printed
    assert "2 of 2 pixels are not done; nothing was published" in problem
    code, printed, _ = skyvec("status", collection)
    assert code == 30
    assert "incomplete, not published" in printed


def test_plan_status_search_and_probe_speak(skyvec, embedded, model_folder, tmp_path):
    code, printed, _ = skyvec("plan", embedded, "--model", model_folder)
    assert code == 0
    assert "0 pixels (2 done before)" in printed
    assert "complete" in skyvec("status", embedded)[1]
    code, printed, _ = skyvec("probe", "fit", embedded, "--target", "Z", "--out", tmp_path / "p")
    assert code == 0
    assert "folds, left out in turn" in printed
    assert "small_v1" in skyvec("probe", "report", tmp_path / "p")[1]
    code, printed, _ = skyvec(
        "probe", "apply", embedded, "--probe", tmp_path / "p", "--save", tmp_path / "z.parquet"
    )
    assert "60 rows in" in printed
    like = pq.read_table(tmp_path / "z.parquet")["object_id"][0].as_py()
    assert skyvec("search", embedded, "--like", like, "-k", 3)[0] == 0


def test_data_in_another_unit_are_refused_before_any_work(
    skyvec, make_collection, model_folder, factory
):
    table = factory.survey_table(12)
    for band in "GRIZ":
        name = f"FLUX_{band}"
        scaled = pc.multiply(table.column(name), pa.scalar(1 / 63.1, pa.float32()))
        table = table.set_column(table.column_names.index(name), name, scaled)
    collection = make_collection(table)
    given = ("embed", collection, "--model", model_folder, "--workers", 0)
    code, _, problem = skyvec(*given)
    assert code == 30
    assert "counts at zero point 27" in problem
    assert "or go on with --unchecked" in problem
    assert not (collection / "small_v1").exists()
    assert skyvec("plan", collection, "--model", model_folder)[0] == 30
    assert skyvec(*given, "--unchecked")[0] == 0


def test_the_plan_for_programs_is_json(skyvec, make_collection, model_folder):
    code, printed, _ = skyvec("plan", make_collection(), "--model", model_folder, "--json")
    assert code == 0
    assert json.loads(printed)["catalog"]["rows"] == 12


def test_an_unexpected_failure_is_one_line_too(skyvec, monkeypatch, make_collection):
    def broken(*_, **__):
        raise RuntimeError("the disk sang\nand danced")

    monkeypatch.setattr("skyvec.stage.run.run_plan", broken)
    code, _, problem = skyvec("embed", make_collection())
    assert code == 50
    assert "unexpected RuntimeError: the disk sang (set SKYVEC_DEBUG=1" in problem


def test_ctrl_c_says_how_to_continue(skyvec, monkeypatch, make_collection):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("skyvec.stage.run.run_plan", interrupted)
    code, _, problem = skyvec("embed", make_collection())
    assert (code, problem) == (
        130, "skyvec: interrupted; run the same command again to continue\n"
    )  # fmt: skip


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from skyvec import cli; "
        "assert not {'torch', 'dask', 'lsdb', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_status_needs_no_torch():
    code = "import sys, skyvec.stage.status; assert not {'torch', 'lsdb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_interrupted_run_can_be_looked_at(skyvec, make_collection, model_folder):
    from skyvec.stage.output import MANIFEST, QUANTA

    collection = make_collection()
    skyvec("embed", collection, "--model", model_folder, "--workers", 0)
    (collection / "small_v1" / MANIFEST).unlink()
    table = collection / "small_v1" / QUANTA
    pq.write_table(pq.read_table(table).slice(0, 1), table)
    code, printed, _ = skyvec("status", collection)
    assert code == 20
    assert "unfinished, published with 12 rows before: 1 HEALPix pixels with 6 rows" in printed


def test_of_tokens_and_vectors_the_vectors_are_meant(
    skyvec, make_collection, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # a report is written where one stands
    collection = make_collection()
    skyvec("tokenize", collection, "--model", model_folder, "--workers", 0)
    skyvec("embed", collection, "--model", model_folder, "--workers", 0)
    for command in ("status", "verify", "report"):
        code, printed, problem = skyvec(command, collection)
        assert (code, problem) == (0, "")
        assert "small_v1" in printed
    skyvec("embed", collection, "--model", model_folder, "--workers", 0, "--name", "again")
    for command in ("status", "verify", "report"):
        code, _, problem = skyvec(command, collection)
        assert code == 40
        assert "Name one with --extension: again, small_tokens, small_v1" in problem


def test_a_damaged_leaf_of_an_extension_is_not_to_be_imported_again(
    skyvec, make_collection, model_folder
):
    collection = make_collection()
    skyvec("embed", collection, "--model", model_folder, "--workers", 0)
    leaf, other = (collection / "small_v1").rglob("Npix=*.parquet")
    leaf.write_bytes(leaf.read_bytes()[:-100])
    example = pq.read_table(other, partitioning=None).column("object_id")[0]
    code, _, problem = skyvec("search", collection, "--like", example)
    assert code == 30, problem
    assert problem.strip().endswith(
        "`skyvec verify` names everything that is damaged, and what to do."
    )


def test_a_gpu_that_is_not_there_is_said_to_be_absent(skyvec, make_collection, model_folder):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    collection = make_collection()
    code, _, problem = skyvec("embed", collection, "--model", model_folder, "--device", "cuda:0")
    assert (code, problem) == (
        40, "skyvec: --device cuda:0: torch sees no GPU here. Use --device cpu.\n"
    )  # fmt: skip
