"""What the demo found out, as plain values: the story fills it in, the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skyvec.probes.scores import Score
from skyvec_schemas.embedding_columns import VectorType


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One galaxy to look at."""

    flux: NDArray[np.float32]
    """(4, height, width) griz in nanomaggies per pixel of 0.262 arcsec; NaN or 0 where bad."""
    caption: str
    """Short, e.g. ``r = 17.4, z = 0.19``."""
    object_id: str
    distance: float | None = None
    """Cosine distance to the query, for a neighbour."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must hold, tested through plain LSDB on the published extension."""

    what: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class CatalogFacts:
    """One embedded catalog."""

    name: str
    kind: str
    """``real`` or ``mock``."""
    description: str
    extension: str
    rows: int
    failed_rows: int
    partial_rows: int
    flags: dict[str, int]
    """Rows by reason, e.g. ``{"image_padded": 100}``."""
    pixels: list[tuple[int, int]]
    """HEALPix order and pixel of each partition."""
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    """Degrees, one for each row."""
    checks: list[Check]
    seconds: float
    """Wall time of the embedding run."""
    step_seconds: dict[str, float]
    """Summed over workers: read, tokenize, encode, write, verify."""
    gallery: list[Cutout]
    """A dozen objects."""
    open_command: str
    """Python that opens the result."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Redshift from one kind of input."""

    name: str
    """E.g. ``skyvec-tiny vectors, linear``."""
    score: Score
    ours: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class DemoFacts:
    """All that the page says."""

    skyvec_version: str
    date: str
    model: str
    model_digest: str
    dim: int
    fingerprint: str
    vector_type: VectorType = "float16"
    """Type of the stored vectors."""
    model_card: dict[str, object]
    """As in ``card.json``: recipe, data, scores, and the curves of ``runs``."""
    catalogs: list[CatalogFacts]
    probe_target: str
    probe_truth: NDArray[np.float64]
    probe_predicted: NDArray[np.float64]
    """Out-of-fold predictions from the vectors, one for each labelled mock galaxy."""
    scores: list[ScoreRow]
    query: Cutout
    """One real galaxy."""
    neighbours_real: list[Cutout]
    neighbours_mock: list[Cutout]
    timings: list[tuple[str, float]] = field(default_factory=list)
    """Step of the demo and wall seconds."""
    commands: list[str] = field(default_factory=list)
    """What a user types to get the same."""
