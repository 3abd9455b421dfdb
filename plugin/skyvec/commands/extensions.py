"""The command line of extensions that are there: ``skyvec drop``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from skyvec.commands.options import Catalog
from skyvec.commands.terminal import facts, out
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from skyvec.extensions.drop import Dropped


def drop(
    catalog: Catalog,
    *,
    extension: Annotated[
        str,
        typer.Option(help="Name of the extension, or path of its .properties file elsewhere."),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Only unregister it; its files stay.")
    ] = False,
) -> None:
    """Take an extension away: unregister it and delete its files, published or not."""
    from skyvec.extensions.drop import drop as take_away
    from skyvec.extensions.drop import droppable

    found = droppable(catalog, extension, keep_files=keep_files)
    if not yes:
        _ask(found)
    removed = take_away(catalog, extension, keep_files=keep_files)
    out.print(f"Removed extension {removed.name} from {removed.home}:")
    out.print(facts(_lines(removed)))


def _ask(found: Dropped) -> None:
    if not _somebody_is_there():
        raise ConfigurationError(
            "nobody is there to be asked whether to delete it",
            where=str(found.data),
            remedy="Give --yes",
        )
    out.print(facts(_lines(found)))
    if not typer.confirm(f"Remove extension {found.name}?"):
        out.print("Nothing was removed")
        raise typer.Exit(1)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _lines(found: Dropped) -> dict[str, str]:
    lines = {
        "unregistered from": ", ".join(map(str, found.collections)) or "no collection lists it",
        "deleted": f"{found.files:,} files, {decimal(found.bytes)}",
    }
    if found.properties:
        lines["properties"] = found.properties.name
    if found.folders:
        lines["folders"] = ", ".join(f"{folder.name}/" for folder in found.folders)
    if found.kept:
        lines["kept"] = ", ".join(f"{folder.name}/" for folder in found.kept)
    return lines
