"""Commands that other packages announce as entry points ``skyvec.commands``: training is one.

An entry point names a function of one argument, the words after the command, that returns the exit
code; the first line of its docstring is what ``skyvec --help`` says. Its module must be light to
import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import typer

GROUP = "skyvec.commands"


def add_neighbours(app: typer.Typer) -> None:
    """Add the commands of installed packages, in the order of their names."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        app.command(
            point.name,
            help=_help(point),
            add_help_option=False,  # --help is the other package's to answer
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_passing_on(point))


def _help(point: EntryPoint) -> str:
    try:
        return (point.load().__doc__ or "").strip().splitlines()[0]
    except (ImportError, AttributeError, IndexError):
        return f"from {point.value}"  # a broken package must not take the others along


def _passing_on(point: EntryPoint) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        raise typer.Exit(point.load()(context.args))

    return command
