"""Wherever a run is killed, the same command again ends as if it had not been."""

import os
from pathlib import Path
from types import SimpleNamespace

import distributed
import lsdb
import msgpack
import pyarrow.parquet as pq
import pytest

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage import pools
from skyvec.stage import run as stage_run
from skyvec.stage.dask_task import packed, run_task
from skyvec.stage.failures import Failure, kind_of
from skyvec.stage.monitor import Beat
from skyvec.stage.output import MANIFEST, STAGING
from skyvec.stage.plan import plan
from skyvec.stage.run import run

NAME = "small_v1"


class Killed(BaseException):
    """As a signal does, this passes through everything."""


def dies(monkeypatch, owner, name, when=lambda *_: True):
    """Die when a function is called with such arguments."""
    real = getattr(owner, name)

    def dying(*arguments, **choices):
        if when(*arguments):
            raise Killed
        return real(*arguments, **choices)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    "file",
    ["run.json", "quanta.parquet", "manifest.json", "hats.properties", f"{NAME}.properties",
     "collection.properties"],
)  # fmt: skip
def test_a_run_killed_before_a_file_has_its_name_is_ended_by_the_next(
    make_collection, model_folder, monkeypatch, file
):
    collection = make_collection()
    with monkeypatch.context() as patch:
        dies(patch, os, "replace", lambda _from, to: Path(to).name == file)
        with pytest.raises(Killed):
            run(collection, model=model_folder, workers=0)
    left = collection / NAME / STAGING / "quanta.parquet.0"
    left.parent.mkdir(exist_ok=True)
    left.write_text("half")
    assert run(collection, model=model_folder, workers=0).exit_code == 0
    assert not left.exists()
    frame = lsdb.open_catalog(collection).load_extension(NAME).compute(progress_bar=False)
    assert frame[NAME].notna().sum() == 12


def test_a_run_that_goes_on_and_is_killed_leaves_no_manifest_that_says_published(
    make_collection, model_folder, monkeypatch
):
    from skyvec.stage.selection import Selection

    collection = make_collection()
    first = HatsRelease.open(collection).pixels[0]
    chosen = Selection.parse(pixels=f"{first.order}/{first.pixel}")
    run(collection, model=model_folder, workers=0, selection=chosen)
    with monkeypatch.context() as patch:
        dies(patch, stage_run, "_settle")
        with pytest.raises(Killed):
            run(collection, model=model_folder, workers=0)
    assert not (collection / NAME / MANIFEST).exists()
    record = run(collection, model=model_folder, workers=0)
    assert (record.exit_code, record.skipped) == (0, 2)
    assert HatsRelease.open(collection / NAME).catalog.catalog_info.total_rows == 12
    assert pq.read_metadata(collection / NAME / "dataset" / "_metadata").num_rows == 12


def test_a_full_disk_costs_a_collection_nothing(make_collection, model_folder, monkeypatch):
    from hats.catalog import CollectionProperties

    collection = make_collection()
    before = (collection / "collection.properties").read_bytes()
    real = CollectionProperties.to_properties_file_path

    def full(self, file_path, **choices):
        real(self, file_path, **choices)
        file_path.write_bytes(b"obs_coll")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CollectionProperties, "to_properties_file_path", full)
        with pytest.raises(OSError, match="No space left"):
            run(collection, model=model_folder, workers=0)
    assert (collection / "collection.properties").read_bytes() == before
    assert run(collection, model=model_folder, workers=0).exit_code == 0


def test_beats_reach_the_driver_through_dask(make_collection, model_folder, monkeypatch):
    sent = []
    worker = SimpleNamespace(
        name="first", log_event=lambda _topic, message: sent.append(msgpack.packb(message))
    )
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    job = plan(make_collection(), model=model_folder).job
    pixel = HatsRelease.open(job.source).pixels[0]
    run_task(
        packed(job), "topic", pixel.order, pixel.pixel, attempt=1, batch_rows=4, beat_seconds=0
    )
    client = SimpleNamespace(status="running", subscribe_topic=lambda *_: None)
    pool = pools.OnDask(job, client, None)
    for message in sent:
        pool._heard((0.0, msgpack.unpackb(message)))
    beats = [pool.next_event(0) for _ in sent]
    assert all(isinstance(beat, Beat) for beat in beats)
    assert sum(beat.rows for beat in beats) == 6


def test_beats_go_on_after_the_scheduler_was_started_anew(make_collection, model_folder):
    topics = []
    client = SimpleNamespace(
        status="running", subscribe_topic=lambda *told: topics.append(told), nthreads=dict
    )
    pool = pools.OnDask(plan(make_collection(), model=model_folder).job, client, None)
    for status in ("running", "connecting", "running", "running"):
        client.status = status
        assert pool.workers == 0
    assert topics == [topics[0]] * 2


@pytest.mark.parametrize("what", ["can't start new thread", "could not create a primitive"])
def test_want_of_memory_is_known_by_other_names(what):
    assert kind_of(RuntimeError(what)) is Failure.MEMORY
