"""The command line of releases: what it prints and how it ends."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer

from skyvec.commands import terminal
from skyvec.commands.release import release_app, repack
from skyvec.releases.mmu.writer import write_mmu_release
from skyvec.releases.versions.manifest import Release
from skyvec.releases.working_copy.source import WorkingCopy
from skyvec_schemas.errors import ConfigurationError, DuplicateIdsError, OutputExistsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY


def columns(rows=6, **changes):
    """Rows of a Legacy Survey file in two pixels."""
    rng = np.random.default_rng(0)
    table = {
        "object_id": np.array([f"0001m002-{i}" for i in range(rows)], "S16"),
        "ra": np.where(np.arange(rows) % 2, 10.0, 100.0) + rng.random(rows),
        "dec": 1 + rng.random(rows),
        "image_array": rng.normal(0, 0.1, (rows, 4, 20, 20)).astype(np.float32),
        "image_mask": rng.random((rows, 20, 20)) > 0.05,
        "image_band": np.array([["des-g", "des-r", "des-i", "des-z"]] * rows, "S5"),
        **{s.name: rng.random(rows).astype(np.float32) for s in LEGACY_SURVEY.scalars},
    }
    return table | changes


@pytest.fixture
def app():
    whole = typer.Typer(pretty_exceptions_enable=False)
    whole.add_typer(release_app, name="release")
    whole.command("repack")(repack)
    return whole


@pytest.fixture
def call(app, capsys, monkeypatch):
    """Exit code, output and errors of one call; expected failures of the library are raised."""
    monkeypatch.setattr(terminal.out, "_width", 200)

    def run(*arguments):
        try:
            code = app([str(a) for a in arguments], standalone_mode=False) or 0
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def data(tmp_path):
    write_mmu_release(tmp_path / "one", LEGACY_SURVEY, [columns()])
    changed = columns()
    changed["FLUX_G"][1] += 1
    write_mmu_release(tmp_path / "two", LEGACY_SURVEY, [changed])
    return tmp_path


def test_from_files_to_a_difference(call, data):
    store = data / "store"
    code, printed, _ = call(
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "one",
        "--store",
        store,
        "--name",
        "dr1",
        "--upstream",
        "DR10",
    )
    assert code == 0
    assert "dr1 of legacysurvey (DR10)" in printed
    assert "2 with objects, 0 of them reused" in printed
    code, printed, _ = call(
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "two",
        "--store",
        store,
        "--name",
        "dr2",
        "--parent",
        "dr1",
    )
    assert code == 0
    assert "2 with objects, 1 of them reused" in printed
    assert f"skyvec release diff {store / 'dr1'} {store / 'dr2'}" in printed
    code, printed, _ = call(
        "release", "diff", store / "dr1", store / "dr2", "--save", data / "diff.parquet"
    )
    assert code == 0
    assert "5 objects are equal in dr1 and dr2" in printed
    assert pq.read_table(data / "diff.parquet").column("object_id").to_pylist() == ["0001m002-1"]
    code, printed, _ = call("release", "show", store)
    assert "dr2 of legacysurvey" in printed
    assert "parent   dr1" in printed
    assert call("release", "publish", store / "dr1")[0] == 0
    assert Release.open(store).name == "dr1"


def test_a_spoilt_file_ends_verify_with_30(call, data):
    store = data / "store"
    call(
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "one",
        "--store",
        store,
        "--name",
        "dr1",
    )
    code, printed, _ = call("release", "verify", store)
    assert code == 0
    assert "2 of 2 files digested, all well" in printed
    path = next((data / "one").rglob("*.hdf5"))
    path.write_bytes(path.read_bytes() + b"x")
    (data / "one" / "stray").write_text("")
    code, printed, problem = call("release", "verify", store / "dr1")
    assert code == 30
    assert f"changed {path.relative_to(data / 'one')}" in printed
    assert "extra stray" in printed
    assert "0 files are missing, 1 changed, 1 extra" in problem
    assert problem.count("\n") == 1


def test_objects_are_withdrawn_by_option_or_file(call, data):
    store = data / "store"
    call(
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "one",
        "--store",
        store,
        "--name",
        "dr1",
    )
    (data / "gone.csv").write_text("object_id,reason\n0001m002-2,\n0001m002-3,ghost\n")
    code, printed, _ = call(
        "release", "withdraw", store, "--name", "dr1.1", "--id", "0001m002-1",
        "--ids", data / "gone.csv", "--reason", "satellite",
    )  # fmt: skip
    assert code == 0
    assert "3 objects are withdrawn" in printed
    reasons = {r["object_id"]: r["reason"] for r in Release.open(store).withdrawn.to_pylist()}
    assert reasons == {
        "0001m002-1": "satellite", "0001m002-2": "satellite", "0001m002-3": "ghost"
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="needs ids and a reason"):
        call("release", "withdraw", store, "--name", "x", "--id", "0001m002-1")
    (data / "gone.csv").write_text("id\n3\n")
    with pytest.raises(ConfigurationError, match="no column object_id"):
        call("release", "withdraw", store, "--name", "x", "--ids", data / "gone.csv")
    with pytest.raises(OutputExistsError):
        call(
            "release",
            "make",
            "--survey",
            "legacysurvey",
            data / "one",
            "--store",
            store,
            "--name",
            "dr1",
        )


def test_duplicates_are_refused_or_counted(call, data):
    ids = columns()["object_id"]
    ids[2] = ids[4]
    write_mmu_release(data / "twice", LEGACY_SURVEY, [columns(object_id=ids)])
    make = (
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "twice",
        "--store",
        data / "store",
        "--name",
        "dr1",
    )
    with pytest.raises(DuplicateIdsError, match="1 ids occur more than once"):
        call(*make)
    code, printed, _ = call(*make, "--allow-duplicates")
    assert code == 0
    assert "1 rows repeat an id" in printed


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_release_is_repacked_without_its_withdrawn_objects(call, data, dtype):
    store, copy = data / "store", data / "copy"
    call(
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "one",
        "--store",
        store,
        "--name",
        "dr1",
    )
    call("release", "withdraw", store, "--name", "dr1.1", "--id", "0001m002-1", "--reason", "x")
    code, printed, _ = call("repack", store, "--out", copy, "--window", 12, "--dtype", dtype)
    assert code == 0
    assert "5 objects in 2 pixels (0 done before)" in printed
    assert "1 withdrawn objects" in printed
    assert ("sigma of the noise" in printed) == (dtype == "float16")
    marker = WorkingCopy.open(copy).marker
    assert marker.source == {
        "release": "dr1.1", "digest": Release.open(store).manifest.digest()
    }  # fmt: skip
    code, printed, _ = call("repack", store, "--out", copy, "--window", 12, "--dtype", dtype)
    assert "(2 done before)" in printed
    assert json.loads((copy / "working_copy.json").read_text())["complete"]


def test_a_copy_of_hdf5_files_is_what_their_reader_gives(call, data):
    import torch

    from skyvec.releases.mmu.release import MmuRelease

    call("repack", data / "one", "--out", data / "copy", "--window", 96, "--dtype", "float32")
    copy, release = WorkingCopy.open(data / "copy"), MmuRelease.open(data / "one", LEGACY_SURVEY)
    count = 0
    for pixel in copy.pixels:
        found = []
        for source in (copy, release):
            objects = source.objects(pixel, margin_arcsec=0)
            order = np.argsort(objects.ids)
            (reading,) = source.read(objects, order, rows=100)
            back = np.argsort(reading.index)
            observed = reading.observations
            found.append(
                {key: observed[key][back] for key in observed if key != "tok_image"}
                | {"flux": observed["tok_image"].flux_BCHW[back],
                   "good": observed["tok_image"].good_BCHW[back],
                   "flags": torch.from_numpy(reading.flags)[back]}
            )  # fmt: skip
            count += len(order)
        ours, theirs = found
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, equal_nan=True)
    assert count == 12


def test_a_collection_is_repacked_too(call, make_collection, tmp_path):
    collection = make_collection()
    code, printed, _ = call("repack", collection, "--out", tmp_path / "copy")
    assert code == 0
    assert "12 objects in" in printed
    assert WorkingCopy.open(tmp_path / "copy").window == 96


def test_a_release_in_several_folders_is_not_repacked(call, data):
    store = data / "store"
    call(
        "release",
        "make",
        "--survey",
        "legacysurvey",
        data / "one",
        "--store",
        store,
        "--name",
        "dr1",
    )
    next((data / "two").rglob("*.hdf5")).unlink()
    call(
        "release", "make", "--survey", "legacysurvey", data / "two", "--store", store, "--name", "dr2", "--parent", "dr1",
        "--carry",
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="Make the release with --link"):
        call("repack", store, "--out", data / "copy")
    with pytest.raises(ConfigurationError, match="'float8' is not known"):
        call("repack", store / "dr1", "--out", data / "copy", "--dtype", "float8")
