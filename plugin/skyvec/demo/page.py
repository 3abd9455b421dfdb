"""The demo's page: facts -> one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from skyvec.demo import figures
from skyvec.demo.facts import CatalogFacts, Cutout, DemoFacts
from skyvec.demo.figures import listed, mapping
from skyvec.demo.wording import (
    DASH,
    REASONS,
    TIMES,
    duration,
    neighbour_sentence,
    number,
    short,
    summary,
    target_name,
    taught,
    tiles,
    verdict,
)
from skyvec.drawing import Picture, picture
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.survey_columns import LEGACY_SURVEY

PIXEL_SCALE = 0.262
"""Arcseconds; see `Cutout`."""

COLUMN_TYPES = ("vector", "string", "int32", "int64", "int32", "int64")
"""Of `EmbeddingColumns.fields`, for people."""

STEPS = {
    "wait": "wait for what is read meanwhile",
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


def _columns(facts: DemoFacts) -> EmbeddingColumns:
    name = facts.catalogs[0].extension if facts.catalogs else "embedding"
    return EmbeddingColumns(name=name, dim=facts.dim, dtype=facts.vector_type)


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
        "sky": picture(
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
        yield picture(
            figures.truth_and_prediction(truth, predicted, label=label),
            alt=f"Predicted against true {name} of {len(truth):,} mock galaxies, with residuals",
        )
    if facts.scores:
        scores = ", ".join(f"{row.name} {row.score.r2:.3f}" for row in facts.scores)
        yield picture(
            figures.score_intervals(facts.scores), alt=f"R² with 95 % intervals: {scores}"
        )


def _model(facts: DemoFacts) -> dict[str, object]:
    card = facts.model_card
    reconstruction = mapping(card.get("reconstruction"))
    return {
        "lines": list(_card_lines(facts)),
        "curves": [
            (name, picture(figures.loss_figure(curves), alt=f"Loss curves of {name}"))
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
    if run.get("steps"):  # the last run may have found nothing left to do
        parts.append(f"{number(run['steps'])} steps")
    if isinstance(hours := run.get("hours"), int | float) and hours:
        parts.append(f"{duration(hours * 3600)} of computing")
    if isinstance(loss := mapping(run.get("held_out")).get("loss"), int | float):
        parts.append(f"held-out loss {loss:.3g}")
    return ", ".join(parts) or "no log"
