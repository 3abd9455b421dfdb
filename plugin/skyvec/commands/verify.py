"""The command line of proofs: ``skyvec verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from skyvec.commands.options import Catalog, ExtensionOption
from skyvec.commands.terminal import out

if TYPE_CHECKING:
    from skyvec.extensions.checks.report import Report

_COLOUR = {"passed": "green", "failed": "bold red", "not done": "yellow"}


def verify(
    catalog: Catalog,
    *,
    extension: ExtensionOption = None,
    sample: Annotated[int, typer.Option(min=0, help="Rows to embed again, each alone.")] = 8,
    source: Annotated[
        str | None, typer.Option(help="The catalog that was embedded, if it was moved.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or name of the model, if it was moved.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of these rows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Prove that every row of an extension is right, or name file and rows that are not.

    Ends with 0 if it is right, 20 if it is unfinished or its input changed since, 30 if it is wrong.
    """
    from skyvec.extensions.verify import verify as prove

    report = prove(catalog, extension, source=source, sample=sample, model=model, seed=seed)
    if as_json:
        out.print_json(data=report.to_dict())
    else:
        _show(report)
    raise typer.Exit(report.exit_code)


def _show(report: Report) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        colour = _COLOUR[check.outcome]
        table.add_row(check.name, f"[{colour}]{check.outcome}[/]", escape(check.summary))
    out.print(table)
    for check in report.checks:
        for line in check.problems:
            out.print(f"[red]{check.name}:[/] {escape(line)}")
        for line in check.notes:
            out.print(f"[yellow]{check.name}:[/] {escape(line)}")
    failed = sum(check.passed is False for check in report.checks)
    open_questions = sum(check.passed is None for check in report.checks)
    if failed:
        checks = "1 check" if failed == 1 else f"{failed} checks"
        out.print(f"[bold red]{report.extension} is wrong[/]: {checks} failed")
    elif report.unfinished:
        out.print(
            f"{report.extension} is right as far as it goes: {report.unfinished}; run the same "
            "command again to go on"
        )
    elif report.stale_pixels:
        out.print(
            f"{report.extension}: the input of {report.stale_pixels:,} HEALPix pixels changed since "
            "they were embedded; run `skyvec embed` again"
        )
    else:
        rest = f"; {open_questions} checks could not be done" if open_questions else ""
        out.print(f"{report.extension} in {report.folder} is right{escape(rest)}")
