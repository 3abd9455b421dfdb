"""Publishing: nobody sees half of it, and the same command heals whatever a kill left."""

import shutil
import subprocess
import sys
import threading

import hats.io
import lsdb
import pyarrow.parquet as pq
import pytest
from hats.catalog import CollectionProperties, ExtensionProperties, PartitionInfo, TableProperties

from skyvec.extensions import publish, registration
from skyvec.extensions.hats_output import METADATA_FILES
from skyvec.extensions.quarantine_catalog import quarantine_folder
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.output import Output
from skyvec.stage.plan import plan
from skyvec.stage.run import run, run_plan
from skyvec.stage.selection import Selection
from skyvec.stage.status import read_status
from skyvec_schemas.errors import ConfigurationError, InfrastructureError, OutputExistsError

NAME = "small_v1"
FILES = (*METADATA_FILES, f"{NAME}.properties", "collection.properties")
"""In the order of writing."""

pytestmark = pytest.mark.filterwarnings("ignore:Right catalog does not have a margin")


class Killed(BaseException):
    """The process is gone: nothing may catch it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, factory, model_folder):
    """A collection with a published extension, and a plan that finds nothing to do in it."""
    home = tmp_path_factory.mktemp("publish") / "sky"
    collection = factory.write_collection(factory.survey_table(12), home)
    run(collection, model=model_folder, workers=0)
    return plan(collection, model=model_folder)


@pytest.fixture
def again(finished):
    """Run the same command again; every file is there as at first before and after a test."""
    collection = finished.release.path
    kept = collection.with_name("kept")
    shutil.copytree(collection, kept)
    yield lambda: run_plan(finished, workers=0)
    shutil.rmtree(collection)
    kept.rename(collection)


@pytest.fixture
def collection(again, finished):
    del again  # restores it
    return finished.release.path


def unpublish(collection):
    """As after the last record, before anything else."""
    for file in METADATA_FILES:
        (collection / NAME / file).unlink()
    (collection / f"{NAME}.properties").unlink()
    properties = CollectionProperties.read_from_dir(collection)
    properties.all_extensions = None
    properties.to_properties_file(collection)


def place_of(collection, file):
    return collection / file if file in FILES[-2:] else collection / NAME / file


def kill_at(monkeypatch, file, *, late):
    """Die when a file is to get its name, or just has got it."""
    put = Output.put

    def dying(self, local, place):
        if str(place).endswith(f"/{file}"):
            if late:
                put(self, local, place)
            raise Killed
        put(self, local, place)

    monkeypatch.setattr(Output, "put", dying)


def refuse_to_work(monkeypatch):
    def never(*_, **__):
        raise AssertionError("there was nothing to do")

    monkeypatch.setattr(publish, "finish_catalog", never)


def assert_whole(collection, rows=12):
    """Everything a reader may look at says the same, and the next run has nothing to do."""
    folder = collection / NAME
    release = HatsRelease.open(folder)
    assert sum(pq.read_metadata(release.leaf(pixel)).num_rows for pixel in release.pixels) == rows
    assert TableProperties.read_from_dir(folder).total_rows == rows
    assert pq.read_metadata(folder / "dataset" / "_metadata").num_rows == rows
    listed = set(PartitionInfo.read_from_csv(folder / "partition_info.csv").get_healpix_pixels())
    assert listed == set(release.pixels)
    assert ExtensionProperties.read_from_file(collection / f"{NAME}.properties").name == NAME
    extensions = CollectionProperties.read_from_dir(collection).all_extensions
    assert extensions == {NAME: f"{NAME}.properties"}
    assert read_status(collection, NAME).exit_code == 0
    staged = (collection / NAME / ".staging").rglob("*")
    left = [*collection.rglob("*.aside"), *(place for place in staged if place.is_file())]
    assert left == []


def test_metadata_are_those_that_hats_writes(finished, tmp_path):
    folder = finished.release.path / NAME
    hats.io.write_parquet_metadata(folder, output_path=tmp_path)
    for name in ("_metadata", "_common_metadata"):
        ours, theirs = (root / "dataset" / name for root in (folder, tmp_path))
        assert ours.read_bytes() == theirs.read_bytes()


def test_lsdb_loads_it_by_name(finished):
    frame = lsdb.open_catalog(finished.release.path).load_extension(NAME).compute(
        progress_bar=False
    )  # fmt: skip
    assert (frame[f"{NAME}_status"] == "ok").sum() == 12


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("file", FILES)
def test_a_kill_at_any_point_is_healed_by_the_same_command(
    collection, again, monkeypatch, file, late
):
    unpublish(collection)
    with monkeypatch.context() as patch:
        kill_at(patch, file, late=late)
        with pytest.raises(Killed):
            again()
    committed = FILES.index(file) + late > FILES.index(f"{NAME}.properties")
    assert (collection / f"{NAME}.properties").exists() == committed
    listed = (CollectionProperties.read_from_dir(collection).all_extensions or {}).get(NAME)
    assert bool(listed) == (file == "collection.properties" and late)
    if committed:
        assert HatsRelease.open(collection / NAME).catalog.catalog_info.total_rows == 12
    else:
        assert read_status(collection, NAME).exit_code == 20
    record = again()
    assert (record.exit_code, record.skipped) == (0, 2)
    assert record.properties == collection / f"{NAME}.properties"
    assert_whole(collection)


def harm(collection, how):
    properties, dataset = collection / f"{NAME}.properties", collection / NAME / "dataset"
    if how.startswith("without "):
        place_of(collection, how.removeprefix("without ")).unlink()
    elif how == "properties torn":
        properties.write_bytes(properties.read_bytes()[:-70])
    elif how == "properties torn in the seal":
        properties.write_bytes(properties.read_bytes()[:-9])
    elif how == "properties edited":
        properties.write_text(properties.read_text().replace("=left", "=inner"))
    elif how == "properties are no text":
        properties.write_bytes(b"\xff\xfe\x00")
    elif how == "metadata of fewer pixels":
        first = sorted(dataset.rglob("Npix=*.parquet"))[0]
        footer = pq.read_metadata(first)
        footer.set_file_path(str(first.relative_to(dataset)))
        pq.write_metadata(pq.read_schema(first), dataset / "_metadata", [footer])
    elif how == "not listed":
        found = CollectionProperties.read_from_dir(collection)
        found.all_extensions = None
        found.to_properties_file(collection)
    elif how == "listed elsewhere":
        found = CollectionProperties.read_from_dir(collection)
        found.all_extensions = {NAME: "other.properties"}
        found.to_properties_file(collection)
    elif how == "not sealed":
        lines = properties.read_text().splitlines()
        properties.write_text("\n".join(x for x in lines if "skyvec_seal" not in x) + "\n")


@pytest.mark.parametrize(
    "how",
    [
        "without dataset/_common_metadata", "without dataset/_metadata", "without hats.properties",
        "without partition_info.csv", "without point_map.fits", f"without {NAME}.properties",
        "properties torn", "properties torn in the seal", "properties edited",
        "properties are no text", "metadata of fewer pixels", "not listed", "listed elsewhere",
        "not sealed",
    ],
)  # fmt: skip
def test_what_is_torn_or_missing_is_noticed_and_written_anew(collection, again, how):
    harm(collection, how)
    record = again()
    assert (record.exit_code, record.skipped) == (0, 2)
    assert_whole(collection)


def test_nothing_is_written_anew_where_nothing_is_amiss(collection, again, monkeypatch):
    refuse_to_work(monkeypatch)
    files = [place_of(collection, file) for file in FILES]
    files += [collection / NAME / "skyvec" / "quanta.parquet", *collection.rglob("Npix=*.parquet")]
    before = {file: file.stat().st_mtime_ns for file in files}
    assert again().properties == collection / f"{NAME}.properties"
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_a_renamed_collection_is_named_anew(make_collection, model_folder):
    collection = make_collection()
    run(collection, model=model_folder, workers=0)
    moved = collection.rename(collection.with_name("heaven"))
    assert run(moved, model=model_folder, workers=0).skipped == 2
    found = ExtensionProperties.read_from_file(moved / f"{NAME}.properties")
    assert found.primary_catalog == "heaven"
    assert_whole(moved)


def test_a_choice_of_pixels_and_later_the_rest_are_counted_right(make_collection, model_folder):
    collection = make_collection()
    part = run(collection, model=model_folder, workers=0, selection=Selection(limit=1))
    assert (part.exit_code, part.rows, part.pixels) == (0, 6, 1)
    assert_whole(collection, rows=6)
    rest = run(collection, model=model_folder, workers=0)
    assert (rest.exit_code, rest.rows, rest.skipped) == (0, 12, 1)
    assert_whole(collection, rows=12)
    part = run(collection, model=model_folder, workers=0, selection=Selection(limit=1))
    assert (part.exit_code, part.skipped) == (0, 1)
    assert_whole(collection, rows=12)


def test_a_leaf_that_was_killed_before_its_record_is_not_counted(
    make_collection, model_folder, monkeypatch
):
    collection = make_collection()
    save = Output.save

    def dying(self, record):
        if record.pixel != first:
            raise Killed
        save(self, record)

    first = HatsRelease.open(collection).pixels[0].pixel
    with monkeypatch.context() as patch:
        patch.setattr(Output, "save", dying)
        with pytest.raises(Killed):
            run(collection, model=model_folder, workers=0)
    assert len(list((collection / NAME).rglob("Npix=*.parquet"))) == 2
    part = run(collection, model=model_folder, workers=0, selection=Selection(limit=1))
    assert (part.exit_code, part.skipped) == (0, 1)
    assert_whole(collection, rows=6)
    assert run(collection, model=model_folder, workers=0).exit_code == 0
    assert_whole(collection, rows=12)


# ---- the list of what is bad


def spoilt(factory, bad=2, rows=12):
    wrong = factory.cutout(1, bands=("des-g", "des-r", "des-i", "hsc-y"))
    return [factory.cutout(i) for i in range(rows - bad)] + [wrong] * bad


def listed_in(collection):
    return len(lsdb.open_catalog(collection / f"{NAME}_quarantine").compute(progress_bar=False))


def test_the_quarantine_catalog_comes_with_the_extension(make_collection, model_folder, factory):
    collection = make_collection(cutouts=spoilt(factory))
    record = run(collection, model=model_folder, workers=0, max_bad=0.5)
    assert (record.exit_code, record.quarantined) == (0, 2)
    assert listed_in(collection) == 2
    told = TableProperties.read_from_dir(collection / f"{NAME}_quarantine").extra_dict()
    assert f"--reuse {NAME}" in told["skyvec_retry"]
    shutil.rmtree(collection / f"{NAME}_quarantine")
    assert run(collection, model=model_folder, workers=0, max_bad=0.5).skipped == 2
    assert listed_in(collection) == 2


def test_where_too_much_is_bad_to_publish_the_list_is_there(make_collection, model_folder, factory):
    collection = make_collection(cutouts=spoilt(factory, bad=3))
    record = run(collection, model=model_folder, workers=0)
    assert (record.exit_code, record.properties) == (30, None)
    assert listed_in(collection) == 3
    assert not (collection / f"{NAME}.properties").exists()


def test_without_anything_bad_there_is_no_quarantine_catalog(collection, again):
    folder = quarantine_folder(Output(collection / NAME))
    assert not folder.exists()
    properties = TableProperties.read_from_dir(collection / NAME)
    shutil.copytree(collection / NAME, folder)  # of an older run, by its properties
    (folder / "hats.properties").unlink()
    (folder / "properties").unlink()
    old = properties.copy_and_update(skyvec_quarantine_of=NAME)
    old.to_properties_file(folder)
    again()
    assert not folder.exists()
    assert_whole(collection)


def test_a_folder_in_the_way_of_the_list_is_refused_before_any_work(make_collection, model_folder):
    collection = make_collection()
    (collection / f"{NAME}_quarantine").mkdir()
    with pytest.raises(OutputExistsError, match="is not the quarantine catalog of this extension"):
        run(collection, model=model_folder, workers=0)
    assert not (collection / NAME).exists()


# ---- the collection's list


@pytest.fixture
def bare(tmp_path):
    CollectionProperties(name="sky", hats_primary_table_url="cat").to_properties_file(tmp_path)
    return tmp_path


def extensions_of(collection):
    return set(CollectionProperties.read_from_dir(collection).all_extensions or {})


def test_extensions_that_are_registered_at_the_same_time_are_all_listed(bare):
    names = [f"e{i}" for i in range(12)]
    threads = [threading.Thread(target=registration.register, args=(bare, n)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert extensions_of(bare) == set(names)
    assert sorted(p.name for p in bare.iterdir()) == ["collection.properties"]


def test_two_processes_lose_nothing_of_one_another(bare):
    code = (
        "import sys; from pathlib import Path; from skyvec.extensions.registration import register\n"
        "for i in range(25): register(Path(sys.argv[1]), f'{sys.argv[2]}{i}')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(bare), who]) for who in "ab"]
    assert [process.wait(60) for process in started] == [0, 0]
    assert extensions_of(bare) == {f"{who}{i}" for who in "ab" for i in range(25)}


def test_where_nobody_waits_an_overwritten_entry_is_made_again(bare, monkeypatch):
    real, overwritten = registration.replace_properties, []

    def raced(properties, place, **choices):
        before = place.read_bytes()
        real(properties, place, **choices)
        if len(overwritten) < 2:  # by somebody who had read it before
            overwritten.append(place.write_bytes(before))

    monkeypatch.setattr(registration, "replace_properties", raced)
    registration.register(bare, "mine")
    assert extensions_of(bare) == {"mine"}
    assert len(overwritten) == 2


def test_an_entry_that_is_always_overwritten_is_an_error(bare, monkeypatch):
    monkeypatch.setattr(registration, "replace_properties", lambda *_, **__: None)
    with pytest.raises(InfrastructureError, match="overwritten 8 times"):
        registration.register(bare, "mine")


def test_a_collection_that_cannot_be_read_is_named(bare):
    (bare / "collection.properties").write_text("obs_collection=sky\n")
    with pytest.raises(ConfigurationError, match=r"collection.properties: cannot be read"):
        registration.register(bare, "mine")
