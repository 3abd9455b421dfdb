"""Fits a probe in one pass over labelled vectors and measures it on sky that was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skyvec.probes.fitted import Fitted, Settings
from skyvec.probes.folds import Folds
from skyvec.probes.kinds import FITS
from skyvec.probes.neighbours import ROWS as NEIGHBOUR_ROWS
from skyvec.probes.products import Centre
from skyvec.probes.rows import LabelledPieces, Rows, first_vectors
from skyvec.probes.scan import (
    CLASSES,
    Census,
    Count,
    Gather,
    Gathered,
    no_sample,
    over,
)
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client

SAMPLES = {"ridge": 20_000, "logistic": 50_000, "knn": NEIGHBOUR_ROWS}
"""Labelled rows that are kept in memory: for a ridge to measure it, for others to fit them."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the first pass leaves: what the labels are, and on which sky."""

    census: Census
    folds: Folds
    classes: tuple[Any, ...]
    where: str

    def share(self, most: int) -> float:
        """Chance of each labelled row to be one of about ``most``."""
        return min(1.0, most / self.census.labelled)

    def folds_of(self, found: Gathered[Any], settings: Settings) -> NDArray[np.int64]:
        """Fold of each row of the sample.

        Raises
        ------
        ConfigurationError
            If too few labelled rows can be used.
        """
        used, folds = self.used(found), self.folds.of(found.sample.blocks)
        filled = np.unique(folds)
        if used < 2 * settings.folds or len(filled) < 2:
            raise ConfigurationError(
                f"of {self.census.labelled} labelled rows {found.null} have no vector and "
                f"{found.not_finite} one with NaN or infinity; {used} are left in {len(filled)} "
                "folds",
                where=self.where,
                remedy=f"At least {2 * settings.folds} in 2 blocks of the sky are needed",
            )
        return folds

    def used(self, found: Gathered[Any]) -> int:
        """Labelled rows with a vector that can be learnt from."""
        return self.census.labelled - found.null - found.not_finite

    def facts(self, found: Gathered[Any], settings: Settings) -> dict[str, Any]:
        """For the record of a probe."""
        census = self.census
        return {
            "rows": census.rows, "labelled": census.labelled, "used": self.used(found),
            "partly_labelled": census.partly, "null_vectors": found.null,
            "vectors_not_finite": found.not_finite, "folds": self.folds.count,
            "blocks": len(self.folds.blocks), "sample": len(found.sample),
            "confidence": settings.confidence, "seed": settings.seed,
            "notes": _notes(self, found, settings),
        }  # fmt: skip


def counted(
    rows: LabelledPieces, settings: Settings, *, workers: int, client: Client | None = None
) -> Counted:
    """Count labels and deal the sky to folds, before any vector is looked at.

    Raises
    ------
    ConfigurationError
        Too few labels or sky blocks, constant labels, or classes that are none.
    """
    census = over(Count(rows=rows), rows.pieces(), Census(), workers=workers, client=client)
    folds = Folds(census.blocks, settings.folds, where=rows.where)
    classes = _classes(census, settings, rows.where)
    if not classes:
        _refuse_constant(census, settings.targets, rows.where)
    return Counted(census=census, folds=folds, classes=classes, where=rows.where)


def fit_rows(
    rows: Rows, settings: Settings, *, workers: int, client: Client | None = None
) -> Fitted:
    """Fit one kind of model to labelled vectors.

    Raises
    ------
    ConfigurationError
        Too few labels or sky blocks, constant labels, or classes that are none.
    """
    known = counted(rows, settings, workers=workers, client=client)
    targets = len(settings.targets)
    near = first_vectors(rows)
    centre = Centre(
        vectors=near.mean(0) if len(near) else np.zeros(rows.dim, np.float32),
        labels=np.zeros(targets) if known.classes else known.census.means,
        scale=np.ones(targets) if known.classes else known.census.deviations,
    )
    gather = Gather(
        rows=rows, folds=known.folds, centre=centre, classes=known.classes,
        share=known.share(settings.max_rows or SAMPLES[settings.kind]), seed=settings.seed,
        products=settings.kind == "ridge",
    )  # fmt: skip
    nothing = Gathered(parts=[no_sample(rows.dim, targets, rows.dtype)])
    found = over(gather, rows.pieces(), nothing, workers=workers, client=client)
    folds = known.folds_of(found, settings)
    fitted = FITS[settings.kind](found, folds, centre, known.classes, settings)
    fitted.facts.update(known.facts(found, settings))
    return fitted


def _classes(census: Census, settings: Settings, where: str) -> tuple[Any, ...]:
    if not census.classes:
        return ()
    target = settings.targets[0]
    if len(census.classes) > CLASSES:
        raise ConfigurationError(
            f"{target!r} has {len(census.classes)} different values",
            where=where,
            remedy=f"Classes are at most {CLASSES}; for numbers use kind='ridge'",
        )
    if len(census.classes) < 2:
        raise ConfigurationError(
            f"{target!r} is constant", where=where,
            remedy="There is nothing to learn; choose another target",
        )  # fmt: skip
    if rare := [str(name) for name, rows in census.classes.items() if rows < 2]:
        raise ConfigurationError(
            f"only one row is {', '.join(sorted(rare))}",
            where=where,
            remedy="Label more of them, or leave them out with where=...",
        )
    return tuple(sorted(census.classes, key=lambda name: (str(type(name)), name)))


def _refuse_constant(census: Census, targets: Sequence[str], where: str) -> None:
    size = np.maximum(np.abs(census.means), 1e-300)
    for target, deviation, mean in zip(targets, census.deviations, size, strict=True):
        if not deviation > 1e-12 * mean:
            raise ConfigurationError(
                f"{target!r} is constant",
                where=where,
                remedy="There is nothing to learn; choose another target",
            )


def _notes(counted: Counted, found: Gathered[Any], settings: Settings) -> list[str]:
    census, folds = counted.census, counted.folds
    notes = []
    if folds.count < settings.folds:
        notes.append(f"{folds.count} folds instead of {settings.folds}: there are as many blocks")
    if not settings.blocks_are_sky:
        notes.append("no groups were given: rows were left out one by one, not by sky block")
    if census.partly:
        notes.append(f"{census.partly:,} rows lack some of the targets and were left out")
    if found.null or found.not_finite:
        notes.append(
            f"{found.null:,} labelled rows have no vector, {found.not_finite:,} one with NaN or "
            "infinity; they were left out"
        )
    if settings.kind != "ridge" and len(found.sample) < census.labelled - found.null:
        notes.append(
            f"fitted to a sample of {len(found.sample):,} of {census.labelled:,} labelled rows"
        )
    return notes
