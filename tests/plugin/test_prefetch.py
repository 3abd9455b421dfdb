"""Reading ahead gives the same items, from another thread only where that can help."""

import threading

import pytest

from skyvec.stage.prefetch import prefetched
from skyvec.stage.timing import StepTimes


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_come_in_order_and_their_time_is_counted(several, count):
    timed = StepTimes()
    assert list(prefetched(iter(range(count)), timed, several=several)) == list(range(count))
    assert set(timed.seconds) == {"read", "wait"}


@pytest.mark.parametrize("several", [True, False])
def test_one_item_is_read_ahead_if_there_are_several(several):
    read, threads = [], set()

    def items():
        for item in range(3):
            threads.add(threading.current_thread())
            read.append(item)
            yield item

    for item in prefetched(items(), StepTimes(), several=several):
        if not several:
            assert read == list(range(item + 1))
    assert read == [0, 1, 2]
    assert (threads == {threading.current_thread()}) is not several


@pytest.mark.parametrize("several", [True, False])
def test_what_reading_raises_arrives_after_the_items_before_it(several):
    def items():
        yield 1
        raise OSError("gone")

    stream = prefetched(items(), StepTimes(), several=several)
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)
