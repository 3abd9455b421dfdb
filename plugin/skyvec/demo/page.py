"""The demo's page: facts -> one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from skyvec.demo import figures
from skyvec.demo.facts import CatalogFacts, Cutout, DemoFacts, ScoreRow
from skyvec.demo.figures import Picture, listed, mapping
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.survey_columns import LEGACY_SURVEY

TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
PIXEL_SCALE = 0.262
"""Arcseconds; see `Cutout`."""

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

COLUMN_TYPES = ("vector", "string", "int32", "int64", "int32")
"""Of `EmbeddingColumns.fields`, for people."""

STEPS = {
    "read": "read Parquet",
    "tokenize": "pixels and numbers to tokens",
    "encode": "tokens to vectors",
    "write": "write the extension",
    "verify": "compare with the input",
}


def write_page(facts: DemoFacts, to: Path) -> Path:
    """Write the page to ``to`` and return it; the file loads nothing from anywhere else."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters |= {"duration": duration, "short": short, "number": number}
    source = resources.files("skyvec.demo").joinpath("page.html.j2").read_text(encoding="utf-8")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(environment.from_string(source).render(context(facts)), encoding="utf-8")
    return to


def context(facts: DemoFacts) -> dict[str, object]:
    """Everything that the template shows."""
    return {
        "facts": facts,
        "target": target_name(facts),
        "summary": summary(facts),
        "tiles": tiles(facts),
        "journey": _journey(facts),
        "catalogs": [_catalog(catalog) for catalog in facts.catalogs],
        "timings": _shares(facts.timings),
        "verdict": verdict(facts),
        "taught": taught(facts),
        "physics": list(_physics_pictures(facts)),
        "query": _shown([facts.query])[0],
        "near_real": _shown(facts.neighbours_real),
        "near_mock": _shown(facts.neighbours_mock),
        "near_sentence": neighbour_sentence(facts),
        "model": _model(facts),
    }


# ---- sentences and numbers


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
    passed, checks = _passed(facts)
    truth = "All" if passed == checks else f"Only {passed:,} of"
    checked = f"{truth} {checks:,} checks of rows, ids and order passed"
    ours = _ours(facts)
    if ours is None:
        return f"{did}{checked}."
    found = f"a linear model on the vectors predicts {target_name(facts)} with {_r2(ours)}"
    return f"{did}{checked}, and {found}{_against_best(ours, _others(facts))}."


def verdict(facts: DemoFacts) -> list[str]:
    """What the scores say, from the numbers alone."""
    ours = _ours(facts)
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
    passed, checks = _passed(facts)
    same = f"{rows:,} = {rows:,}" if passed == checks else f"{rows:,}"
    ours = _ours(facts)
    found = [
        (same, f"rows in, rows out; {failed:,} without a vector"),
        (f"{passed:,} of {checks:,}", "checks through plain LSDB passed"),
        (f"{rows / seconds:,.0f}" if seconds > 0 else DASH, "objects per second, verified on disk"),
        (f"{facts.dim} {TIMES} {_columns(facts).dtype}", "numbers in a vector, and their type"),
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


def _ours(facts: DemoFacts) -> ScoreRow | None:
    return next((row for row in facts.scores if row.ours), None)


def _others(facts: DemoFacts) -> list[ScoreRow]:
    return [row for row in facts.scores if not row.ours]


def _passed(facts: DemoFacts) -> tuple[int, int]:
    checks = [check for catalog in facts.catalogs for check in catalog.checks]
    return sum(check.passed for check in checks), len(checks)


# ---- sections


def _columns(facts: DemoFacts) -> EmbeddingColumns:
    name = facts.catalogs[0].extension if facts.catalogs else "embedding"
    return EmbeddingColumns(name=name, dim=facts.dim)


def _journey(facts: DemoFacts) -> dict[str, object]:
    """The way of one object: the query's picture, its tokens, its columns."""
    cells = figures.visible_cells(facts.query.flux)
    columns = _columns(facts)
    known = facts.model_card.get("domains")
    scalars = [
        scalar.name
        for scalar in LEGACY_SURVEY.scalars
        if not isinstance(known, Sequence) or scalar.token_key in known
    ]
    return {
        "picture": _shown([facts.query])[0]["picture"],
        "size": _size(facts.query),
        "scalars": scalars,
        "seen": int(cells.sum()),
        "cells": cells.size,
        "side": len(cells),
        "path": figures.squares(cells),
        "vector": [(i % 16, i // 16) for i in range(min(facts.dim, 256))],
        "columns": list(zip(columns.names, COLUMN_TYPES, strict=True)),
        "dtype": columns.dtype,
        "catalogs": [
            (c.kind, _size(c.gallery[0]), int(figures.visible_cells(c.gallery[0].flux).sum()))
            for c in facts.catalogs
            if c.gallery
        ],
    }


def _catalog(catalog: CatalogFacts) -> dict[str, object]:
    ok = catalog.rows - catalog.partial_rows - catalog.failed_rows
    where = f"{len(catalog.pixels)} HEALPix partitions"
    rate = f"{catalog.rows / catalog.seconds:,.0f}" if catalog.seconds > 0 else DASH
    code = catalog.open_command
    return {
        "facts": catalog,
        "title": {"real": "Real galaxies", "mock": "Mock galaxies"}.get(catalog.kind, catalog.kind),
        "sky": figures.picture(
            figures.sky_map(catalog),
            alt=f"Sky map of {catalog.rows:,} objects of {catalog.name} in {where}",
        ),
        "gallery": _shown(catalog.gallery),
        "size": _size(catalog.gallery[0]) if catalog.gallery else "",
        "statuses": [
            ("ok", ok, "embedded from all that the survey declares"),
            ("partial", catalog.partial_rows, "embedded from less; the reasons say what is amiss"),
            ("failed", catalog.failed_rows, "no vector: null, with a reason"),
        ],
        "reasons": [
            (name.replace("_", " "), rows, REASONS.get(name.replace(" ", "_"), ""))
            for name, rows in sorted(catalog.flags.items(), key=lambda item: -item[1])
        ],
        "steps": _shares([(STEPS.get(k, k), v) for k, v in catalog.step_seconds.items()]),
        "rate": rate,
        "code": code if "import " in code else f"import lsdb\n\n{code}",
    }  # fmt: skip


def _shares(seconds: Sequence[tuple[str, float]]) -> list[tuple[str, float, float]]:
    """Name, seconds and percent of the sum."""
    total = sum(value for _, value in seconds)
    return [(name, value, 100 * value / total if total > 0 else 0.0) for name, value in seconds]


def _shown(cutouts: Sequence[Cutout]) -> list[dict[str, object]]:
    return [
        {
            "picture": figures.cutout_picture(
                cutout.flux, alt=f"Colour cutout of {cutout.object_id}, {cutout.caption}"
            ),
            "cutout": cutout,
            "size": _size(cutout),
        }
        for cutout in cutouts
    ]


def _size(cutout: Cutout) -> str:
    height, width = cutout.flux.shape[1:]
    return f"{height} {TIMES} {width} pixels, {width * PIXEL_SCALE:.1f}″ wide"


def _physics_pictures(facts: DemoFacts) -> Iterator[Picture]:
    name, symbol = target_name(facts), facts.probe_target
    label = f"{name} {symbol.lower()}" if name != symbol else symbol
    good = np.isfinite(facts.probe_truth) & np.isfinite(facts.probe_predicted)
    if good.any():
        truth, predicted = facts.probe_truth[good], facts.probe_predicted[good]
        yield figures.picture(
            figures.truth_and_prediction(truth, predicted, label=label),
            alt=f"Predicted against true {name} of {len(truth):,} mock galaxies, with residuals",
        )
    if facts.scores:
        scores = ", ".join(f"{row.name} {row.score.r2:.3f}" for row in facts.scores)
        yield figures.picture(
            figures.score_intervals(facts.scores), alt=f"R² with 95 % intervals: {scores}"
        )


def _model(facts: DemoFacts) -> dict[str, object]:
    card = facts.model_card
    reconstruction = mapping(card.get("reconstruction"))
    return {
        "lines": list(_card_lines(facts)),
        "curves": [
            (name, figures.picture(figures.loss_figure(curves), alt=f"Loss curves of {name}"))
            for name, curves in figures.loss_curves(card).items()
        ],
        "reconstruction": figures.reconstruction_table(reconstruction),
        "held_out": reconstruction.get("objects"),
        "recipe": json.dumps(card["recipe"], indent=2, default=str) if card.get("recipe") else "",
        "commands": [str(line) for line in listed(card.get("commands"))],
    }


def _card_lines(facts: DemoFacts) -> Iterator[tuple[str, str]]:
    """Facts of the card in words; what it does not say is left out."""
    card = facts.model_card
    if isinstance(parameters := card.get("parameters"), int):
        yield "Parameters", f"{parameters:,}"
    if card.get("data"):
        yield "Trained on", str(card["data"])
    if domains := listed(card.get("domains")):
        yield (
            "Kinds of token",
            ", ".join(str(d).removeprefix("tok_").replace("_", " ") for d in domains),
        )
    for name, run in mapping(card.get("runs")).items():
        yield f"Training, {name.replace('_', ' ')}", _run_in_words(mapping(run))
    reconstruction = mapping(card.get("reconstruction"))
    if "codes_used" in reconstruction:
        used, codes = number(reconstruction["codes_used"]), number(reconstruction.get("codes"))
        yield "Image codes in use", f"{used} of {codes}"
    for key in ("seed", "licence"):
        if card.get(key) is not None:
            yield key.capitalize(), str(card[key])
    yield "Digest of all weights", facts.model_digest


def _run_in_words(run: Mapping[str, object]) -> str:
    parts = []
    if "steps" in run:
        parts.append(f"{number(run['steps'])} steps")
    if isinstance(hours := run.get("hours"), int | float) and hours:
        parts.append(f"{duration(hours * 3600)} of computing")
    if isinstance(loss := mapping(run.get("held_out")).get("loss"), int | float):
        parts.append(f"held-out loss {loss:.3g}")
    return ", ".join(parts) or "no log"
