"""The command line that looks: ``skyvec report`` at a run, ``skyvec doctor`` at this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from skyvec.commands.options import Catalog, ExtensionOption
from skyvec.commands.terminal import out

if TYPE_CHECKING:
    from skyvec.doctor.findings import Finding

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[bold red]wrong[/]"}


def report(
    catalog: Catalog,
    *,
    extension: ExtensionOption = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="HTML file; <extension>-report.html by default.")
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(help="What the run was given as --log-json: tells the reasons of retries."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Facts for programs; a page only with --out.")
    ] = False,
) -> None:
    """Show a run, finished or not, as one HTML file: sky, failures, pace, vectors, provenance."""
    from skyvec.report.facts import gather
    from skyvec.report.page import write_page

    found = gather(catalog, extension, events=events)
    page = None
    if to or not as_json:
        page = write_page(found, to or Path(f"{found.name}-report.html"))
    if as_json:
        out.print_json(data=found.to_dict())
        return
    out.print(escape(f"{found.name}: {found.state}"))
    counts = (f"{count:,} {state}" for state, count in found.pixel_counts.items())
    out.print(f"HEALPix pixels: {', '.join(counts) or 'none'}")
    for why, command in found.next_steps[:1]:
        out.print(escape(f"{why}: {command}"))
    if page:
        out.print(f"Open [bold]{escape(str(page.resolve()))}[/] in a browser; it needs no network.")


def doctor(
    *,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler to reach, tcp://host:8786.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose numbers to check on this machine.")
    ] = "skyvec-tiny",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is installed, which device is used, what is reachable, and what to do about it.

    Ends with 0 if the default path can run, with 40 if something here is wrong, and with 50 if the
    named scheduler does not answer.
    """
    from skyvec.doctor.checks import examine
    from skyvec.doctor.findings import exit_code

    findings = examine(scheduler=scheduler, model=model)
    if as_json:
        out.print_json(
            data={"exit_code": exit_code(findings), "findings": [f.to_dict() for f in findings]}
        )
    else:
        _show(findings)
    raise typer.Exit(exit_code(findings))


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        remedy = f"\n{each.remedy}" if each.remedy else ""
        table.add_row(_MARKS[each.verdict], each.topic, escape(each.text + remedy))
    out.print(table)
    wrong = sum(each.verdict == "wrong" for each in findings)
    out.print(
        f"{wrong} of these must be mended first"
        if wrong
        else "The default path can run: skyvec mock-survey --rows 200 --out sky && skyvec embed sky"
    )
