"""One line of a diagnosis, and what all of them amount to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was looked at and found."""

    topic: str
    text: str
    verdict: Verdict = "ok"
    """``note``: worth knowing, the default path runs all the same; ``wrong``: it does not."""
    remedy: str = ""
    """What to do; never empty where something is wrong."""
    exit_code: int = 0
    """Of the process, where this is wrong."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if nothing is wrong; else 40 if something on this machine is, 50 if a cluster is."""
    codes = {each.exit_code for each in findings if each.verdict == "wrong"}
    return min(codes, default=0)
