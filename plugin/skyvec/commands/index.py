"""The command line of approximate search: ``skyvec index``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from skyvec.commands.options import Catalog, ExtensionOption
from skyvec.commands.terminal import facts, out


def index(
    catalog: Catalog,
    extension: ExtensionOption = None,
    metric: Annotated[str, typer.Option(help="cosine, l2 or inner_product.")] = "cosine",
    expansion: Annotated[
        int, typer.Option(min=1, help="Candidates of a search: more find more, and take longer.")
    ] = 128,
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, help="Neighbours, of the measured recall.")
    ] = 10,
    queries: Annotated[
        int, typer.Option(min=1, help="Objects held out to measure it, a tenth of all at most.")
    ] = 500,
) -> None:
    """Build an approximate index beside an extension, and measure what it misses."""
    from skyvec.search.approximate import ApproximateIndex

    built = ApproximateIndex.build(
        catalog, extension=extension, metric=cast("Any", metric), expansion=expansion, k=k,
        queries=queries,
    )  # fmt: skip
    files = [path for path in built.folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    out.print(facts({
        "index": f"{_short(built.folder)}, {len(files) - 1} graphs, {size / 1e6:,.1f} MB",
        "measured": str(built.recall),
        "next": f"skyvec search {catalog} --extension {built.vectors.name} --like ID --approximate",
    }))  # fmt: skip


def _short(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
