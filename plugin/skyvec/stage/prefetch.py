"""Reading ahead: the next batch is read while this one is computed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from skyvec.stage.timing import Timed

T = TypeVar("T")
_END = object()


def prefetched(items: Iterator[T], timed: Timed, *, several: bool = True) -> Iterator[T]:
    """The same items, one ahead in a thread; ``read`` is its time, ``wait`` what we waited for it.

    One item is held besides the one in use, so memory stays bounded by the batch. Unless there are
    ``several``, nothing can be read ahead: then no thread is started.
    """

    def following() -> object:
        with timed("read"):
            return next(items, _END)

    if not several:
        while True:
            with timed("wait"):
                item = following()
            if item is _END:
                return
            yield item  # type: ignore[misc]
            del item
    with ThreadPoolExecutor(1, thread_name_prefix="skyvec-read") as reader:
        upcoming = reader.submit(following)
        while True:
            with timed("wait"):
                item = upcoming.result()
            if item is _END:
                return
            upcoming = reader.submit(following)
            yield item  # type: ignore[misc]
            del item
