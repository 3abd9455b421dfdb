"""One thing that is wrong, doubtful or worth knowing about a release, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a look at a sample of a release showed."""

    severity: Severity
    """``error``: vectors would be wrong or missing for most; ``warning``: for some, or to be
    confirmed; ``note``: read as it should be, but good to know."""
    topic: str
    """Which check, e.g. ``mask polarity``."""
    source: str
    """``catalog``, or the name of a source."""
    what: str
    """One clause, for people."""
    where: str
    """File, with column or row where one is to blame."""
    remedy: str
    """What to do; empty where nothing need be done."""
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    """The numbers that it rests on."""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "evidence": dict(self.evidence)
        }


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors, warnings, notes; in each the order of the checks."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
