"""An extension on a real S3 server: whole or not at all, resumed, refused, read back by LSDB."""

import logging
import re

import lsdb
import pytest
from hats.catalog import ExtensionProperties
from typer.testing import CliRunner
from upath import UPath

from skyvec.cli import app
from skyvec.extensions.quarantine_catalog import quarantine_folder
from skyvec.stage import quarantine
from skyvec.stage.output import Output
from skyvec.stage.plan import plan
from skyvec.stage.run import run
from skyvec.stage.selection import Selection
from skyvec.stage.status import read_status
from skyvec_schemas.errors import ConfigurationError, OutputExistsError

s3fs = pytest.importorskip("s3fs", reason="needs s3fs, as writing to S3 does (skyvec[s3])")
server = pytest.importorskip("moto.server", reason="needs moto with flask, a local S3 server")

NAME = "small_v1"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Right catalog does not have a margin"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Killed(BaseException):
    """The process is gone: nothing may catch it."""


@pytest.fixture(scope="module")
def bucket():
    """URI of an empty bucket that is there while this file is tested."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    local = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    local.start()
    host, port = local.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        store().mkdir("survey")
        yield "s3://survey"
    local.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def out(bucket, request):
    """A prefix of its own for each test."""
    return f"{bucket}/" + re.sub(r"\W+", "-", request.node.name)


def store():
    return s3fs.S3FileSystem(anon=False, use_listings_cache=False)


def remote(uri):
    """As users name what is not public; hats reads S3 anonymously unless told."""
    return UPath(uri, anon=False)


def keys_of(out, under=""):
    base = out.removeprefix("s3://") + "/"
    return sorted(key.removeprefix(base) for key in store().find(f"{out}/{under}"))


@pytest.fixture
def written(monkeypatch):
    """Names of what is put, in order."""
    names = []

    def watch(method):
        real = getattr(Output, method)

        def put(self, content, place):
            real(self, content, place)
            names.append(str(place).partition(f"{NAME}/")[2] or place.name)

        monkeypatch.setattr(Output, method, put)

    watch("put")
    watch("put_text")
    return names


def test_it_is_bit_for_bit_what_a_disk_gets_and_lsdb_joins_it(embedded, model_folder, out):
    result = CliRunner().invoke(
        app,
        ["embed", str(embedded), "--model", str(model_folder), "--out", out, "--workers", "0"],
    )
    assert result.exit_code == 0, result.output
    leaves = keys_of(out, f"{NAME}/dataset/Norder=1")
    assert len(leaves) == 2
    for leaf in leaves:
        assert store().cat(f"{out}/{leaf}") == (embedded / leaf).read_bytes()
    for name in ("_metadata", "_common_metadata"):
        place = f"{NAME}/dataset/{name}"
        assert store().cat(f"{out}/{place}") == (embedded / place).read_bytes()
    catalog = lsdb.open_catalog(embedded)
    here = catalog.load_extension(NAME).compute(progress_bar=False)
    there = catalog.load_extension(remote(f"{out}/{NAME}.properties")).compute(progress_bar=False)
    assert len(here) == 60
    assert here.equals(there)
    alone = lsdb.open_catalog(remote(f"{out}/{NAME}")).compute(progress_bar=False)
    assert len(alone) == 60
    found = ExtensionProperties.read_from_file(remote(f"{out}/{NAME}.properties"))
    assert (found.primary_catalog, found.join_catalog) == (str(embedded.resolve()), NAME)
    told = CliRunner().invoke(app, ["status", out])
    assert told.exit_code == 0, told.output
    assert "complete" in told.output


def test_objects_appear_in_the_order_in_which_they_are_true(
    make_collection, model_folder, out, written
):
    collection = make_collection()
    written.clear()
    run(collection, model=model_folder, workers=0, out=out)
    last = written.index(f"{NAME}.properties")
    assert written[last + 1 :] == ["skyvec/manifest.json"]  # which says that it is published
    order = [written.index(name) for name in (
        "skyvec/job.json", "skyvec/run.json", "skyvec/quanta.parquet", "skyvec/manifest.json",
        "dataset/_metadata", "dataset/_common_metadata", "partition_info.csv", "hats.properties",
        "properties", f"{NAME}.properties",
    )]  # fmt: skip
    assert order == sorted(order)
    for leaf in (name for name in written if name.startswith("dataset/Norder")):
        pixel = leaf.rpartition("Npix=")[2].removesuffix(".parquet")
        record = f"skyvec/records/Norder=1_Npix={pixel}.json"
        assert written.index(leaf) < written.index(record) < order[2]
    assert not keys_of(out, f"{NAME}/skyvec/records")


def test_a_second_run_uploads_nothing_of_the_catalog(make_collection, model_folder, out, written):
    collection = make_collection()
    first = run(collection, model=model_folder, workers=0, out=out)
    written.clear()
    again = run(collection, model=model_folder, workers=0, out=out)
    assert (again.exit_code, again.skipped, again.rows) == (0, 2, 12)
    assert again.properties == first.properties
    assert {name.partition("/")[0] for name in written} == {"skyvec"}


def test_another_model_is_refused(make_collection, model_folder, other_model_folder, out):
    collection = make_collection()
    run(collection, model=model_folder, name=NAME, workers=0, out=out)
    with pytest.raises(OutputExistsError, match=r"made otherwise: model digest"):
        run(collection, model=other_model_folder, name=NAME, workers=0, out=out)


def test_what_somebody_else_put_there_is_not_touched(make_collection, model_folder, out):
    store().pipe_file(f"{out}/{NAME}/thesis.txt", b"mine")
    with pytest.raises(OutputExistsError, match="exists and was not made by skyvec"):
        run(make_collection(), model=model_folder, workers=0, out=out)
    assert keys_of(out) == [f"{NAME}/thesis.txt"]


def test_a_run_that_was_killed_shows_nothing_and_continues(
    make_collection, model_folder, out, monkeypatch
):
    collection, saved = make_collection(), []
    save = Output.save

    def dying(self, record):
        if saved:
            raise Killed
        save(self, record)
        saved.append(record)

    def dead(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Output, "save", dying)
        patch.setattr("skyvec.stage.run._settle", dead)
        with pytest.raises(Killed):
            run(collection, model=model_folder, workers=0, out=out)
    assert not store().exists(f"{out}/{NAME}.properties")
    told = read_status(out)
    assert (told.exit_code, told.lines["extension"]) == (20, NAME)
    again = run(collection, model=model_folder, workers=0, out=out)
    assert (again.exit_code, again.skipped, again.rows) == (0, 1, 12)
    assert read_status(out).exit_code == 0


@pytest.mark.parametrize("name", ["dataset/_metadata", "hats.properties", f"{NAME}.properties"])
def test_a_kill_while_it_publishes_is_healed(make_collection, model_folder, out, monkeypatch, name):
    collection, put = make_collection(), Output.put

    def dying(self, local, place):
        if str(place).endswith(f"/{name}"):
            raise Killed
        put(self, local, place)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "put", dying)
        with pytest.raises(Killed):
            run(collection, model=model_folder, workers=0, out=out)
    assert not store().exists(f"{out}/{NAME}.properties")
    assert read_status(out).exit_code == 20
    again = run(collection, model=model_folder, workers=0, out=out)
    assert (again.exit_code, again.skipped) == (0, 2)
    assert len(lsdb.open_catalog(remote(f"{out}/{NAME}")).compute(progress_bar=False)) == 12


@pytest.mark.parametrize("harm", ["deleted", "other length"])
def test_a_leaf_that_was_harmed_is_made_again(make_collection, model_folder, out, harm):
    collection = make_collection()
    run(collection, model=model_folder, workers=0, out=out)
    leaf = f"{out}/{keys_of(out, f'{NAME}/dataset/Norder=1')[0]}"
    before = store().cat(leaf)
    if harm == "deleted":
        store().rm(leaf)
    else:
        store().pipe_file(leaf, before[:-9])
    again = run(collection, model=model_folder, workers=0, out=out)
    assert (again.exit_code, again.skipped) == (0, 1)
    assert store().cat(leaf) == before


def test_a_choice_of_pixels_and_later_the_rest(make_collection, model_folder, out):
    collection = make_collection()
    for selection, rows in ((Selection(limit=1), 6), (Selection(), 12)):
        record = run(collection, model=model_folder, workers=0, out=out, selection=selection)
        assert (record.exit_code, record.rows) == (0, rows)
        found = store().cat(f"{out}/{NAME}/hats.properties").decode()
        assert f"hats_nrows={rows}\n" in found


def test_a_collection_on_the_store_lists_it(make_collection, model_folder, out):
    local = make_collection()
    store().put(str(local), out, recursive=True)
    run(out, model=model_folder, workers=0, out=out)
    frame = lsdb.open_catalog(remote(out)).load_extension(NAME).compute(progress_bar=False)
    assert (frame[f"{NAME}_status"] == "ok").sum() == 12
    assert run(out, model=model_folder, workers=0, out=out).skipped == 2


def test_the_list_of_bad_objects_is_there_even_after_a_kill(
    make_collection, model_folder, factory, out, monkeypatch
):
    wrong = factory.cutout(1, bands=("des-g", "des-r", "des-i", "hsc-y"))
    collection = make_collection(cutouts=[factory.cutout(i) for i in range(11)] + [wrong])
    put = Output.put

    def dying(self, local, place):
        if str(place).endswith(f"{NAME}_quarantine/hats.properties"):
            raise Killed
        put(self, local, place)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "put", dying)
        with pytest.raises(Killed):
            run(collection, model=model_folder, workers=0, out=out)
    record = run(collection, model=model_folder, workers=0, out=out)
    assert (record.exit_code, record.skipped, record.quarantined) == (0, 2, 1)
    place = quarantine_folder(Output(f"{out}/{NAME}"))
    assert len(lsdb.open_catalog(remote(str(place))).compute(progress_bar=False)) == 1
    assert not store().exists(f"{out}/{NAME}/skyvec/quarantine.half-done")
    listed = quarantine.read_quarantine(Output(f"{out}/{NAME}"), record.quanta[1])
    assert len(listed) == 1


def test_a_bucket_that_is_not_there_is_one_clear_error(make_collection, model_folder, bucket):
    del bucket
    with pytest.raises(ConfigurationError, match=r"s3://nobody/sky/small_v1/.*: is not there"):
        run(make_collection(), model=model_folder, workers=0, out="s3://nobody/sky")


def test_a_prefix_that_is_a_pattern_is_refused(make_collection, model_folder, bucket):
    with pytest.raises(ConfigurationError, match="for patterns"):
        plan(make_collection(), model=model_folder, out=f"{bucket}/run[1]")


def test_planning_writes_nothing(make_collection, model_folder, out):
    prepared = plan(make_collection(), model=model_folder, out=out)
    assert prepared.job.output == f"{out}/{NAME}"
    assert keys_of(out) == []


def test_where_nothing_was_run_status_says_so(out):
    with pytest.raises(ConfigurationError, match=out):
        read_status(out)
