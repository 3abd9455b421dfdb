"""What a verification found: checks that hold, that do not, and that could not be done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES = 20
"""Problems and notes of one check that are kept; all are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool | None
    """None where the question could not be asked; the notes say why."""
    summary: str
    """What was looked at."""
    problems: tuple[str, ...] = ()
    """Each names file, rows and remedy."""
    notes: tuple[str, ...] = ()
    """Worth knowing, and no corruption."""

    @property
    def outcome(self) -> str:
        """``passed``, ``failed`` or ``not done``."""
        if self.passed is None:
            return "not done"
        return "passed" if self.passed else "failed"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "summary": self.summary,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Outcome of `skyvec.extensions.verify.verify`."""

    extension: str
    folder: Path
    """Of the extension's catalog."""
    source: str
    """Catalog that its rows were compared with; empty if there was none."""
    checks: tuple[Check, ...]
    stale_pixels: int = 0
    """HEALPix pixels whose input changed since they were embedded."""
    unfinished: str = ""
    """How far runs came, if the last did not come to its end or a pixel failed."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; checks that could not be done do not count."""
        return not any(check.passed is False for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 right; 20 right, but unfinished or of an input that changed since; 30 wrong."""
        if not self.ok:
            return 30
        return 20 if self.stale_pixels or self.unfinished else 0

    def check(self, name: str) -> Check:
        """One check by its name."""
        return next(check for check in self.checks if check.name == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "extension": self.extension,
            "folder": str(self.folder),
            "source": self.source,
            "ok": self.ok,
            "exit_code": self.exit_code,
            "stale_pixels": self.stale_pixels,
            "unfinished": self.unfinished,
            "checks": [check.to_dict() for check in self.checks],
        }


class Findings:
    """Problems and notes of a check while it runs; bounded, however much is wrong."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._problem_count = self._note_count = 0

    def problem(self, what: str, *, where: object, remedy: str) -> None:
        """Something is wrong."""
        self._problem_count += 1
        if len(self._problems) < LINES:
            self._problems.append(f"{where}: {what}. {remedy}.")

    def note(self, text: str) -> None:
        """Something is worth saying."""
        self._note_count += 1
        if len(self._notes) < LINES:
            self._notes.append(text)

    def check(self, summary: str) -> Check:
        """The answer."""
        return Check(
            name=self.name,
            passed=not self._problem_count,
            summary=summary,
            problems=_with_rest(self._problems, self._problem_count),
            notes=_with_rest(self._notes, self._note_count),
        )

    def not_done(self, why: str) -> Check:
        """The question could not be asked; what was found on the way there still counts."""
        self.note(why)
        if self._problem_count:
            return self.check("not done in full")
        return Check(
            name=self.name,
            passed=None,
            summary="not done",
            notes=_with_rest(self._notes, self._note_count),
        )


def _with_rest(lines: list[str], count: int) -> tuple[str, ...]:
    rest = count - len(lines)
    return (*lines, f"... and {rest:,} more") if rest else tuple(lines)
