"""What the command line prints: one console, tables of facts, progress, one-line failures."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)


def fail(line: str, code: int) -> NoReturn:
    """End the process with one line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold red]skyvec:[/] {escape(line)}"
    )
    sys.exit(code)


def facts(lines: dict[str, str]) -> Table:
    """Labels and texts, side by side."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(name, escape(value))
    return table


@contextmanager
def counting(what: str, total: int) -> Iterator[Any]:
    """A bar in a terminal, one line every ten seconds in a log."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if out.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, spoken = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, spoken
        done += count
        if time.monotonic() - spoken > 10 or done == total:
            spoken = time.monotonic()
            out.print(f"{done:,} of {total:,} {what}")

    yield advance
    if done and done != total:
        out.print(f"{done:,} {what} in this run")


def say(line: str) -> None:
    """Print one line."""
    out.print(line)
