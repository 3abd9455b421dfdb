"""The page of the command line, as Markdown, from the commands themselves.

    python tools/write_cli_page.py docs/generated/cli.md

Typer's own `utils docs` cuts the line of each command and loses the panels of options.
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from skyvec.cli import app
from skyvec.commands.examples import EXAMPLES

HEAD = """# The command line

Every command and option, made from the commands themselves. `skyvec --help` and the `--help` of
each command say the same in a terminal. What exit codes mean is on
[the page of formats](../formats.md#exit-codes).
"""


def sections(
    command: TyperCommand | TyperGroup, context: typer.Context, words: tuple[str, ...]
) -> Iterator[str]:
    """Markdown of one command and of all below it."""
    if getattr(command, "commands", None):
        for name, below in sorted(command.commands.items()):
            inner = type(context)(below, info_name=name, parent=context)
            yield from sections(below, inner, (*words, name))
        return
    name = " ".join(words)
    yield f"## skyvec {name}"
    # A paragraph that is indented would be code, and Sphinx's marks are not Markdown's.
    help_text = inspect.cleandoc(command.help or "").split("\f")[0].replace("``", "`")
    yield help_text
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\nskyvec {name} {usage}\n```"
    yield from tables(command, context)
    if command.context_settings.get(
        "ignore_unknown_options"
    ):  # another package's command: it knows its options
        yield f"`skyvec {name} --help` has its options, [Training](../training.md) its use."
    if name in EXAMPLES:
        lines = "\n".join(f"$ {line}" for line in EXAMPLES[name])
        yield f"```console\n{lines}\n```"


def tables(command: TyperCommand | TyperGroup, context: typer.Context) -> Iterator[str]:
    """Arguments and options, panel by panel."""
    panels = defaultdict(list)
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None and "--help" not in param.opts:
            panel = getattr(param, "rich_help_panel", None) or ""
            panels[panel].append(record)
    for panel, records in panels.items():
        rows = [f"| `{what}` | {cell(text)} |" for what, text in records]
        yield "\n".join([f"| {panel or 'argument or option'} | |", "|---|---|", *rows])


def cell(text: str | None) -> str:
    """Text that cannot end a cell of a table, or begin a tag."""
    words = " ".join((text or "").split())
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main(target: Path) -> None:
    """Write the page."""
    command = typer.main.get_command(app)
    context = command.make_context("skyvec", [], resilient_parsing=True)
    parts = [HEAD, *sections(command, context, ())]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
