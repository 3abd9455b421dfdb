"""The report as one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined

from skyvec.demo.wording import REASONS, duration
from skyvec.report.charts import norm_chart, pace_chart
from skyvec.report.commands import join_code, quarantine_code
from skyvec.report.facts import ReportFacts
from skyvec.report.sky import CELLS, sky_map
from skyvec.report.states import FAILED, STATES
from skyvec.stage.record_table import Key
from skyvec_schemas.errors import ConfigurationError

FAILURES = 200
"""Failed pixels with an entry of their own."""
OPEN = 100
"""Pixels that are named where they are not done."""
WORKERS = 50
REASON_TEXTS: Mapping[str, str] = REASONS | {
    "spectrum_missing": "no spectrum was found",
    "spectrum_bad_samples": "some samples are masked or without weight; alone it leaves the row ok",
    "spectrum_unusable": "no sample of the spectrum carries information",
    "spectrum_malformed": "its parts differ in length, or its wavelengths do not ascend",
    "coefficients_missing": "no coefficients were found, or all are zero",
    "position_invalid": "the position is not a place on the sky",
    "match_ambiguous": "several objects of a source lie within the radius",
    "source_duplicate": "the id occurs more than once in a source",
}
STEPS = {
    "match": "join with the sources",
    "read": "read, beside the rest",
    "wait": "wait for what is read",
    "tokenize": "pixels and numbers to tokens",
    "encode": "tokens to vectors",
    "write": "write the leaf",
    "verify": "compare it with the input",
}


def write_page(facts: ReportFacts, to: Path) -> Path:
    """Write the page to ``to`` and return it.

    Raises
    ------
    ConfigurationError
        If it cannot be written there.
    """
    html = render(facts)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(html, encoding="utf-8")
    except OSError as problem:
        raise ConfigurationError(
            f"the report cannot be written ({problem.strerror})",
            where=str(to),
            remedy="Name a file in a folder that is writable with --out",
        ) from problem
    return to


def render(facts: ReportFacts) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters |= {"duration": duration, "count": "{:,}".format, "size": _size}
    source = resources.files("skyvec.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(context(facts))


def context(facts: ReportFacts) -> dict[str, object]:
    """Everything that the template shows."""
    failed = facts.failed
    shown = failed[:FAILURES]
    anchors = _anchors(facts, [record.key for record in shown])
    open_pixels = [key for key, state in facts.states.items() if state == "open"]
    totals = facts.totals
    return {
        "facts": facts,
        "totals": totals,
        "ok": totals.rows - totals.partial_rows - totals.failed_rows,
        "headline": headline(facts),
        "said": _said(facts),
        "tiles": _tiles(facts),
        "sky": sky_map(facts, anchors),
        "most_cells": CELLS,
        "legend": [(s, n, STATES[s]) for s, n in facts.pixel_counts.items()],
        "failed": [
            (record, facts.pixel_command(record.key), _tried(facts, record.key)) for record in shown
        ],
        "failed_more": len(failed) - len(shown),
        "open": [f"{order}/{pixel}" for order, pixel in open_pixels[:OPEN]],
        "open_all": len(open_pixels),
        "reasons": _reasons(facts),
        "aside": _aside(facts),
        "quarantine_code": quarantine_code(facts.run),
        "join_code": join_code(facts.run),
        "pace_chart": pace_chart(facts.pace) if facts.pace else "",
        "steps": _steps(facts),
        "workers": facts.workers[:WORKERS],
        "workers_more": max(0, len(facts.workers) - WORKERS),
        "retried": sum(record.attempts - 1 for record in totals.quanta),
        "norm_chart": norm_chart(facts.sample) if facts.sample and _has_norms(facts) else "",
        "norms": _norms(facts),
        "modalities": _modalities(facts),
        "provenance": _provenance(facts),
        "icon": "data:image/svg+xml," + quote(_ICON),
    }


_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<path d="M8 0 16 8 8 16 0 8z" fill="#0072b2"/></svg>'
)


def headline(facts: ReportFacts) -> str:
    """What happened, in one sentence for somebody who does not know the project."""
    totals, counts = facts.totals, facts.pixel_counts
    rows, failed = totals.rows, sum(counts.get(state, 0) for state in FAILED)
    product = "a vector" if facts.embedding else "tokens"
    which = "objects" if facts.complete else "objects in finished pixels"
    got = f"{rows - totals.failed_rows:,} of {rows:,} {which} got {product}"
    if not rows:
        got = "No object was finished yet"
    if facts.complete:
        return f"{got}; the extension is published and can be joined to its catalog."
    wanting = {"failed": failed, "are not done": counts.get("open", 0)}
    what = " and ".join(f"{n:,} {word}" for word, n in wanting.items() if n)
    why = f"of {sum(counts.values()):,} HEALPix pixels {what}" if what else facts.state
    if facts.readable is None:
        return f"{got}; nothing is published yet: {why}."
    return f"{got}; readers still find the {facts.readable:,} published before: {why}."


def _said(facts: ReportFacts) -> list[str]:
    """What the last run said of the whole; each failed pixel has an entry of its own."""
    lines = (facts.run.manifest or {}).get("problems", [])
    return [line for line in map(str, lines) if not line.startswith("Norder=")]


def _tiles(facts: ReportFacts) -> list[tuple[str, str]]:
    totals, counts = facts.totals, facts.pixel_counts
    finished = sum(n for s, n in counts.items() if s not in FAILED | {"open"})
    found = [
        (f"{totals.rows - totals.failed_rows:,}", "rows with a result"),
        (f"{totals.failed_rows:,}", "rows without, each with its reason"),
        (f"{totals.quarantined:,}", "objects quarantined: their data are bad"),
        (f"{finished:,} of {sum(counts.values()):,}", "HEALPix pixels done"),
    ]
    if facts.pace:
        last = facts.pace.stretches[-1]
        found.append((duration(last.seconds), f"last stretch of work, {last.pixels:,} pixels"))
        found.append((f"{last.rows_per_second:,.1f}", "rows per second in it"))
    return found


def _anchors(facts: ReportFacts, failed: list[Key]) -> dict[Key, str]:
    """Entries of the page by pixel: failures, and the first quarantined object of others."""
    flagged = [(each.order, each.pixel) for each in facts.quarantine.shown]
    lists = dict.fromkeys(key for key, state in facts.states.items() if state == "flagged")
    return {
        **dict.fromkeys(lists, "aside"),
        **{key: f"p-{key[0]}-{key[1]}" for key in [*flagged, *failed]},
    }


def _tried(facts: ReportFacts, key: Key) -> tuple[str, ...]:
    return facts.retries.by_pixel.get(key, ()) if facts.retries else ()


def _reasons(facts: ReportFacts) -> list[tuple[str, int, float, str]]:
    """Reason, rows, percent of the rows, meaning."""
    rows = max(1, facts.totals.rows)
    found = sorted(facts.totals.flags.items(), key=lambda item: -item[1])
    return [
        (name.replace("_", " "), n, 100 * n / rows, REASON_TEXTS.get(name, "")) for name, n in found
    ]


def _aside(facts: ReportFacts) -> list[tuple[str, bool, object]]:
    """Anchor (or nothing), whether the pixel failed too, object: the first of a pixel is the anchor."""
    seen: set[Key] = {record.key for record in facts.failed[:FAILURES]}
    found: list[tuple[str, bool, object]] = []
    for each in facts.quarantine.shown:
        key = (each.order, each.pixel)
        found.append(("" if key in seen else f"p-{key[0]}-{key[1]}", key in seen, each))
        seen.add(key)
    return found


def _steps(facts: ReportFacts) -> list[tuple[str, float, float]]:
    found = {name: s for name, s in facts.step_seconds.items() if name != "read"}
    total = sum(found.values())
    return [(STEPS[name], s, 100 * s / total if total else 0.0) for name, s in found.items()]


def _has_norms(facts: ReportFacts) -> bool:
    return facts.sample is not None and bool(np.isfinite(facts.sample.norms).any())


def _norms(facts: ReportFacts) -> list[tuple[str, str]]:
    if facts.sample is None or not _has_norms(facts):
        return []
    levels = {"least": 0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "greatest": 1}
    values = np.quantile(facts.sample.norms, list(levels.values()))
    return [(name, f"{value:.4g}") for name, value in zip(levels, values, strict=True)]


def _modalities(facts: ReportFacts) -> list[tuple[str, int, float]]:
    """Each modality, rows that used it, percent of the rows with a vector."""
    if facts.sample is None:
        return []
    total = max(1, sum(facts.sample.modalities.values()))
    used: dict[str, int] = {}
    for names, rows in facts.sample.modalities.items():
        for name in names:
            used[name] = used.get(name, 0) + rows
    every = sorted(used.items(), key=lambda item: (-item[1], item[0]))
    return [(name.removeprefix("tok_").replace("_", " "), n, 100 * n / total) for name, n in every]


def _provenance(facts: ReportFacts) -> list[tuple[str, str]]:
    made, job = facts.run.provenance, facts.run.job
    lines = {
        "Fingerprint": made.fingerprint(),
        "Catalog": str(facts.run.source or job.get("source", "unknown")),
        "Extension": str(facts.run.output.root),
        "Model": made.model,
        "Model digest": made.model_digest,
        "Arithmetic": f"{made.precision} on {made.device}, stored as {made.vector_type}",
        "Survey": made.survey,
        "Inputs": ", ".join(made.inputs) or "none of the catalog's own",
        "Sources": "; ".join(made.sources),
        "Tokens from": str(job.get("tokens") or ""),
        "Vectors reused from": str(job.get("earlier") or ""),
        "skyvec": made.skyvec_version,
        "Numerics version": str(made.numerics_version),
        "Run": str(job.get("run_id", "")),
    }
    return [(name, value) for name, value in lines.items() if value]


def _size(count: float) -> str:
    """Bytes for people."""
    if count <= 0:
        return "unknown"
    power = min(4, int(math.log(count, 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
