"""Reading ahead: the next batch is read while this one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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

    def begun() -> Callable[[], object]:
        return reader.submit(following).result if reader else following

    with ThreadPoolExecutor(1, "skyvec-read") if several else nullcontext() as reader:
        upcoming = begun()
        while True:
            with timed("wait"):
                item = upcoming()
            if item is _END:
                return
            upcoming = begun()
            yield item  # type: ignore[misc]
            del item
