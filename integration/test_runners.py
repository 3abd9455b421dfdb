"""Other engines run the stage: ceci, RAIL and Snakemake for real, Nextflow as far as it goes here."""

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lsdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import skyvec
from skyvec.runners.outcome import BadObjectsError, UnfinishedError, raise_unless_complete
from skyvec_schemas.errors import ContractError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]

EXAMPLES = Path(__file__).parents[1] / "docs/runners"
NAME = "skyvec_tiny_v1"
SKYVEC = f"{sys.executable} -m skyvec"


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


def call(*command, folder, check=True, **environment):
    """Run a command as a user does, with the Python of the tests first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*map(str, command)], check=False, capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A mock survey of 60 galaxies."""
    folder = tmp_path_factory.mktemp("runners") / "sky"
    command = ["mock-survey", "--rows", "60", "--seed", "5", "--out", folder]
    call(sys.executable, "-m", "skyvec", *command, folder=folder.parent)
    return folder


@pytest.fixture
def work(survey, tmp_path):
    """A folder with the examples of the documentation and the survey beside them."""
    return laid_out(tmp_path, survey)


@pytest.fixture(scope="module")
def embedded(survey, tmp_path_factory):
    """Such a folder after ceci has run the example; tests leave it as it is."""
    folder = laid_out(tmp_path_factory.mktemp("embedded"), survey)
    said, _ = ceci(folder)
    assert "Pipeline successful" in said
    return folder


def laid_out(folder, survey):
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    shutil.copytree(survey, folder / "sky")
    configure(folder, "workers: 0")
    return folder


def configure(folder, *lines, name="config.yml"):
    """Put these options in place of the example's workers."""
    text = (EXAMPLES / "config.yml").read_text()
    (folder / name).write_text(
        re.sub(r"^  workers:.*$", "\n".join(f"  {line}" for line in lines), text, flags=re.M)
    )


def ceci(folder, *overrides, pipeline="pipeline.yml", check=True):
    """Run a pipeline file; what ceci said, and the log of the stage."""
    log = folder / "logs/SkyvecEmbed.out"
    log.unlink(missing_ok=True)
    done = call("ceci", pipeline, *overrides, folder=folder, check=False)
    heard = log.read_text() if log.is_file() else ""
    assert done.returncode == 0 or not check, done.stdout + done.stderr + heard
    return done.stdout + done.stderr, heard


def written(extension):
    """Leaf of an extension -> when it was written, in ns."""
    leaves = (extension / "dataset").rglob("Npix=*.parquet")
    return {leaf.name: leaf.stat().st_mtime_ns for leaf in leaves}


def first_leaf(sky):
    return min((sky / "mock_dr1/dataset").rglob("Npix=*.parquet"))


@needs("ceci")
def test_lsdb_and_the_next_stage_read_what_ceci_made(embedded):
    from skyvec.runners.ceci import HatsCatalog, HatsExtension

    sky, extension = str(embedded / "sky"), str(embedded / f"results/{NAME}.properties")
    after = lsdb.open_catalog(sky).load_extension(extension)
    rows = after.compute(progress_bar=False)
    assert len(rows) == 60
    assert rows[NAME].notna().all()
    with HatsExtension(extension, "r") as opened, HatsCatalog(sky, "r") as before:
        assert list(opened.file.columns) == list(after.columns)
        assert NAME not in before.file.columns


@needs("ceci")
def test_ceci_and_skyvec_run_find_each_others_work_done(embedded):
    record = skyvec.run(embedded / "sky", name=NAME, out=embedded / "results", workers=0)
    assert record.skipped == len(record.quanta) > 1
    first = skyvec.run(embedded / "sky", name="by_python", out=embedded / "others", workers=0)
    assert first.provenance.fingerprint() == record.provenance.fingerprint()
    first.properties.unlink()  # so that ceci does not skip the stage
    text = (embedded / "pipeline.yml").read_text()
    (embedded / "others.yml").write_text(text.replace(NAME, "by_python"))
    before = written(embedded / "others/by_python")
    ceci(embedded, "output_dir=others", pipeline="others.yml")
    assert written(embedded / "others/by_python") == before
    assert first.properties.is_file()


@needs("ceci")
def test_ceci_skips_what_is_there_but_not_for_another_model_or_settings(embedded):
    said, _ = ceci(embedded)
    assert "Skipping stage SkyvecEmbed" in said
    configure(embedded, "workers: 0", "without: [FLUX_W4]", name="changed.yml")
    said, _ = ceci(embedded, "config=changed.yml", check=False)
    assert "OutputExistsError" in said
    assert "made otherwise: inputs (this run" in said
    said, log = ceci(embedded, "config=changed.yml", "resume=false", check=False)
    assert "failed with status 40" in said
    assert "Traceback" not in log


@needs("ceci")
def test_strict_stops_the_pipeline_at_objects_in_quarantine_also_the_second_time(work):
    leaf = first_leaf(work / "sky")
    table = pq.read_table(leaf, partitioning=None)
    at = table.column_names.index("image")
    images = table.column("image").to_pylist()
    images[0]["flux"] = [[[float("nan")] * 96] * 96] * 4
    poisoned = pa.array(images, table.schema.types[at])
    pq.write_table(table.set_column(at, table.schema.field(at), poisoned), leaf)
    configure(work, "workers: 0", "strict: true")
    said, _ = ceci(work, check=False)
    assert "failed with status 10" in said
    assert (work / f"results/{NAME}.properties").is_file()
    said, _ = ceci(work, check=False)
    assert "1 objects in quarantine" in said
    configure(work, "workers: 0")
    assert "Skipping stage" in ceci(work)[0]


@needs("ceci")
def test_a_small_run_does_not_pass_for_the_whole_and_is_continued(work):
    configure(work, "workers: 0", "limit: 1")
    ceci(work)
    configure(work, "workers: 0")
    said, _ = ceci(work, check=False)
    assert "are still to be made. Delete this one file" in said
    (work / f"results/{NAME}.properties").unlink()
    before = written(work / "results" / NAME)
    ceci(work)
    after = written(work / "results" / NAME)
    assert len(after) > len(before) == 1
    assert before.items() <= after.items()


@needs("ceci")
def test_the_exit_code_of_bad_data_reaches_ceci(work):
    leaf = first_leaf(work / "sky")
    whole = leaf.read_bytes()
    leaf.write_bytes(whole[:4] + b"\xff" * 600 + whole[604:])  # the header of the first page
    said, log = ceci(work, check=False)
    assert "failed with status 30" in said
    assert not (work / f"results/{NAME}.properties").exists()
    assert log.strip().splitlines()[-1].startswith("skyvec: ")


@needs("ceci")
def test_tokens_of_one_stage_are_the_input_of_the_next(work):
    (work / "two.yml").write_text(
        "modules: skyvec.runners.ceci\n"
        "stages:\n- name: SkyvecTokenize\n- name: SkyvecEmbedTokens\n"
        "inputs: {catalog: sky}\nconfig: two_config.yml\noutput_dir: two\nlog_dir: logs\n"
        "launcher: {name: mini, interval: 0.5}\nsite: {name: local, max_threads: 1}\n"
    )
    (work / "two_config.yml").write_text("global: {workers: 0}\n")
    call("ceci", "two.yml", folder=work)
    rows = lsdb.open_catalog(work / "sky").load_extension(str(work / "two/embedding.properties"))
    assert rows.compute(progress_bar=False)["embedding"].notna().all()


@needs("ceci")
@needs("rail")
def test_the_stage_runs_beside_a_stage_of_rail(work):
    fluxes = pq.read_table(
        first_leaf(work / "sky"), columns=["FLUX_G", "FLUX_R"], partitioning=None
    )
    pq.write_table(fluxes, work / "fluxes.pq")
    pipeline = (work / "pipeline.yml").read_text()
    pipeline = pipeline.replace(
        "stages:", "stages:\n  - {name: map, classname: ColumnMapper, aliases: {input: fluxes}}"
    )
    pipeline = pipeline.replace("inputs:", "inputs:\n  fluxes: fluxes.pq")
    modules = "modules: rail.tools.table_tools skyvec.runners.ceci"
    (work / "pipeline.yml").write_text(re.sub(r"^modules:.*$", modules, pipeline, flags=re.M))
    with (work / "config.yml").open("a") as config:
        config.write("\nmap: {name: map, columns: {FLUX_G: flux_g}}\n")
    said, _ = ceci(work)
    assert "Pipeline successful" in said
    assert pq.read_schema(work / "results/output.pq").names == ["flux_g", "FLUX_R"]
    assert (work / f"results/{NAME}.properties").is_file()


@needs("ceci")
def test_the_options_are_those_of_skyvec_run():
    from skyvec.runners.ceci import SkyvecEmbed, SkyvecEmbedTokens
    from skyvec.stage.selection import Selection

    asked = inspect.signature(skyvec.run).parameters
    by_ceci = {"catalog", "name", "out", "product"}
    of_python = {"client", "patience", "monitor", "selection"}
    options = SkyvecEmbed.config_options
    inputs = {tag for tag, _ in SkyvecEmbedTokens.inputs}
    assert set(asked) - by_ceci - of_python <= set(options) | inputs
    assert set(inspect.signature(Selection.parse).parameters) <= set(options)
    for key in set(asked) & set(options) - {"survey", "sources"}:
        assert options[key].default == asked[key].default, key
    assert options["survey"].default == asked["survey"].default.name


def test_without_ceci_there_is_one_line_that_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['ceci'] = None; from skyvec.runners.__main__ import main; main()"
    )
    done = call(sys.executable, "-c", code, folder=tmp_path, check=False)
    assert done.returncode == 40
    assert re.fullmatch(r"skyvec: ceci: cannot be imported .*skyvec\[rail\].*\n", done.stderr)


@pytest.mark.parametrize(
    ("code", "error"), [(10, BadObjectsError), (20, UnfinishedError), (30, ContractError)]
)
def test_an_outcome_keeps_its_exit_code(code, error):
    record = SimpleNamespace(
        exit_code=code, output="out/v", quarantined=3, problems=("Norder=1 Npix=2: lost", "others")
    )
    with pytest.raises(error) as caught:
        raise_unless_complete(record)
    assert caught.value.exit_code == code
    assert str(caught.value).startswith("out/v: ")
    record.exit_code = 0
    raise_unless_complete(record)


@pytest.fixture
def flaky(work):
    """A skyvec that ends with each of these codes in turn, after a part of the work if it is 20."""

    def write(*codes):
        script = work / "flaky.sh"
        script.write_text(
            f"#!/bin/bash\ncodes=({' '.join(map(str, codes))})\n"
            f'echo "$*" >> {work}/calls\nn=$(wc -l < {work}/calls)\n'
            f"touch {work}/call$n; code=${{codes[$((n - 1))]:-0}}; part=()\n"
            'if [ "$code" = 20 ]; then part=(--limit 1); fi\n'
            f'case $code in 0|20) {SKYVEC} "$@" --workers 0 "${{part[@]}}" || exit ;; esac\n'
            "exit $code\n"
        )
        script.chmod(0o755)
        return script

    return write


def snakemake(folder, command, *, check=True):
    return call(
        "snakemake", "--cores", 1, "--config", f"skyvec={command}", folder=folder, check=check,
        XDG_CACHE_HOME=str(folder / "cache"),
    )  # fmt: skip


def calls(folder):
    return len((folder / "calls").read_text().splitlines())


@needs("snakemake")
def test_snakemake_runs_again_after_20_and_50_and_nothing_is_done_twice(work, flaky):
    command = flaky(20, 50)
    snakemake(work, command)
    assert calls(work) == 3
    leaves = written(work / "results" / NAME).values()
    second_call = (work / "call2").stat().st_mtime_ns
    assert [when < second_call for when in leaves].count(True) == 1
    extension = work / f"results/{NAME}.properties"
    rows = lsdb.open_catalog(work / "sky").load_extension(str(extension))
    assert rows.compute(progress_bar=False)[NAME].notna().all()
    again = snakemake(work, command)
    assert "Nothing to be done" in again.stdout + again.stderr
    assert calls(work) == 3


@needs("snakemake")
@pytest.mark.parametrize("code", [10, 30, 40])
def test_snakemake_does_not_try_again_what_would_end_the_same_way(work, flaky, code):
    command = flaky(code, code, code)
    for starts in (1, 2):  # a person may start it anew
        failed = snakemake(work, command, check=False)
        assert failed.returncode != 0
        assert calls(work) == starts


def test_nextflow_tries_again_what_deserves_it_and_nothing_else():
    rules = (EXAMPLES / "nextflow.config").read_text()
    listed = re.search(r"task\.exitStatus in \[([\d, ]+)\] \? 'retry' : 'finish'", rules)
    retried = {int(code) for code in listed[1].split(",")}
    assert {20, 50} <= retried
    assert retried.isdisjoint({10, 30, 40, 130})
    assert int(re.search(r"maxRetries = (\d+)", rules)[1]) > 0


def test_the_script_of_the_nextflow_process_runs_and_hands_on_the_exit_code(work, flaky, tmp_path):
    text = (EXAMPLES / "main.nf").read_text()
    script = re.search(r'"""\n(.*?)"""', text, re.DOTALL)[1]
    values = {
        "params.skyvec": flaky(20), "params.options": "--batch-rows 16", "task.cpus": 2,
        "catalog": work / "sky", "out": work / "results", "name": NAME,
    }  # fmt: skip
    filled = re.sub(r"\$\{([\w.]+)\}", lambda found: str(values[found[1]]), script)
    for attempt, code in enumerate([20, 0]):
        task = tmp_path / f"attempt{attempt}"
        task.mkdir()
        assert call("bash", "-ue", "-c", filled, folder=task, check=False).returncode == code
    assert (task / f"{NAME}.properties").resolve() == work / f"results/{NAME}.properties"
