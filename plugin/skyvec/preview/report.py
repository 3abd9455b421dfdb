"""A preview as tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from skyvec.preview.cost import Cost
from skyvec.preview.preview import Preview, SourcePreview
from skyvec.releases.lint.finding import Finding

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
_NOTES = 12


def preview_tables(preview: Preview) -> list[Table]:
    """One table for each topic: releases, matches, findings, the whole run."""
    tables = [_releases([preview.catalog, *preview.sources])]
    if any(source.matched for source in preview.sources):
        tables.append(_matches(preview.sources))
    if preview.findings:
        tables.append(_findings(preview.findings))
    if preview.cost:
        tables.append(_cost(preview.cost))
    return tables


def _table(title: str, *columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False,
                  width=100)  # fmt: skip
    for name in columns:
        right = name in numbers
        table.add_column(
            name, justify="right" if right else "left", no_wrap=right, overflow="fold",
            header_style="dim",
        )  # fmt: skip
    return table


def _releases(sources: list[SourcePreview]) -> Table:
    table = _table("Releases", "", "format", "survey", "rows", "size", "files", "feeds",
                   numbers=("rows", "size", "files"))  # fmt: skip
    for source in sources:
        about = "" if source.exact else "~"
        missing = [name for names in source.missing.values() for name in names]
        lacks = f"; missing {_some(missing)}" if missing else ""
        table.add_row(
            escape(source.name),
            source.format,
            source.survey,
            f"{about}{source.rows:,}" if source.rows else "-",
            about + size(source.bytes),
            f"{source.files:,}",
            escape(_feeds(source) + lacks),
        )
    return table


def _feeds(source: SourcePreview) -> str:
    """Arrays by name, scalars by number."""
    from skyvec_core.modalities import MODALITIES

    keys = [pair.rpartition("=")[2] for pair in source.inputs]
    arrays = [key.removeprefix("tok_") for key in keys if MODALITIES[key].kind != "scalar"]
    scalars = len(keys) - len(arrays)
    counted = [f"{scalars} scalar{'s' if scalars > 1 else ''}"] if scalars else []
    return ", ".join(arrays + counted) or "ids and positions"


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _matches(sources: Iterable[SourcePreview]) -> Table:
    table = _table("Matches in the sampled pixels", "", "joined", "pixels", "rows", "with object",
                   "outcomes", numbers=("pixels", "rows", "with object"))  # fmt: skip
    for source in sources:
        if not (found := source.matched):
            continue
        rest = {
            k: n for k, n in found.counts.items() if n and k not in {"rows", "matched", "positions"}
        }
        table.add_row(
            escape(source.name),
            source.joined,
            f"{found.pixels}",
            f"{found.rows:,}",
            f"{found.fraction:.1%}",
            ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in rest.items()),
        )
    return table


def _findings(findings: tuple[Finding, ...]) -> Table:
    table = _table("Findings", "", "topic", "what", "where")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    table.columns[2].ratio, table.columns[3].ratio = 3, 2
    notes = 0
    for finding in findings:
        notes += finding.severity == "note"
        if notes > _NOTES:
            continue
        colour = _COLOURS[finding.severity]
        remedy = f". {finding.remedy}" if finding.remedy else ""
        files = finding.evidence.get("files", 1)
        others = f" (in {int(files)} files)" if int(files) > 1 else ""
        table.add_row(
            f"[{colour}]{finding.severity}[/]",
            finding.topic,
            escape(finding.what + remedy),
            escape(f"{finding.source}: {finding.where}{others}"),
        )
    if notes > _NOTES:
        table.add_row("", "", f"{notes - _NOTES} more notes; --json shows them", "")
    return table


def _cost(cost: Cost) -> Table:
    objects = ", ".join(f"{count} of {name}" for name, count in cost.sampled.items())
    table = _table(f"The whole run, extrapolated from {objects}", "", "")
    table.show_header = False
    table.columns[0].no_wrap = True
    steps = ", ".join(f"{step} {duration(spent)}" for step, spent in cost.seconds.items() if spent)
    tokens = sorted(cost.tokens.items(), key=lambda pair: -pair[1])
    arrays = [f"{key.removeprefix('tok_')} {mean:.0f}" for key, mean in tokens if mean > 1]
    others = [mean for _, mean in tokens if mean <= 1]
    if others:
        arrays.append(f"{len(others)} others {sum(others):.1f}")
    lines = {
        "rows to do": f"{cost.rows:,}",
        "tokens a row": f"{sum(cost.tokens.values()):.0f}: {', '.join(arrays)}",
        "time": f"{duration(cost.wall_seconds)} with {cost.workers} workers, and what it takes to "
        f"start these, to write and to prove; of one worker {steps}",
        "to read": f"at least {size(cost.read_bytes)}",
        "to write": f"{size(cost.vector_bytes)} of vectors or tokens, keys up to "
        f"{size(cost.key_bytes)}",
    }
    if cost.spool_bytes:
        lines["waiting"] = (
            f"{size(cost.spool_bytes)} on the disk of each worker, for the largest pixel"
        )
    for name, value in lines.items():
        table.add_row(name, escape(value))
    return table


def size(count: float) -> str:
    """Bytes in decimal units: ``61.1 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: ``1.2 s``, ``3.4 min``, ``5.6 h``."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
