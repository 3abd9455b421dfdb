"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Catalog = Annotated[str, typer.Argument(help="Folder or URI of a HATS collection or catalog.")]
ModelOption = Annotated[
    str, typer.Option(help="skyvec-tiny, a model folder, or hf://owner/name@revision.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel="Where it runs",
        help="Dask worker processes; 0: none. By default one a core, at most one a pixel.",
    ),
]
ExtensionOption = Annotated[
    str | None, typer.Option(help="Which extension, if the collection has several.")
]
