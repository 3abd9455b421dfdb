"""The command line of answers: ``skyvec show`` and ``ask``, and how other commands hand theirs out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skyvec.commands.options import Catalog, ExtensionOption
from skyvec.commands.terminal import out

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer

_OUTPUT = "What to do with the answer"
GalleryOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=_OUTPUT,
        help="Write a page with thumbnails, sky map and table to this HTML file.",
    ),
]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=_OUTPUT,
        help="Write the table to this file: .parquet, .vot, .fits or .csv.",
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_OUTPUT,
        help="What was wanted, over columns of the catalog: \"SHAPE_R > 2 and TYPE == 'SER'\". "
        "Precision is then given beside its prevalence.",
    ),
]


def hand_out(
    answer: Answer,
    *,
    save: Path | None = None,
    gallery: Path | None = None,
    labels: str | None = None,
    shown: int = 20,
) -> None:
    """Print an answer, and write it where a command was asked to."""
    from skyvec.answers.terminal import renderable

    if labels:
        answer = answer.judged(labels)
    out.print(renderable(answer, shown=shown))
    if save:
        out.print(f"{len(answer):,} rows in {answer.save(save)}")
    elif len(answer) > shown:
        out.print("--save FILE.parquet keeps all of them")
    if gallery:
        out.print(f"page in {answer.gallery(gallery)}; it needs no network")


def show(
    table: Annotated[Path, typer.Argument(help="Answer that --save or Answer.save wrote.")],
    gallery: GalleryOption = None,
    save: SaveOption = None,
    atlas: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_OUTPUT,
            help="Write vectors and thumbnails to this Parquet file, for embedding-atlas.",
        ),
    ] = None,
    labels: LabelsOption = None,
    catalog: Annotated[
        Path | None, typer.Option(help="Where the catalog lies by now, if it was moved.")
    ] = None,
) -> None:
    """Show a saved answer again: in the terminal, as a page, or in another format."""
    from dataclasses import replace

    from skyvec.answers.answer import Answer

    answer = Answer.load(table)
    if catalog:
        answer = replace(answer, catalog=catalog)
    hand_out(answer, save=save, gallery=gallery, labels=labels)
    if atlas:
        out.print(
            f"{answer.to_atlas(atlas)}: embedding-atlas {atlas} --vector vector "
            "--x projection_x --y projection_y --image image"
        )


def ask(
    catalog: Catalog,
    words: Annotated[str, typer.Argument(help='What to look for: "edge-on galaxy".')],
    head: Annotated[
        Path,
        typer.Option(help="Aligned head: the folder of `python -m skyvec_training text --out`."),
    ],
    k: Annotated[int, typer.Option("-k", "--k", help="Objects.")] = 20,
    extension: ExtensionOption = None,
    where: Annotated[
        str | None, typer.Option(help='Expression over columns, e.g. "FLUX_R > 20".')
    ] = None,
    cone: Annotated[str | None, typer.Option(help="RA,DEC,RADIUS (degrees, arcsec).")] = None,
    labels: LabelsOption = None,
    save: SaveOption = None,
    gallery: GalleryOption = None,
) -> None:
    """Find objects by words, in the space of an aligned head."""
    from skyvec.aligned.asking import search_words

    answer = search_words(
        catalog, words, head=head, k=k, extension=extension, where=where, cone=cone
    )
    hand_out(answer, save=save, gallery=gallery, labels=labels, shown=k)
