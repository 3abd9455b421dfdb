"""The command line, a real Dask cluster, plain LSDB: from a mock survey to neighbours."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lsdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hats.io.validation import is_valid_catalog, is_valid_collection

import skyvec
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.cluster import dask_client
from skyvec.stage.monitor import Monitor
from skyvec_schemas.vectors import tensor_values

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]

NAME = "skyvec_tiny_v1"


def call(*arguments, check=True):
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "skyvec", *map(str, arguments)],
        check=check, capture_output=True, text=True,
    )  # fmt: skip


def stored_vectors(collection: Path, name: str = NAME):
    """Vectors of all leaves, in order, as bytes."""
    release = HatsRelease.open(collection / name)
    tables = [pq.read_table(release.leaf(p), partitioning=None) for p in release.pixels]
    return {
        key: vector.tobytes()
        for table in tables
        for key, vector in zip(
            table.column("object_id").to_pylist(),
            tensor_values(table.column(name), missing=np.nan),
            strict=True,
        )
    }


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """A mock survey of 120 galaxies, embedded on two Dask workers by the command line."""
    collection = tmp_path_factory.mktemp("end-to-end") / "sky"
    call("mock-survey", "--rows", 120, "--seed", 5, "--out", collection)
    done = call("embed", collection, "--workers", 2)
    assert f'load_extension("{NAME}")' in done.stdout
    return collection


def test_what_lsdb_reads_is_the_catalog_with_our_columns(sky):
    before = lsdb.open_catalog(sky).compute(progress_bar=False)
    after = lsdb.open_catalog(sky).load_extension(NAME).compute(progress_bar=False)
    assert after["object_id"].to_list() == before["object_id"].to_list()
    assert after["object_id"].dtype == before["object_id"].dtype
    assert after.index.equals(before.index)
    assert after[NAME].notna().all()


def test_extension_and_collection_are_valid_hats(sky):
    assert is_valid_catalog(sky / NAME, strict=True)
    assert is_valid_collection(sky, strict=True)


def test_two_workers_and_no_worker_write_the_same_bits(sky, tmp_path):
    skyvec.run(sky, name="alone", out=tmp_path, workers=0, batch_rows=17)
    assert stored_vectors(tmp_path, "alone") == stored_vectors(sky)


def test_the_lazy_way_gives_the_same_bits(sky):
    expected = stored_vectors(sky)
    catalog = lsdb.open_catalog(sky)
    lazy = skyvec.embed(catalog.partitions[:2]).compute(progress_bar=False)
    vectors = tensor_values(lazy[NAME].array._pa_array, missing=np.nan)  # noqa: SLF001
    for key, vector in zip(lazy["object_id"], vectors, strict=True):
        assert vector.tobytes() == expected[key]


def test_neighbours_and_a_linear_model_come_from_the_command_line(sky, tmp_path):
    like = next(iter(stored_vectors(sky)))
    found = call("search", sky, "--like", like, "-k", 4, "--save", tmp_path / "near.parquet")
    assert found.returncode == 0
    near = pq.read_table(tmp_path / "near.parquet")
    assert like not in near.column("object_id").to_pylist()
    assert (np.diff(near.column("distance").to_numpy()) >= 0).all()
    call("probe", "fit", sky, "--target", "Z", "--out", tmp_path / "probe")
    call("probe", "apply", sky, "--probe", tmp_path / "probe", "--save", tmp_path / "z.parquet")
    assert pq.read_metadata(tmp_path / "z.parquet").num_rows == 120


def test_a_worker_that_dies_is_replaced_and_every_row_arrives(sky, tmp_path):
    with dask_client(workers=2) as client:
        doomed = client.submit(os.getpid, pure=False).result()

        class KillsOnce(Monitor):
            def pixel(self, record):  # noqa: ARG002
                nonlocal doomed
                if doomed:
                    os.kill(doomed, signal.SIGKILL)
                    doomed = 0

        record = skyvec.run(sky, name="killed", out=tmp_path, client=client, monitor=KillsOnce())
    assert record.exit_code == 0
    assert record.rows == 120
    assert stored_vectors(tmp_path, "killed") == stored_vectors(sky)


def test_a_run_that_is_killed_continues_where_it_stopped(sky, tmp_path):
    command = [sys.executable, "-m", "skyvec", "embed", sky, "--name", "resumed", "--workers", "0"]
    first = subprocess.Popen([*map(str, command), "--out", str(tmp_path)])
    records = tmp_path / "resumed/skyvec/records"
    deadline = time.monotonic() + 120
    while len(list(records.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    first.wait()
    before = len(list(records.glob("*.json")))
    assert 2 <= before < len(HatsRelease.open(sky).pixels)
    assert not (tmp_path / "resumed.properties").exists()
    record = skyvec.run(sky, name="resumed", out=tmp_path, workers=0)
    assert (record.skipped, record.rows) == (before, 120)
    assert stored_vectors(tmp_path, "resumed") == stored_vectors(sky)


def test_ctrl_c_ends_with_one_line_and_what_is_done_stays(sky, tmp_path):
    command = [sys.executable, "-m", "skyvec", "embed", sky, "--name", "stopped", "--workers", "2"]
    started = subprocess.Popen(
        [*map(str, command), "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    records = tmp_path / "stopped/skyvec/records"
    deadline = time.monotonic() + 120
    while len(list(records.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, problem = started.communicate(timeout=120)
    assert started.returncode == 130
    assert problem.strip() == "skyvec: interrupted; run the same command again to continue"
    said = call("status", tmp_path, check=False).stdout
    assert "incomplete, not published" in said
    assert "pixels were not tried (interrupted)" in said
    record = skyvec.run(sky, name="stopped", out=tmp_path, workers=0)
    assert record.skipped >= 2
    assert stored_vectors(tmp_path, "stopped") == stored_vectors(sky)
