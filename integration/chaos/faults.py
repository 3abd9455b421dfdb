"""What goes wrong in a chaos run, and when: drawn from a seed, bound to progress and not to time."""

from __future__ import annotations

import random
from dataclasses import dataclass

KILL = "kill"
MOMENT = "moment"
STOP = "stop"
FULL = "full"
FILES = "files"
MEMORY = "memory"

LASTING = {STOP: (14, 20), FULL: (3, 8), FILES: (4, 10), MEMORY: (4, 10)}
"""Seconds, from and to, after which a fault is taken back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of fault."""

    name: str
    what: str
    """`KILL`, `MOMENT`, `STOP`, `FULL`, `FILES` or `MEMORY`."""
    whom: str
    """``worker``, ``scheduler``, ``driver`` or ``disk``."""
    signal: str = ""
    moment: str = ""
    count: int
    """In a full run."""
    late: bool = False
    """Where the run ends, so armed from its last tenth on."""

    @property
    def ends_a_process(self) -> bool:
        """Whether it counts as a kill."""
        return self.what in {KILL, MOMENT}


def _at(whom: str, moment: str, count: int, *, late: bool = False, how: str = "SIGKILL") -> Kind:
    name = f"{whom}: {how} at '{moment}'"
    return Kind(
        name=name, what=MOMENT, whom=whom, signal=how, moment=moment, count=count, late=late
    )


KINDS = (
    Kind(name="worker: SIGKILL", what=KILL, whom="worker", signal="SIGKILL", count=12),
    Kind(name="worker: SIGTERM", what=KILL, whom="worker", signal="SIGTERM", count=5),
    _at("worker", "leaf half written", 4),
    _at("worker", "leaf verified", 2),
    _at("worker", "leaf renamed", 4),
    _at("worker", "record staged", 3),
    _at("worker", "record written", 3),
    Kind(name="scheduler: SIGKILL", what=KILL, whom="scheduler", signal="SIGKILL", count=5),
    Kind(name="driver: SIGKILL", what=KILL, whom="driver", signal="SIGKILL", count=4),
    Kind(name="driver: SIGTERM", what=KILL, whom="driver", signal="SIGTERM", count=3),
    Kind(name="driver: SIGINT", what=KILL, whom="driver", signal="SIGINT", count=3),
    _at("driver", "claim staged", 2),
    _at("driver", "table of records staged", 1, late=True),
    _at("driver", "manifest staged", 1, late=True),
    _at("driver", "all pixels done", 1, late=True),
    _at("driver", "catalog staged", 1, late=True),
    _at("driver", "extension staged", 1, late=True),
    _at("driver", "collection staged", 1, late=True),
    _at("driver", "published", 1, late=True),
    Kind(name="worker: SIGSTOP longer than its time to live", what=STOP, whom="worker", count=4),
    Kind(name="worker: memory limit (RLIMIT_AS)", what=MEMORY, whom="worker", count=6),
    Kind(name="worker: file size limit (RLIMIT_FSIZE)", what=FILES, whom="worker", count=4),
    Kind(name="disk full (ENOSPC on a tmpfs)", what=FULL, whom="disk", count=5),
)
SHORT = (
    "worker: SIGKILL", "worker: SIGKILL at 'leaf half written'",
    "worker: SIGKILL at 'leaf renamed'", "worker: memory limit (RLIMIT_AS)",
    "worker: file size limit (RLIMIT_FSIZE)", "scheduler: SIGKILL", "driver: SIGKILL",
    "driver: SIGTERM", "driver: SIGKILL at 'extension staged'",
    "driver: SIGKILL at 'collection staged'",
)  # fmt: skip
"""Of a run that continuous integration can afford."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault of a schedule."""

    number: int
    kind: Kind
    progress: float
    """Share of the pixels that must be there before."""
    delay: float
    """Seconds after that."""
    lasting: float
    """Seconds until it is taken back, where it can be."""
    draw: float
    """In [0, 1): which of several processes, and how tight a limit."""


def schedule(seed: int, *, short: bool = False, may_mount: bool = True) -> list[Fault]:
    """All faults of a run, in the order in which they come due.

    Without the right to mount, a full disk is a limit on the files of every process instead.
    """
    draw = random.Random(seed)  # noqa: S311 - chance, no secret
    known = {kind.name: kind for kind in KINDS}
    kinds = [known[name] for name in SHORT] if short else [k for k in KINDS for _ in range(k.count)]
    if not may_mount:
        files = known["worker: file size limit (RLIMIT_FSIZE)"]
        kinds = [files if kind.what == FULL else kind for kind in kinds]
    draw.shuffle(kinds)
    early = [kind for kind in kinds if not kind.late]
    late = [kind for kind in kinds if kind.late]
    # Evenly spread with some chance in it, so that one recovery is rarely the whole run.
    points = [0.9 * (i + draw.random()) / len(early) for i in range(len(early))]
    return [
        Fault(
            number=number, kind=kind, progress=point, delay=draw.uniform(0, 0.6),
            lasting=draw.uniform(*LASTING.get(kind.what, (0, 0))),
            draw=draw.random(),
        )
        for number, (kind, point) in enumerate(
            [*zip(early, points, strict=True), *((kind, 0.9) for kind in late)]
        )
    ]  # fmt: skip
