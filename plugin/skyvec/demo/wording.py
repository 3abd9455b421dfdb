"""Sentences of the demo's page, computed from the facts: what was done and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from skyvec.demo.facts import DemoFacts, ScoreRow
from skyvec.demo.figures import listed
from skyvec_schemas.survey_columns import LEGACY_SURVEY

TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

REASONS = {
    "image_missing": "no cutout",
    "image_padded": "cutout smaller than the model's window: the rest is masked, never stretched",
    "image_bad_pixels": "some pixels are bad and read as sky; this alone leaves the row ok",
    "image_unusable": "fewer than half of the pixels are good",
    "image_wrong_bands": "the bands are not those of the survey",
    "image_malformed": "planes of the cutout differ in shape or are empty",
    "scalar_missing": "at least one catalog number is null or not finite",
    "no_input": "nothing at all was observed",
    "id_missing": "the id is null",
    "image_tokens_dropped": "more than half of the pixels under some image token are bad",
}
"""Names of `skyvec_schemas.quality_flags.Flag` in words."""


def summary(facts: DemoFacts) -> str:
    """Two sentences: what was done, and how it came out."""
    rows = sum(catalog.rows for catalog in facts.catalogs)
    kinds = [
        f"{sum(c.rows for c in facts.catalogs if c.kind == kind):,} {word}"
        for kind, word in (("real", "real ones of the Legacy Survey"), ("mock", "synthetic ones"))
        if any(c.kind == kind for c in facts.catalogs)
    ]
    did = (
        f"{facts.model} turned {rows:,} galaxies ({' and '.join(kinds)}) into vectors of "
        f"{facts.dim} numbers each, written beside the catalogs as extra columns that LSDB opens. "
    )
    passed, checks = passed_checks(facts)
    truth = "All" if passed == checks else f"Only {passed:,} of"
    checked = f"{truth} {checks:,} checks of rows, ids and order passed"
    ours = our_score(facts)
    if ours is None:
        return f"{did}{checked}."
    found = f"a linear model on the vectors predicts {target_name(facts)} with {_r2(ours)}"
    return f"{did}{checked}, and {found}{_against_best(ours, _others(facts))}."


def verdict(facts: DemoFacts) -> list[str]:
    """What the scores say, from the numbers alone."""
    ours = our_score(facts)
    if ours is None:
        return ["No score was computed."]
    score = ours.score
    if score.r2_low <= 0:
        return [f"No: {_r2(ours)} cannot be told from a guess of the mean."]
    share = f"{max(score.r2, 0):.0%}".replace("%", " %")
    said = f"Yes, some: a linear model on the vectors explains {share} of the variance"
    return [
        f"{said} of {target_name(facts)}, {_r2(ours)}.",
        *(_comparison(ours, other) for other in _others(facts)),
    ]


def _comparison(ours: ScoreRow, other: ScoreRow) -> str:
    better = other.score.r2 > ours.score.r2
    apart = _apart(ours, other)
    values = f"“{other.name}” reaches R² = {other.score.r2:.3f}"
    if better and apart:
        return f"Plainly: {values}, better than the vectors; the intervals do not overlap."
    if apart:
        return f"{values}, worse than the vectors; the intervals do not overlap."
    return (
        f"{values}, {'better' if better else 'worse'} than the vectors, but the intervals "
        "overlap: with this sample the order is not certain."
    )


def _against_best(ours: ScoreRow, others: Sequence[ScoreRow]) -> str:
    if not others:
        return ""
    best = max(others, key=lambda row: row.score.r2)
    hedge = "" if _apart(ours, best) else ", though the intervals overlap"
    if best.score.r2 > ours.score.r2:
        return f"; “{best.name}” does better without them (R² = {best.score.r2:.2f}{hedge})"
    return f", ahead of all else that was tried (R² = {best.score.r2:.2f} or less{hedge})"


def neighbour_sentence(facts: DemoFacts) -> str:
    """Whether real or mock galaxies lie nearer to the query."""
    near = [
        float(np.median([cutout.distance for cutout in found if cutout.distance is not None]))
        for found in (facts.neighbours_real, facts.neighbours_mock)
        if any(cutout.distance is not None for cutout in found)
    ]
    if len(near) < 2:
        return ""
    nearer = "real" if near[0] < near[1] else "mock"
    return (
        f"Median distance: {near[0]:.2g} to these real galaxies, {near[1]:.2g} to these mock ones, "
        f"so the {nearer} ones are nearer. Cutouts of different size leave a different number of "
        "tokens, which the vectors may feel too."
    )


def taught(facts: DemoFacts) -> str:
    """Whether the model met the probe's target while it was trained."""
    key = LEGACY_SURVEY.labels.get(facts.probe_target)
    if key is None or key not in listed(facts.model_card.get("domains")):
        return ""
    return (
        f"In training, {facts.model} also learnt to predict the {target_name(facts)} of other "
        f"galaxies (domain {key} of its recipe), so it was taught what is asked here; "
        f"the {target_name(facts)} of these galaxies is never an input."
    )


def tiles(facts: DemoFacts) -> list[tuple[str, str]]:
    """Key numbers: value and what it is."""
    rows = sum(catalog.rows for catalog in facts.catalogs)
    failed = sum(catalog.failed_rows for catalog in facts.catalogs)
    seconds = sum(catalog.seconds for catalog in facts.catalogs)
    passed, checks = passed_checks(facts)
    same = f"{rows:,} = {rows:,}" if passed == checks else f"{rows:,}"
    ours = our_score(facts)
    found = [
        (same, f"rows in, rows out; {failed:,} without a vector"),
        (f"{passed:,} of {checks:,}", "checks through plain LSDB passed"),
        (f"{rows / seconds:,.0f}" if seconds > 0 else DASH, "objects per second, verified on disk"),
        (f"{facts.dim} {TIMES} {facts.vector_type}", "numbers in a vector, and their type"),
        (facts.model, f"model, digest {short(facts.model_digest)}"),
    ]  # fmt: skip
    if ours is not None:
        interval = f"{ours.score.r2_low:.2f} to {ours.score.r2_high:.2f}"
        found.append((f"{ours.score.r2:.2f}", f"R² of {target_name(facts)}; 95 %: {interval}"))
    return found


def target_name(facts: DemoFacts) -> str:
    """The probe's target for people."""
    return "redshift" if facts.probe_target.lower() in {"z", "redshift"} else facts.probe_target


def duration(seconds: float) -> str:
    """E.g. ``0.44 s``, ``38 s``, ``4 min 5 s`` or ``1 h 2 min``."""
    if seconds < 10:
        return f"{seconds:.{2 if seconds < 1 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(digest: str) -> str:
    """First twelve characters."""
    return digest[:12]


def number(value: object, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _r2(row: ScoreRow) -> str:
    score = row.score
    return f"R² = {score.r2:.2f} (95 % interval {score.r2_low:.2f} to {score.r2_high:.2f})"


def _apart(one: ScoreRow, other: ScoreRow) -> bool:
    return one.score.r2_low > other.score.r2_high or other.score.r2_low > one.score.r2_high


def our_score(facts: DemoFacts) -> ScoreRow | None:
    """Score of the vectors, if there is one."""
    return next((row for row in facts.scores if row.ours), None)


def _others(facts: DemoFacts) -> list[ScoreRow]:
    return [row for row in facts.scores if not row.ours]


def passed_checks(facts: DemoFacts) -> tuple[int, int]:
    """Checks that passed, and all."""
    checks = [check for catalog in facts.catalogs for check in catalog.checks]
    return sum(check.passed for check in checks), len(checks)
