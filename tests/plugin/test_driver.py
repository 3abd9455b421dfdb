"""The driver: what is tried again, how often, with how many rows, and what ends a run."""

from collections import deque
from types import SimpleNamespace

import pytest
from distributed import KilledWorker
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.stage.driver import Patience, drive
from skyvec.stage.failures import Failure, in_one_line, kind_of
from skyvec.stage.monitor import Beat, Monitor
from skyvec.stage.pools import Ended
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_schemas.errors import (
    ContractError,
    InfrastructureError,
    RowTruthError,
    WeightsError,
)

AT_ONCE = Patience(attempts=4, first_pause=0)
WRONG = {"where": "there", "remedy": "Mend it"}


class ScriptedPool:
    """Ends tasks as a script says: pixel -> what comes of its attempts, in turn."""

    workers = 2

    def __init__(self, script=None, window=3):
        self.script = {pixel: deque(ends) for pixel, ends in (script or {}).items()}
        self.window = window
        self.tasks, self.seen, self.most = deque(), [], 0

    def submit(self, task):
        self.tasks.append(task)
        self.seen.append(task)
        self.most = max(self.most, len(self.tasks))

    def next_event(self, seconds):
        assert seconds >= 0
        if not self.tasks:
            return None
        task = self.tasks.popleft()
        ends = self.script.get(task.pixel.pixel)
        end = ends.popleft() if ends else None
        done = QuantumRecord(order=task.pixel.order, pixel=task.pixel.pixel, outcome="done",
                             attempts=task.attempt, batch_rows=task.batch_rows)  # fmt: skip
        return Ended(task=task, outcome=end or done)


class Retries(Monitor):
    def __init__(self):
        self.told = []

    def retry(self, order, pixel, *, why, attempt, wait):  # noqa: ARG002
        self.told.append((pixel, attempt, why, wait))


def driven(pool, pixels=6, patience=AT_ONCE, monitor=None):
    todo = tuple(HealpixPixel(3, i) for i in range(pixels))
    job = SimpleNamespace(batch_rows=128, model=SimpleNamespace(device="cpu"))
    prepared = SimpleNamespace(todo=todo, job=job)
    return list(drive(prepared, pool, monitor or Monitor(), patience))


def test_every_pixel_ends_once_and_no_more_than_the_window_is_submitted():
    pool = ScriptedPool()
    records = driven(pool, pixels=20)
    assert sorted(record.pixel for record in records) == list(range(20))
    assert pool.most == 3


def test_a_passing_failure_is_tried_again_and_told():
    pool, told = ScriptedPool({2: [OSError("disk"), ConnectionResetError("net")]}), Retries()
    records = {r.pixel: r for r in driven(pool, monitor=told)}
    assert records[2].outcome == "done"
    assert records[2].attempts == 3
    assert [(p, a) for p, a, *_ in told.told] == [(2, 2), (2, 3)]
    assert told.told[0][2] == "OSError: disk"


def test_pauses_double_up_to_the_longest():
    patience = Patience(first_pause=1, longest_pause=5)
    assert [patience.pause(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]


def test_a_pixel_that_goes_on_failing_is_lost_and_the_others_are_not():
    pool = ScriptedPool({1: [OSError("no space left on device")] * 9})
    records = {r.pixel: r for r in driven(pool)}
    assert records[1].outcome == "lost"
    assert records[1].attempts == 4
    assert records[1].error == (
        "OSError: no space left on device (tried 4 times; run the same command again)"
    )
    assert {r.outcome for pixel, r in records.items() if pixel != 1} == {"done"}


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        KilledWorker("skyvec-3-1", SimpleNamespace(address="tcp://127.0.0.1:1"), 3),
    ],
)
def test_where_memory_ran_out_or_a_worker_died_half_the_rows_come_next(problem):
    pool = ScriptedPool({1: [problem, problem]})
    records = {r.pixel: r for r in driven(pool)}
    assert (records[1].outcome, records[1].batch_rows) == ("done", 32)


def test_bad_data_are_never_tried_again():
    pool = ScriptedPool({1: [ContractError("is torn", **WRONG)]})
    records = {r.pixel: r for r in driven(pool)}
    assert (records[1].outcome, records[1].attempts) == ("data", 1)
    assert [task.attempt for task in pool.seen if task.pixel.pixel == 1] == [1]


@pytest.mark.parametrize("problem", [RowTruthError("differs", **WRONG), TypeError("a bug")])
def test_a_defect_gets_one_more_chance_and_is_then_reported(problem):
    pool = ScriptedPool({1: [problem] * 5})
    records = {r.pixel: r for r in driven(pool)}
    assert (records[1].outcome, records[1].attempts) == ("data", 2)
    assert records[1].error.endswith("(tried 2 times; report it)")


def test_a_request_that_no_worker_can_carry_out_ends_the_run():
    with pytest.raises(WeightsError, match="there: other weights"):
        driven(ScriptedPool({0: [WeightsError("other weights", **WRONG)]}))


def test_pixel_after_pixel_lost_ends_the_run():
    script = {pixel: [OSError("disk")] * 9 for pixel in range(50)}
    with pytest.raises(InfrastructureError, match="5 pixels in a row were lost, the last by OSErr"):
        driven(ScriptedPool(script), 50, Patience(attempts=2, first_pause=0, lost_in_a_row=5))


def test_one_pixel_done_between_lost_ones_lets_the_run_go_on():
    script = {pixel: [OSError("disk")] * 9 for pixel in range(12) if pixel % 3}
    patience = Patience(attempts=2, first_pause=0, lost_in_a_row=9)
    records = driven(ScriptedPool(script, window=1), 12, patience)
    assert sorted(r.outcome for r in records).count("done") == 4


def test_a_retry_waits_its_pause_while_others_go_on():
    pool = ScriptedPool({0: [OSError("disk")]}, window=1)
    order = [r.pixel for r in driven(pool, 4, Patience(attempts=2, first_pause=0.2))]
    assert order == [1, 2, 3, 0]


def test_beats_and_counts_of_workers_reach_the_monitor():
    class Hears(Monitor):
        def __init__(self):
            self.counts, self.beats = [], []

        def workers(self, count):
            self.counts.append(count)

        def beat(self, beat):
            self.beats.append(beat)

    pool, hears = ScriptedPool(), Hears()
    beat = Beat(order=3, pixel=0, rows=5, failed_rows=0, worker="here")
    real, first = pool.next_event, deque([beat])
    pool.next_event = lambda seconds: first.popleft() if first else real(seconds)
    driven(pool, 2, monitor=hears)
    assert (hears.counts, hears.beats) == ([2], [beat])


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (OSError(28, "No space left on device"), Failure.PASSING),
        (OSError(12, "Cannot allocate memory"), Failure.MEMORY),
        (InfrastructureError("lost", **WRONG), Failure.PASSING),
        (ContractError("torn", **WRONG), Failure.DATA),
        (RowTruthError("moved", **WRONG), Failure.DEFECT),
        (WeightsError("other", **WRONG), Failure.WRONG),
        (KeyError("x"), Failure.DEFECT),
        (RuntimeError("shapes differ"), Failure.DEFECT),
    ],
)
def test_failures_are_sorted(problem, kind):
    assert kind_of(problem) is kind


def test_an_error_of_ours_is_told_in_its_own_words_and_others_by_their_type():
    assert in_one_line(ContractError("is torn", **WRONG)) == "there: is torn. Mend it."
    assert in_one_line(KeyError("x")) == "KeyError: 'x'"
