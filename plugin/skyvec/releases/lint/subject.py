"""What a check is given: the sampled files of one source and the survey that declares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.releases.lint.finding import Finding, Severity
from skyvec.releases.lint.raw_sample import RawFile
from skyvec_schemas.survey_columns import Survey


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Where an object of the sample lies."""

    file: RawFile
    row: int

    def array(self, logical: str) -> NDArray[Any] | None:
        """Its array of that name, if the file has one and it is not null."""
        rows = self.file.arrays.get(logical, ())
        return rows[self.row] if self.row < len(rows) else None

    def number(self, name: str) -> float:
        """Its scalar of that name; NaN if there is none."""
        values = self.file.keys.get(name, ())
        try:
            return float(values[self.row]) if self.row < len(values) else np.nan
        except (TypeError, ValueError):
            return np.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One source under the linter."""

    name: str
    survey: Survey
    files: tuple[RawFile, ...]
    window: int

    def rows(self, logical: str) -> Iterator[tuple[Row, NDArray[Any]]]:
        """Objects that have an array of this name."""
        for file in self.files:
            for row, array in enumerate(file.arrays.get(logical, ())):
                if array is not None:
                    yield Row(file=file, row=row), array

    def finding(
        self,
        severity: Severity,
        topic: str,
        what: str,
        *,
        where: str | Row | RawFile = "",
        column: str = "",
        remedy: str = "",
        evidence: Mapping[str, float | int | str] | None = None,
    ) -> Finding:
        """A finding about this source."""
        if isinstance(where, Row):
            place = f"{short(where.file.path)}, row {where.row}"
        elif isinstance(where, RawFile):
            place = short(where.path)
        else:
            place = where
        return Finding(
            severity=severity,
            topic=topic,
            source=self.name,
            what=what,
            where=", ".join(part for part in (place, column) if part),
            remedy=remedy,
            evidence=dict(evidence or {}),
        )


def short(path: str) -> str:
    """The last two parts of a path: enough to find the file in its release."""
    return "/".join(PurePosixPath(path).parts[-2:])


def floats(array: NDArray[Any]) -> NDArray[np.float64]:
    """Values as numbers, NaN where they are none (text, null)."""
    try:
        return np.asarray(array, np.float64)
    except (TypeError, ValueError):
        return np.full(np.shape(array), np.nan)


def share(part: int, whole: int) -> float:
    """Fraction, 0 of nothing."""
    return round(part / whole, 4) if whole else 0.0
