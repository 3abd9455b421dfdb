"""Death at a drawn moment: wrapped round functions of the stage in a worker (``--preload``) or driver.

A chaos run arms an order, a small file ``<moment>~<signal>~<number>``; the first process that comes
to this moment takes it, so that exactly one dies of it, says so in the ledger and ends. Nothing
here is known to the stage.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path

HOME = "SKYVEC_CHAOS"
PACE = "SKYVEC_CHAOS_PACE"
"""Seconds that an encoder call takes longer, 0.5 to 1.5 times: a larger model, and no CPU."""


def dask_setup(worker) -> None:
    """What Dask calls in a worker that preloads this file."""
    del worker
    install_in_worker()


def reach(moment: str) -> None:
    """Die here if it was ordered."""
    home = Path(os.environ[HOME])
    for order in home.glob(f"armed/{moment}~*"):
        try:
            order.rename(home / "taken" / order.name)
        except FileNotFoundError:
            continue  # another process was faster
        _, how, number = order.name.split("~")
        line = json.dumps({"fault": int(number), "pid": os.getpid(), "moment": moment})
        with (home / "taken.jsonl").open("a") as ledger:
            ledger.write(line + "\n")
        os.kill(os.getpid(), signal.Signals[how])
        time.sleep(1)  # a signal that is handled may take a moment


def after(owner, name: str, moment: str) -> None:
    """Reach a moment each time a function has returned."""
    real = getattr(owner, name)

    @wraps(real)
    def wrapped(*arguments, **choices):
        result = real(*arguments, **choices)
        reach(moment)
        return result

    setattr(owner, name, wrapped)


def before(owner, name: str, moment: str) -> None:
    """Reach a moment each time a function is called."""
    real = getattr(owner, name)

    @wraps(real)
    def wrapped(*arguments, **choices):
        reach(moment)
        return real(*arguments, **choices)

    setattr(owner, name, wrapped)


def install_in_worker() -> None:
    """Moments of a quantum, and the pace."""
    from skyvec.stage import quantum
    from skyvec.stage.leaf_writer import LeafWriter
    from skyvec.stage.output import Output

    draw = random.Random(os.getpid())  # noqa: S311 - chance, no secret
    encode = quantum.embed_rows

    def slowly(*arguments, **choices):
        time.sleep(float(os.environ.get(PACE, "0")) * (0.5 + draw.random()))
        return encode(*arguments, **choices)

    quantum.embed_rows = slowly
    after(LeafWriter, "write", "leaf half written")
    before(Output, "commit", "leaf verified")
    after(Output, "commit", "leaf renamed")
    after(Output, "save", "record written")
    _before_rename("Norder=*.json", "record staged")


def install_in_driver() -> None:
    """Moments of planning, publishing and writing down."""
    from skyvec.stage import run

    before(run, "publish", "all pixels done")
    after(run, "publish", "published")
    for name, what in (
        ("run.json", "claim"),
        ("quanta.parquet", "table of records"),
        ("manifest.json", "manifest"),
        ("hats.properties", "catalog"),
        ("chaos_v1.properties", "extension"),
        ("collection.properties", "collection"),
    ):
        _before_rename(name, f"{what} staged")


def _before_rename(name: str, moment: str) -> None:
    """Reach a moment where a file is complete but not yet under its name."""

    def watch(owner, function: str) -> None:
        real = getattr(owner, function)

        @wraps(real)
        def wrapped(source, target, *rest):
            if fnmatch(Path(target).name, name):
                reach(moment)
            return real(source, target, *rest)

        setattr(owner, function, wrapped)

    watch(os, "replace")  # Path.replace calls it as well
