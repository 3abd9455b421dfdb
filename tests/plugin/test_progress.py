"""What a run tells of itself adds up, whatever is retried, late or told twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyvec.stage.monitor import Beat, Monitor, RunFacts, monitors
from skyvec.stage.progress import Every, Progress
from skyvec.stage.quantum_record import QuantumRecord


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def begun(clock, *, rows=1000, pixels=10, rows_done=0, pixels_done=0, workers=1, **options):
    progress = Progress(clock=clock, **options)
    progress.begin(
        RunFacts(
            run_id="r", name="v1", output="out", rows=rows, pixels=pixels, rows_done=rows_done,
            pixels_done=pixels_done, device="cpu",
        )
    )  # fmt: skip
    progress.workers(workers)
    return progress


def beat(pixel, rows, *, bad=0, **seconds):
    return Beat(order=1, pixel=pixel, rows=rows, failed_rows=bad, worker="w", seconds=seconds)


def ended(pixel, rows=0, outcome="done", **facts):
    return QuantumRecord(order=1, pixel=pixel, outcome=outcome, rows=rows, **facts)


def test_rows_count_from_the_beat_on_and_once():
    progress = begun(Clock())
    progress.beat(beat(3, 40, bad=2))
    progress.beat(beat(3, 30))
    assert (progress.rows_done, progress.rows_written, progress.failed_rows) == (70, 0, 2)
    progress.pixel(ended(3, 100, failed_rows=3, quarantined=4))
    assert (progress.rows_done, progress.rows_written, progress.failed_rows) == (100, 100, 3)
    assert progress.quarantined == 4
    progress.pixel(ended(3, 100))  # told twice
    progress.beat(beat(3, 40))  # a beat that was still under way
    assert (progress.rows_done, progress.pixels_done, progress.pixels_open) == (100, 1, 9)


def test_what_a_retried_pixel_had_counted_is_void():
    progress = begun(Clock())
    progress.beat(beat(3, 40, bad=5))
    progress.beat(beat(4, 10))
    progress.retry(1, 3)
    assert (progress.rows_done, progress.failed_rows, progress.retries) == (10, 0, 1)
    progress.beat(beat(3, 20))
    progress.pixel(ended(3, 40))
    assert progress.rows_done == 50


def test_a_pixel_that_failed_holds_no_rows_that_are_done():
    progress = begun(Clock())
    progress.beat(beat(3, 40, bad=1))
    progress.pixel(ended(3, outcome="lost", error="gone"))
    progress.pixel(ended(4, outcome="empty"))
    progress.pixel(ended(5, outcome="data", rows=90))
    assert (progress.rows_done, progress.failed_rows) == (0, 0)
    assert (progress.pixels_done, progress.pixels_failed, progress.pixels_open) == (1, 2, 7)


NEWS = [
    (what, pixel) for pixel in range(4) for what in ["beat"] * 6 + ["retry", "retry", "end", "end"]
]


@given(st.permutations(NEWS), st.integers(0, 60))
def test_any_order_of_news_ends_with_the_rows_of_the_records(news, rows):
    progress = begun(Clock(), rows=400, pixels=4)
    for what, pixel in news:
        if what == "beat":
            progress.beat(beat(pixel, rows))
        elif what == "retry":
            progress.retry(1, pixel)
        else:
            progress.pixel(ended(pixel, 100))
        assert 0 <= progress.rows_done <= 400
    assert (progress.rows_done, progress.rows_running, progress.pixels_open) == (400, 0, 0)
    assert progress.seconds_left == 0


def test_rows_of_an_earlier_run_are_done_but_no_work_of_this_one(clock):
    progress = begun(clock, rows_done=700, pixels_done=7)
    assert (progress.rows_done, progress.pixels_done, progress.rows_per_second) == (700, 7, 0)
    clock.wait(10)
    progress.beat(beat(8, 100))
    assert progress.rows_per_second == pytest.approx(10)
    assert progress.seconds_left == pytest.approx(20)


@pytest.mark.parametrize("between", [1, 5, 59, 61, 600])
def test_an_even_pace_is_measured_as_it_is_at_any_moment(clock, between):
    progress = begun(clock, rows=10**6, pixels=10)
    for _ in range(30):
        clock.wait(between)
        progress.beat(beat(0, 20 * between, encode=0.5 * between, wait=0.5 * between))
    for _ in range(4):
        assert progress.rows_per_second == pytest.approx(20)
        assert progress.device_busy == pytest.approx(0.5)
        clock.wait(0.3 * between)


@pytest.mark.parametrize("pixel_seconds", [5, 59, 600])
def test_beats_that_come_all_at_the_end_of_their_pixel_give_the_same_pace(clock, pixel_seconds):
    progress = begun(clock, rows=10**6)
    for pixel in range(3):
        clock.wait(pixel_seconds)
        for _ in range(8):
            tenth = pixel_seconds / 10
            progress.beat(beat(pixel, 2 * pixel_seconds, encode=tenth / 2, write=tenth / 2))
            clock.wait(0.001)
        half = pixel_seconds / 2
        progress.pixel(ended(pixel, 20 * pixel_seconds, seconds={"encode": half, "write": half}))
    for _ in range(3):
        assert progress.rows_per_second == pytest.approx(20, rel=0.01)
        assert progress.device_busy == pytest.approx(0.5, rel=0.01)
        clock.wait(0.3 * pixel_seconds)


def test_only_the_window_counts(clock):
    progress = begun(clock, rows=10**6, window=60)
    for rows in [10] * 100 + [50] * 14:
        clock.wait(5)
        progress.beat(beat(0, rows, encode=rows / 100))
    assert progress.rows_per_second == pytest.approx(10)
    assert progress.device_busy == pytest.approx(0.1)


def test_silence_lets_the_pace_fall(clock):
    progress = begun(clock, rows=10**6)
    for _ in range(40):
        clock.wait(5)
        progress.beat(beat(0, 100, encode=4))
    before = progress.rows_per_second, progress.device_busy
    clock.wait(20)
    after = progress.rows_per_second, progress.device_busy
    assert after < before
    clock.wait(3600)
    assert progress.rows_per_second < 0.1
    assert progress.device_busy < 0.01
    assert progress.seconds_left > 10**6


def test_a_pixel_without_beats_gives_its_pace_by_its_record(clock):
    progress = begun(clock)
    clock.wait(50)
    progress.pixel(ended(0, 100, seconds={"tokenize": 20.0, "encode": 20.0, "write": 10.0}))
    assert progress.rows_per_second == pytest.approx(2)
    assert progress.device_busy == pytest.approx(0.8)
    assert progress.step_seconds == {"tokenize": 20, "encode": 20, "write": 10}


@pytest.mark.parametrize("workers", [1, 8])
def test_the_start_of_the_cluster_is_no_part_of_the_pace(clock, workers):
    progress = begun(clock, rows=10**6, workers=0)
    clock.wait(1200)  # in the queue of a batch system
    progress.workers(workers)
    clock.wait(30)  # loading the model
    for _ in range(3):
        clock.wait(5)
        for pixel in range(workers):
            progress.beat(beat(pixel, 100, encode=4.0, write=1.0))
        assert progress.rows_per_second == pytest.approx(20 * workers)
        assert progress.device_busy == pytest.approx(0.8)


def test_the_time_of_steps_is_counted_once_and_that_of_void_tries_too():
    progress = begun(Clock())
    progress.beat(beat(0, 10, encode=3.0))
    progress.retry(1, 0)
    progress.beat(beat(0, 10, encode=2.0))
    progress.pixel(ended(0, 20, seconds={"encode": 4.5}))
    assert progress.step_seconds["encode"] == pytest.approx(3.0 + 4.5)


def test_the_busy_share_is_of_all_workers_while_they_were_there(clock):
    progress = begun(clock, workers=4)
    clock.wait(10)
    progress.workers(1)  # three left
    clock.wait(10)
    progress.beat(beat(0, 1, tokenize=5.0, encode=20.0, read=100.0))
    assert progress.device_busy == pytest.approx(25 / (4 * 10 + 1 * 10))


def test_telling_the_number_of_workers_again_and_again_changes_nothing(clock):
    progress = begun(clock, workers=2)
    for _ in range(600):
        clock.wait(1)
        progress.workers(2)
    progress.pixel(ended(0, 600, seconds={"encode": 600.0}))
    assert progress.rows_per_second == pytest.approx(1)
    assert progress.device_busy == pytest.approx(0.5)


def test_a_share_is_never_more_than_one(clock):
    progress = begun(clock, workers=0)  # nobody said how many there are
    clock.wait(1)
    progress.beat(beat(0, 1, encode=9.0))
    assert progress.device_busy == 1


def test_the_time_left_knows_pixels_that_were_given_up(clock):
    progress = begun(clock, rows=1000, pixels=10)
    assert progress.seconds_left is None
    clock.wait(10)
    progress.pixel(ended(0, 100))
    assert progress.seconds_left == pytest.approx(90)
    progress.pixel(ended(1, outcome="lost"))  # nobody knows its rows: the mean
    assert progress.seconds_left == pytest.approx(80)
    progress.pixel(ended(2, outcome="data", rows=500))
    assert progress.seconds_left == pytest.approx(30)
    for pixel in range(3, 10):
        progress.pixel(ended(pixel, outcome="lost"))
    assert progress.seconds_left == 0


def test_nothing_is_known_before_the_run_begins():
    progress = Progress()
    assert (progress.rows_done, progress.pixels_open, progress.seconds_left) == (0, 0, None)
    assert (progress.rows_per_second, progress.device_busy) == (0, 0)


def test_memory_is_bounded_by_the_window(clock):
    progress = begun(clock, rows=10**9, window=60)
    for _ in range(5000):
        clock.wait(1)
        progress.beat(beat(0, 1))
    assert len(progress._samples) <= 62


def test_every_says_when_it_is_time(clock):
    every = Every(30, clock=clock)
    assert not every.due()
    clock.wait(30)
    assert [every.due(), every.due()] == [True, False]


class Heard(Monitor):
    def __init__(self):
        self.news = []

    def workers(self, count):
        self.news.append(count)


class Broken(Monitor):
    def __init__(self):
        self.told = 0

    def workers(self, count):
        self.told += 1
        raise OSError(28, f"No space\nleft, {count}")


def test_a_monitor_that_raises_is_switched_off_and_the_others_go_on(capsys):
    broken, first, last = Broken(), Heard(), Heard()
    several = monitors([first, broken, last])
    several.workers(1)
    several.workers(2)
    assert (first.news, last.news, broken.told) == ([1, 2], [1, 2], 1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Broken is switched off" in printed.err
    assert "OSError" in printed.err


def test_several_pass_everything_on():
    calls = []

    class Everything(Monitor):
        def __getattribute__(self, name):
            return lambda *args, **kwargs: calls.append((name, args, kwargs))

    several = monitors([Everything()])
    several.begin("facts")
    several.workers(1)
    several.beat("beat")
    several.retry(1, 2, why="w", attempt=1, wait=0.5)
    several.pixel("record")
    several.end("run")
    assert calls == [
        ("begin", ("facts",), {}),
        ("workers", (1,), {}),
        ("beat", ("beat",), {}),
        ("retry", (1, 2), {"why": "w", "attempt": 1, "wait": 0.5}),
        ("pixel", ("record",), {}),
        ("end", ("run",), {}),
    ]


def test_ctrl_c_is_not_swallowed():
    class Interrupted(Monitor):
        def workers(self, count):  # noqa: ARG002 - as the protocol has it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monitors([Interrupted()]).workers(1)
