"""Drop: gone completely, whatever kills it on the way; never anything that is not ours."""

import os
import shutil

import hats
import pytest
import typer
from hats.catalog import CollectionProperties, ExtensionProperties, TableProperties
from typer.testing import CliRunner

from skyvec.commands import extensions as command
from skyvec.extensions.drop import drop, droppable
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.stage.run import run
from skyvec_schemas.errors import ConfigurationError, InfrastructureError

NAME = "small_v1"
STEPS = ("unlink", "rmdir", "rename", "replace", "mkdir")


@pytest.fixture
def collection(embedded, tmp_path):
    """A collection with a published extension."""
    return shutil.copytree(embedded, tmp_path / "sky")


def add_quarantine(collection, *, of=NAME):
    folder = collection / f"{NAME}_quarantine"
    (folder / "dataset").mkdir(parents=True)
    (folder / "dataset" / "leaf.parquet").write_bytes(b"rows")
    TableProperties(
        catalog_name=folder.name, catalog_type="object", total_rows=1, ra_column="ra",
        dec_column="dec", skyvec_quarantine_of=of,
    ).to_properties_file(str(folder))  # fmt: skip
    return folder


def tree(folder, *, without=()):
    """Every file and folder with its content, below those that are not left out."""
    return {
        str(place.relative_to(folder)): place.read_bytes() if place.is_file() else None
        for place in sorted(folder.rglob("*"))
        if place.relative_to(folder).parts[0] not in without
    }


def listed(collection):
    return CollectionProperties.read_from_dir(str(collection)).all_extensions


def change_properties(collection, **changes):
    info = ExtensionProperties.read_from_file(collection / f"{NAME}.properties")
    info.model_copy(update=changes).to_properties_file_path(collection / f"{NAME}.properties")


def test_a_dropped_extension_is_gone_and_nothing_else_is(collection):
    quarantine = add_quarantine(collection)
    ours = (NAME, quarantine.name, f"{NAME}.properties", "collection.properties")
    before = tree(collection, without=ours)
    gone = tree(collection, without=(*{place.split("/")[0] for place in before}, ours[-1]))
    sizes = [len(content) for content in gone.values() if content is not None]
    dropped = drop(collection, NAME)
    assert tree(collection, without=("collection.properties",)) == before
    assert listed(collection) is None
    assert dropped.collections == (collection,)
    assert dropped.folders == (collection / NAME, quarantine)
    assert dropped.kept == ()
    assert (dropped.files, dropped.bytes) == (len(sizes), sum(sizes))
    assert hats.read_hats(collection).all_extensions is None


def test_other_extensions_and_properties_stay_registered(collection):
    info = CollectionProperties.read_from_dir(str(collection))
    info.all_extensions = {
        **info.all_extensions,
        "other": "other.properties",
        "far": "s3://b/f.properties",
    }
    info.default_index, info.all_indexes = "object_id", {"object_id": "ids"}
    info.to_properties_file(str(collection))
    (collection / "collection.properties").chmod(0o640)
    drop(collection, NAME)
    after = CollectionProperties.read_from_dir(str(collection))
    assert after.all_extensions == {"other": "other.properties", "far": "s3://b/f.properties"}
    assert after.all_indexes == {"object_id": "ids"}
    assert (collection / "collection.properties").stat().st_mode & 0o777 == 0o640


def test_looking_changes_nothing(collection):
    add_quarantine(collection)
    before = tree(collection)
    found = droppable(collection, NAME)
    assert tree(collection) == before
    assert drop(collection, NAME) == found


def test_kept_files_are_published_again_by_the_same_run(collection, model_folder):
    before = tree(collection / NAME / "dataset")
    dropped = drop(collection, NAME, keep_files=True)
    assert (dropped.files, dropped.folders, dropped.kept) == (1, (), (collection / NAME,))
    assert listed(collection) is None
    assert not (collection / f"{NAME}.properties").exists()
    with pytest.raises(ConfigurationError, match="no extension 'small_v1' is published"):
        drop(collection, NAME, keep_files=True)
    record = run(collection, model=model_folder, workers=0)
    assert record.skipped == len(record.quanta)
    assert tree(collection / NAME / "dataset") == before
    assert listed(collection) == {NAME: f"{NAME}.properties"}
    drop(collection, NAME)


def test_a_run_that_was_never_published_is_dropped(collection):
    drop(collection, NAME, keep_files=True)
    assert drop(collection, NAME).folders == (collection / NAME,)
    assert not (collection / NAME).exists()


@pytest.mark.parametrize("left", ["skyvec", "skyvec/job.json"])
def test_a_run_killed_at_its_very_beginning_is_dropped(collection, left):
    place = collection / "young_v1" / left
    place.parent.mkdir(parents=True)
    place.write_text("{}") if place.suffix else place.mkdir()
    drop(collection, "young_v1")
    assert not (collection / "young_v1").exists()
    assert listed(collection) == {NAME: f"{NAME}.properties"}


def test_a_registration_without_files_is_dropped(collection):
    (collection / f"{NAME}.properties").unlink()
    shutil.rmtree(collection / NAME)
    assert drop(collection, NAME).files == 0
    assert listed(collection) is None


def test_an_extension_written_elsewhere_is_dropped_by_its_properties(
    make_collection, model_folder, tmp_path
):
    collection, out = make_collection(), tmp_path / "out"
    record = run(collection, model=model_folder, out=out, workers=0)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="no extension 'small_v1'"):
        drop(collection, NAME)
    info = CollectionProperties.read_from_dir(str(collection))
    info.all_extensions = {"alias": str(record.properties)}
    info.to_properties_file(str(collection))
    dropped = drop(collection, str(record.properties))
    assert dropped.home == out
    assert dropped.collections == (collection,)
    assert listed(collection) is None
    assert list(tree(out)) == ["mine.txt"]


def test_the_folder_of_the_output_serves_as_well_as_the_collection(
    make_collection, model_folder, tmp_path
):
    run(make_collection(), model=model_folder, out=tmp_path / "out", workers=0)
    drop(tmp_path / "out", NAME)
    assert not tree(tmp_path / "out")


# ---- killed on the way


def killing(monkeypatch, at):
    """Raise instead of the step ``at`` that changes the disk; returns the steps seen."""
    seen = []

    def stepping(real):
        def step(*args, **kwargs):
            seen.append(real.__name__)
            if len(seen) == at + 1:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return step

    for name in STEPS:
        monkeypatch.setattr(os, name, stepping(getattr(os, name)))
    return seen


def drop_killed(monkeypatch, collection, *, at):
    """Drop until the step ``at``; returns the steps."""
    with monkeypatch.context() as patch:
        seen = killing(patch, at=at)
        with pytest.raises(KeyboardInterrupt):
            drop(collection, NAME)
    return seen


def works(collection):
    properties = hats.read_hats(collection).get_extension_path(NAME)
    vectors = VectorCatalog.open(collection, str(properties))
    return sum(len(part.ids) for part in vectors.parts()) == 60


def rest(collection):
    return sorted(place.name for place in collection.iterdir())


def test_a_kill_at_any_step_leaves_the_extension_or_what_a_second_drop_removes(
    embedded, tmp_path, monkeypatch
):
    def fresh(name):
        made = shutil.copytree(embedded, tmp_path / name, copy_function=os.link)
        shutil.copy(embedded / "collection.properties", tmp_path / "copy").replace(
            made / "collection.properties"
        )
        add_quarantine(made)
        return made

    whole = fresh("whole")
    with monkeypatch.context() as patch:
        steps = killing(patch, at=10**9)
        drop(whole, NAME)
    assert set(steps) == set(STEPS)
    states = set()
    for at in range(len(steps)):
        collection = fresh(f"kill{at}")
        drop_killed(monkeypatch, collection, at=at)
        hats.read_hats(collection)
        state = (
            NAME in (listed(collection) or {}),
            (collection / f"{NAME}.properties").exists(),
            (collection / NAME).exists(),
        )
        if state[0] and state not in states:
            assert works(collection)
        states.add(state)
        drop(collection, NAME)
        assert rest(collection) == ["cat", "collection.properties"]
        assert listed(collection) is None
    assert states == {
        (True, True, True), (False, True, True), (False, False, True), (False, False, False)
    }  # fmt: skip
    assert tree(collection / "cat") == tree(embedded / "cat")


def test_a_second_kill_and_a_new_run_in_between_do_not_harm(collection, model_folder, monkeypatch):
    steps = drop_killed(monkeypatch, collection, at=6)
    assert not (collection / NAME).exists(), steps
    run(collection, model=model_folder, workers=0)
    assert works(collection)
    for at in (5, 9, 7, 4):
        drop_killed(monkeypatch, collection, at=at)
    drop(collection, NAME)
    assert rest(collection) == ["cat", "collection.properties"]


def test_half_written_properties_of_the_collection_are_never_seen(collection, monkeypatch):
    write = CollectionProperties.to_properties_file_path

    def torn(self, path, **kwargs):
        write(self, path, **kwargs)
        path.write_bytes(path.read_bytes()[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CollectionProperties, "to_properties_file_path", torn)
        with pytest.raises(KeyboardInterrupt):
            drop(collection, NAME)
    assert works(collection)
    drop(collection, NAME)
    assert rest(collection) == ["cat", "collection.properties"]


def test_a_disk_that_does_not_let_go_is_one_line_and_a_second_call_continues(
    collection, monkeypatch
):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(InfrastructureError, match=r"Permission denied.*same command again"):
            drop(collection, NAME)
    drop(collection, NAME)
    assert rest(collection) == ["cat", "collection.properties"]


# ---- never anything that is not ours


def refused(collection, name, message):
    root = collection.parent
    before = tree(root)
    with pytest.raises(ConfigurationError, match=message) as caught:
        drop(collection, name)
    assert tree(root) == before
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../sky/small_v1", "a/b", "..", ".", "", "/etc", "small_v1/", "a b", "*", "..\\x"]
)
def test_a_name_that_is_a_path_is_refused(collection, name):
    refused(collection, name, "not the name of an extension")


def test_what_is_not_there_is_refused(collection):
    refused(collection, "other", r"sky: no extension 'other'\.")
    refused(collection, str(collection / "other.properties"), "no extension 'other'")
    refused(collection, "/no/such/x.properties", "there is no such folder")
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        drop(collection / "nowhere", NAME)


def test_the_catalog_itself_is_refused(collection):
    refused(collection, "cat", "is the catalog itself")
    shutil.copytree(collection / NAME / "skyvec", collection / "cat" / "skyvec")
    refused(collection, "cat", "is the catalog itself")


def test_files_of_the_collection_are_no_extensions(collection):
    refused(collection, "collection", "collection.properties: does not describe an extension")
    refused(
        collection, str(collection / "cat" / "hats.properties"), "does not describe an extension"
    )


def test_a_folder_of_somebody_else_is_refused(collection):
    (collection / "mine").mkdir()
    (collection / "mine" / "data.txt").write_text("mine")
    refused(collection, "mine", r"mine: was not made by skyvec")
    shutil.rmtree(collection / NAME / "skyvec")
    refused(collection, NAME, r"small_v1: was not made by skyvec")


def test_a_hidden_folder_of_somebody_else_is_refused(collection):
    (collection / f".{NAME}.dropped").mkdir()
    (collection / f".{NAME}.dropped" / "data.txt").write_text("mine")
    refused(collection, NAME, r"\.small_v1\.dropped: was not made by skyvec")


def test_an_extension_of_another_tool_is_refused(collection):
    info = ExtensionProperties.read_from_file(collection / f"{NAME}.properties")
    extra = {key: None for key in info.extra_dict() if key.startswith("skyvec")}
    change_properties(collection, **extra)
    refused(collection, NAME, "an extension that skyvec did not make")


@pytest.mark.parametrize("place", ["../elsewhere", "/data/x", "cat", ".", f"./{NAME}"])
def test_properties_that_lead_elsewhere_are_refused(collection, place):
    change_properties(collection, join_catalog=place)
    refused(collection, NAME, f"describes data in {place}, not in small_v1")


def test_a_torn_properties_file_is_refused(collection):
    (collection / f"{NAME}.properties").write_text("obs_coll")
    refused(collection, NAME, "does not describe an extension")


def test_a_name_that_the_collection_gives_to_a_file_elsewhere_is_refused(collection):
    info = CollectionProperties.read_from_dir(str(collection))
    info.all_extensions = {NAME: "/data/other.properties"}
    info.to_properties_file(str(collection))
    refused(collection, NAME, "described elsewhere, by /data/other.properties")


@pytest.fixture
def outside(collection, tmp_path):
    """The extension's folder, moved out of the collection."""
    return (collection / NAME).rename(tmp_path / "outside")


def test_a_link_in_the_place_of_the_folder_is_refused(collection, outside):
    (collection / NAME).symlink_to(outside, target_is_directory=True)
    refused(collection, NAME, "small_v1: was not made by skyvec")


def test_a_link_in_the_place_of_the_mark_is_refused(collection, outside):
    (collection / NAME).mkdir()
    (collection / NAME / "skyvec").symlink_to(outside / "skyvec", target_is_directory=True)
    refused(collection, NAME, "small_v1: was not made by skyvec")
    (collection / NAME / "skyvec").unlink()
    (collection / NAME / "skyvec").mkdir()
    (collection / NAME / "skyvec" / "run.json").symlink_to(outside / "skyvec" / "run.json")
    refused(collection, NAME, "small_v1: was not made by skyvec")


def test_a_link_in_the_place_of_the_properties_is_refused(collection, tmp_path):
    file = (collection / f"{NAME}.properties").rename(tmp_path / "x.properties")
    (collection / f"{NAME}.properties").symlink_to(file)
    refused(collection, NAME, "is not a file but a link")


def test_links_inside_go_and_what_they_lead_to_stays(collection, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "data.txt").write_text("mine")
    (collection / NAME / "folder").symlink_to(tmp_path / "outside", target_is_directory=True)
    (collection / NAME / "dataset" / "file").symlink_to(tmp_path / "outside" / "data.txt")
    (collection / NAME / "skyvec" / "folder").symlink_to(tmp_path / "outside")
    drop(collection, NAME)
    assert tree(tmp_path / "outside") == {"data.txt": b"mine"}
    assert not (collection / NAME).exists()


def test_a_collection_that_is_a_link_itself_is_followed(collection, tmp_path):
    (tmp_path / "link").symlink_to(collection, target_is_directory=True)
    drop(tmp_path / "link", NAME)
    assert rest(collection) == ["cat", "collection.properties"]


@pytest.mark.parametrize("kind", ["of another", "of nobody", "link"])
def test_a_quarantine_that_is_not_ours_stays(collection, tmp_path, kind):
    folder = add_quarantine(collection, of="another" if kind == "of another" else NAME)
    if kind == "of nobody":
        for name in ("hats.properties", "properties"):
            (folder / name).unlink()
    elif kind == "link":
        folder.symlink_to(folder.rename(tmp_path / "far"), target_is_directory=True)
    before = tree(folder)
    dropped = drop(collection, NAME)
    assert dropped.kept == (folder,)
    assert tree(folder) == before
    assert not (collection / NAME).exists()


def test_a_remote_place_is_refused():
    with pytest.raises(ConfigurationError, match="is not on this machine"):
        drop("memory://sky", NAME)


# ---- the command


@pytest.fixture
def command_line():
    app = typer.Typer()
    app.command()(command.drop)

    def call(*words, **kwargs):
        return CliRunner().invoke(app, [str(word) for word in words], **kwargs)

    return call


def test_the_command_says_what_it_removed(collection, command_line):
    done = command_line(collection, "--extension", NAME, "--yes")
    assert done.exit_code == 0
    assert "Removed extension small_v1" in done.output
    assert "small_v1/" in done.output
    assert "small_v1.properties" in done.output
    assert not (collection / NAME).exists()


def test_the_command_refuses_where_nobody_can_answer(collection, command_line):
    before = tree(collection)
    done = command_line(collection, "--extension", NAME)
    assert isinstance(done.exception, ConfigurationError)
    assert "Give --yes" in str(done.exception)
    assert tree(collection) == before


@pytest.mark.parametrize(("answer", "there", "code"), [("n\n", True, 1), ("y\n", False, 0)])
def test_the_command_asks_in_a_terminal(collection, command_line, monkeypatch, answer, there, code):
    monkeypatch.setattr(command, "_somebody_is_there", lambda: True)
    done = command_line(collection, "--extension", NAME, input=answer)
    assert done.exit_code == code
    assert "Remove extension small_v1?" in done.output
    assert (collection / NAME).exists() == there


def test_the_command_keeps_files_if_told_to(collection, command_line):
    done = command_line(collection, "--extension", NAME, "--yes", "--keep-files")
    assert done.exit_code == 0
    assert "kept" in done.output
    assert (collection / NAME).is_dir()
    assert listed(collection) is None
