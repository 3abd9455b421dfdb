"""One rank of a training run, in a process forked from one that has imported what it needs.

Run by `training_kills.start_ranks` with three names set: ``WORDS`` after ``python``, ``PLACE`` in the
environment, ``SAID`` for what it prints.
"""

from __future__ import annotations

import os
import runpy
import sys

given = globals()
words, place, path = given["WORDS"], given["PLACE"], given["SAID"]

os.environ.update(place)
with open(path, "a") as said:  # noqa: PTH123
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
if words[0] == "-m":
    sys.argv = words[1:]
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
