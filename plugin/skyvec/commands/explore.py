"""The command line of the explorer: ``skyvec explore``."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from skyvec.commands.options import Catalog, ExtensionOption
from skyvec.commands.terminal import out, say

_MAP, _SERVED, _FILE = "The map", "Served", "As a file"


def explore(
    catalog: Catalog,
    *,
    extension: ExtensionOption = None,
    colour: Annotated[
        list[str] | None,
        typer.Option(
            "--colour",
            "--color",
            help="Column to colour by at first, or extension.column; "
            "with --export several to choose from.",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_FILE, help="Write this HTML file and serve nothing."),
    ] = None,
    objects: Annotated[
        int, typer.Option(rich_help_panel=_FILE, help="Objects in it at most, at random.")
    ] = 10_000,
    pictures: Annotated[
        int, typer.Option(rich_help_panel=_FILE, help="Of them with a thumbnail at most.")
    ] = 1_000,
    sample: Annotated[
        int,
        typer.Option(rich_help_panel=_MAP, help="Objects that UMAP places; others follow them."),
    ] = 20_000,
    seed: Annotated[int, typer.Option(rich_help_panel=_MAP, help="Of that sample.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_MAP,
            help="Folder of the map, made once; <extension>_explorer beside the data by default.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(rich_help_panel=_SERVED, help="0: any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(rich_help_panel=_SERVED, help="Address to serve at.")
    ] = "127.0.0.1",
    expose: Annotated[
        bool,
        typer.Option("--expose", rich_help_panel=_SERVED, help="Allow others to reach --host."),
    ] = False,
    browser: Annotated[
        bool, typer.Option(rich_help_panel=_SERVED, help="Open a browser on it.")
    ] = False,
) -> None:
    """Wander through the vectors: likeness and sky side by side, pictures, neighbours on click."""
    from skyvec.explorer import explore as look

    chosen = tuple(colour or ())
    if export is not None:
        page = look(
            catalog, extension=extension, export=export, colour=chosen, cache=cache, sample=sample,
            seed=seed, objects=objects, pictures=pictures, say=say,
        )  # fmt: skip
        out.print(f"Open [bold]{escape(str(page.resolve()))}[/] in a browser; it needs no network.")
        return
    with look(
        catalog, extension=extension, colour=chosen, cache=cache, sample=sample, seed=seed,
        host=host, port=port, expose=expose, say=say,
    ) as explorer:  # fmt: skip
        out.print(f"Open [bold]{escape(explorer.url)}[/] in a browser; Ctrl-C ends it.")
        if browser:
            webbrowser.open(explorer.url)
        with suppress(KeyboardInterrupt):
            explorer.wait()
