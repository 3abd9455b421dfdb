"""What became of one HATS pixel: written beside the data, read by the next run and by people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STEPS = ("match", "read", "wait", "tokenize", "encode", "write", "verify")
"""What the time of a quantum is spent on; ``wait`` is the part of ``read`` that nothing overlaps."""
OVERLAPPED = "read"
"""The step whose time runs beside the others'."""
FINISHED = frozenset({"done", "empty"})


@dataclass(frozen=True, kw_only=True)
class QuantumRecord:
    """What became of one pixel."""

    order: int
    pixel: int
    outcome: str
    """``done``, ``empty`` (nothing to do), ``data`` (broken contract: no retry can mend it) or
    ``lost`` (worker, memory, disk or network: a later run tries again)."""
    fingerprint: str = ""
    rows: int = 0
    """Rows in, and rows out: they are always as many."""
    failed_rows: int = 0
    partial_rows: int = 0
    bad_rows: int = 0
    """Failed rows whose data are bad; the others have no data."""
    quarantined: int = 0
    """Rows with bad data and objects of sources that cannot be used; each is listed in the
    quarantine catalog."""
    reused_rows: int = 0
    """Rows whose vector comes from an earlier extension, since their tokens are the same."""
    flags: dict[str, int] = field(default_factory=dict)
    """Rows by reason."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Source -> outcomes of the join (``counts``) and the first objects that it could not use."""
    skymap: dict[int, int] = field(default_factory=dict)
    """Rows by HEALPix pixel of order 8."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in each of `STEPS`; reading overlaps with the others."""
    wall_seconds: float = 0.0
    attempts: int = 1
    batch_rows: int = 0
    """Rows in memory at a time; halved where memory did not suffice."""
    bytes: int = 0
    """Size of the output file."""
    digest: str = ""
    """SHA-256 of the output file."""
    golden: str = ""
    """Digest of the golden vectors as this worker computes them; equal where bits are."""
    peak_memory: int = 0
    """Largest resident size of the worker so far, bytes."""
    host: str = ""
    worker: str = ""
    """Name of the Dask worker; empty in the driver's own process."""
    device: str = ""
    started: str = ""
    """UTC, ISO 8601."""
    error: str = ""
    """What went wrong, with file, object and remedy; one line."""

    @property
    def key(self) -> tuple[int, int]:
        """Order and pixel."""
        return self.order, self.pixel

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.outcome in FINISHED
