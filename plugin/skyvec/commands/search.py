"""The command line of search: ``skyvec search``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from skyvec.commands.answers import GalleryOption, LabelsOption, SaveOption, hand_out
from skyvec.commands.options import Catalog, ExtensionOption
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client

    from skyvec.answers.answer import Answer
    from skyvec.search.query import Query

_WHAT, _AMONG, _WHERE = "What to search for", "Among which objects", "Where it runs"


def search(
    catalog: Catalog,
    like: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_WHAT, help="Id of an example; several are averaged."),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_WHAT, help="Id of an object to stay away from."),
    ] = None,
    at: Annotated[
        tuple[float, float] | None,
        typer.Option(
            rich_help_panel=_WHAT, metavar="RA DEC", help="Position of an example, degrees."
        ),
    ] = None,
    radius: Annotated[
        float, typer.Option(rich_help_panel=_WHAT, help="Arcseconds from --at.")
    ] = 2.0,
    image: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_WHAT,
            help="Cutout or spectrum (FITS, npz, HDF5), embedded by the extension's model.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(rich_help_panel=_WHAT, help="Folder of that model; with --image."),
    ] = None,
    survey: Annotated[
        str | None,
        typer.Option(rich_help_panel=_WHAT, help="Whose bands and units --image has."),
    ] = None,
    metric: Annotated[str, typer.Option(help="cosine, l2 or inner_product.")] = "cosine",
    center: Annotated[  # noqa: FBT002  # a flag
        bool, typer.Option("--center", help="Take the mean of all vectors off; by cosine.")
    ] = False,
    k: Annotated[int, typer.Option("-k", "--k", help="Neighbours.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_AMONG, help="Expression over columns: 'FLUX_R > 10 and Z < 0.5'."
        ),
    ] = None,
    cone: Annotated[
        str | None,
        typer.Option(rich_help_panel=_AMONG, help="RA,DEC,RADIUS (degrees, arcsec)."),
    ] = None,
    moc: Annotated[
        Path | None, typer.Option(rich_help_panel=_AMONG, help="File of a coverage map.")
    ] = None,
    approximate: Annotated[  # noqa: FBT002  # a flag
        bool,
        typer.Option("--approximate", help="By the index of `skyvec index`; says what it misses."),
    ] = False,
    extension: ExtensionOption = None,
    save: SaveOption = None,
    gallery: GalleryOption = None,
    labels: LabelsOption = None,
    workers: Annotated[
        int,
        typer.Option(
            rich_help_panel=_WHERE, help="Dask worker processes; 0: threads of this process."
        ),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(rich_help_panel=_WHERE, help="Address of a running Dask scheduler."),
    ] = None,
) -> None:
    """Find the objects most like these."""
    from skyvec.search import encode
    from skyvec.search import search as find

    vector = None
    if image is not None:
        vector = encode(catalog, image, model=model, survey=survey, extension=extension)
    if approximate:
        asked = {"unlike": unlike, "at": at, "where": where, "cone": cone, "moc": moc,
                 "center": center, "scheduler": scheduler, "workers": workers}  # fmt: skip
        found = _approximately(catalog, like, vector, metric, extension, k=k, asked=asked)
        hand_out(found, save=save, gallery=gallery, labels=labels, shown=k)
        return
    with _cluster(scheduler, workers) as client:
        found = find(
            catalog, like=like or None, unlike=unlike or (), at=at, vector=vector, k=k,
            extension=extension, metric=cast("Any", metric), center=center, radius=radius, where=where,
            cone=cone, moc=moc, client=client,
        )  # fmt: skip
    hand_out(found, save=save, gallery=gallery, labels=labels, shown=k)


def _approximately(
    catalog: str,
    like: list[str] | None,
    vector: Query | None,
    metric: str,
    extension: str | None,
    *,
    k: int,
    asked: Mapping[str, object],
) -> Answer:
    """A search by the index; an option that the index knows nothing of is an error."""
    from skyvec.search.approximate import ApproximateIndex

    index = ApproximateIndex.open(catalog, extension=extension)
    foreign = [f"--{name}" for name, value in asked.items() if value]
    if like and len(like) > 1:
        foreign.append("several --like")
    if metric != index.metric:
        foreign.append(f"--metric {metric} (the index is of {index.metric})")
    if foreign:
        raise ConfigurationError(
            f"does not go with {', '.join(foreign)}",
            where="--approximate",
            remedy="Leave --approximate out: the exact search takes all of them",
        )
    return index.search(like=like[0] if like else None, vector=vector, k=k)


@contextmanager
def _cluster(scheduler: str | None, workers: int) -> Iterator[Client | None]:
    from skyvec.stage.cluster import connected, dask_client

    if scheduler is not None:
        with connected(scheduler) as client:
            yield client
    elif workers:
        with dask_client(workers=workers) as client:
            yield client
    else:
        yield None
