"""An answer in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from skyvec.answers.wording import facts_for_people

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer


def renderable(answer: Answer, *, shown: int) -> RenderableType:
    """Question, worth of the scores, and the first rows."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in facts_for_people(answer).items():
        facts.add_row(name, escape(value))
    rows = Table(box=None, pad_edge=False)
    shown_rows = [[_cell(value) for value in row.values()]
                  for row in answer.table.slice(0, shown).to_pylist()]  # fmt: skip
    for place, name in enumerate(answer.table.column_names):
        # Ids are there to be copied: a table that is too wide for the screen is not cut.
        width = max([len(name), *(len(row[place]) for row in shown_rows)])
        rows.add_column(escape(name), justify="right", no_wrap=True, min_width=width)
    for cells in shown_rows:
        rows.add_row(*cells)
    parts: list[RenderableType] = [facts, "", rows]
    if len(answer) > shown:
        parts.append(f"... {len(answer):,} rows in all")
    return Group(*parts)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5f}" if isinstance(value, float) else escape(str(value))
