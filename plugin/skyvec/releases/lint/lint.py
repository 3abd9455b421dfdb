"""Checks on a raw sample of a release, before any compute: what would go wrong in silence.

A check speaks only where the numbers leave no other reading: faint objects, clean masks, empty
masks, small samples and bright emission lines must pass without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from skyvec.releases.lint.catalog import CATALOG_CHECKS
from skyvec.releases.lint.finding import Finding, worst_first
from skyvec.releases.lint.images import IMAGE_CHECKS
from skyvec.releases.lint.photometry import PHOTOMETRY_CHECKS
from skyvec.releases.lint.positions import POSITION_CHECKS
from skyvec.releases.lint.raw_sample import RawFile, RawRelease
from skyvec.releases.lint.release import release_findings
from skyvec.releases.lint.spectra import SPECTRUM_CHECKS
from skyvec.releases.lint.subject import Subject
from skyvec_schemas.survey_columns import Survey

_NUMBERS = re.compile(r"-?\d[\d.,e+-]*|, e\.g\..*")
_ROWS = re.compile(r"row \d+")

Check = Callable[[Subject], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    *CATALOG_CHECKS,
    *POSITION_CHECKS,
    *IMAGE_CHECKS,
    *PHOTOMETRY_CHECKS,
    *SPECTRUM_CHECKS,
)
"""Every check on the rows of a sample."""


def lint(
    name: str, survey: Survey, files: Sequence[RawFile], *, window: int = 96
) -> tuple[Finding, ...]:
    """All that the sampled rows show, worst first.

    Parameters
    ----------
    name
        Of the source, for the findings.
    window
        Side of the codec's window in cutout pixels.
    """
    subject = Subject(name=name, survey=survey, files=tuple(files), window=window)
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += _once(check(subject))
        except Exception as problem:  # noqa: BLE001 - odd data must not stop the other checks
            findings.append(
                subject.finding(
                    "note",
                    "linter",
                    f"check of {check.__name__.replace('_', ' ')} gave up "
                    f"({type(problem).__name__}: {problem})",
                    remedy="Look at these columns yourself",
                )
            )
    return worst_first(findings)


def _once(findings: Iterator[Finding]) -> list[Finding]:
    """One finding for all files that show the same, with the numbers of the first."""
    kinds: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        text = _NUMBERS.sub("", finding.what)
        place = _ROWS.sub("", finding.where.partition(", ")[2])
        kinds.setdefault((finding.severity, finding.topic, text, place), []).append(finding)
    return [
        replace(same[0], evidence={**same[0].evidence, "files": len(same)})
        if len(same) > 1
        else same[0]
        for same in kinds.values()
    ]


def lint_release(
    name: str, survey: Survey, release: RawRelease, *, window: int = 96
) -> tuple[Finding, ...]:
    """`lint` of the sampled files, and what their number and footers show."""
    return worst_first(
        [*release_findings(name, release), *lint(name, survey, release.files, window=window)]
    )
