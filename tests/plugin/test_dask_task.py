"""Tasks as Dask sees them: light to import, small, and one that hangs holds up no other."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.stage.dask_task import packed
from skyvec.stage.monitor import Beat
from skyvec.stage.plan import plan
from skyvec.stage.pools import BEATS_A_SECOND, COLLECTORS, Ended, OnDask, Task
from skyvec.stage.quantum_record import QuantumRecord

HEAVY = ("torch", "numpy", "pyarrow", "hats", "lsdb", "pandas")


def test_what_a_scheduler_unpickles_imports_nothing_heavy():
    code = f"import sys, skyvec.stage.dask_task; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_job_travels_whole_in_a_few_kilobytes(make_collection, model_folder, tmp_path):
    from distributed.protocol.pickle import loads

    job = plan(make_collection(), model=model_folder, out=tmp_path).job
    assert loads(packed(job)) == job
    assert len(packed(job)) < 20_000


class FakeFuture:
    def __init__(self, key):
        self.key, self.answer, self.done = key, threading.Event(), None

    def add_done_callback(self, call):
        self.done = call

    def result(self, timeout):
        if not self.answer.wait(timeout):
            raise TimeoutError
        return QuantumRecord(order=3, pixel=int(self.key.split("-")[3]), outcome="done")


class FakeClient:
    """A cluster of so many workers, whose tasks end when a test says so."""

    status = "running"

    def __init__(self, workers):
        self.futures, self.cancelled, self.asked, self.many = [], [], [], workers

    def nthreads(self):
        return dict.fromkeys(range(self.many), 1)

    def submit(self, function, *arguments, key, **choices):  # noqa: ARG002
        self.asked.append(choices)
        self.futures.append(FakeFuture(key))
        return self.futures[-1]

    def subscribe_topic(self, topic, call):  # noqa: ARG002
        self.tell = call

    def unsubscribe_topic(self, topic):
        pass

    def cancel(self, futures):
        self.cancelled += futures


@pytest.fixture
def pool():
    """A pool on a cluster of fakes; called with the number of workers."""
    made = []

    def make(workers, resources=None):
        client = FakeClient(workers)
        made.append((client, OnDask(SimpleNamespace(run_id="abc"), client, resources)))
        return made[-1]

    yield make
    for client, each in made:
        for future in client.futures:
            future.answer.set()
        each.close()


def submitted(on_dask, count):
    for pixel in range(count):
        task = Task(pixel=HealpixPixel(3, pixel), attempt=1, batch_rows=128)
        on_dask.submit(task)


def test_a_record_that_does_not_come_holds_up_no_other(pool):
    client, on_dask = pool(2)
    submitted(on_dask, 3)
    for future in client.futures:
        future.done(future)
    client.futures[1].answer.set()
    client.futures[2].answer.set()
    ended = {on_dask.next_event(5).outcome.pixel for _ in range(2)}
    assert ended == {1, 2}
    assert on_dask.next_event(0) is None
    client.futures[0].answer.set()
    last = on_dask.next_event(5)
    assert isinstance(last, Ended)
    assert last.task.pixel == HealpixPixel(3, 0)
    assert COLLECTORS > 1


def test_what_has_not_ended_is_cancelled_and_what_ends_later_is_nobodys(pool):
    client, on_dask = pool(2)
    submitted(on_dask, 2)
    on_dask.close()
    assert client.cancelled == client.futures
    client.futures[0].done(client.futures[0])
    assert on_dask.next_event(0) is None


@pytest.mark.parametrize(
    ("workers", "seconds"), [(2, 2.0), (100, 2.0), (1000, 1000 / BEATS_A_SECOND)]
)
def test_many_workers_speak_less_often(pool, workers, seconds):
    client, on_dask = pool(workers)
    assert on_dask.window == max(256, 4 * workers)
    submitted(on_dask, 1)
    assert client.asked[0]["beat_seconds"] == seconds


def test_resources_are_asked_for_where_work_is_submitted(pool):
    client, on_dask = pool(1, {"GPU": 1})
    submitted(on_dask, 1)
    assert client.asked[0]["resources"] == {"GPU": 1}


def test_beats_come_as_plain_values(pool):
    client, on_dask = pool(1)
    facts = {"order": 3, "pixel": 7, "rows": 5, "failed_rows": 0, "worker": "w", "seconds": {}}
    client.tell((0.0, facts))
    assert on_dask.next_event(1) == Beat(**facts)
