"""The command line of probes: ``skyvec probe fit | apply | report``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from skyvec.commands.answers import GalleryOption, SaveOption, hand_out
from skyvec.commands.options import Catalog, ExtensionOption
from skyvec.commands.terminal import facts, out

probe_app = typer.Typer(no_args_is_help=True, help="Small models on the vectors or tokens.")

_Probe = Annotated[Path, typer.Option(help="Folder written by `skyvec probe fit --out`.")]
_Workers = Annotated[
    int | None,
    typer.Option(rich_help_panel="Where it runs", help="Threads; all cores by default."),
]


@probe_app.command("fit")
def probe_fit(
    catalog: Catalog,
    target: Annotated[
        list[str], typer.Option(help="Column to predict, e.g. Z; repeat it for several.")
    ],
    kind: Annotated[
        str,
        typer.Option(
            help="ridge (numbers), logistic (classes), knn (either) or attentive (either; needs an "
            "extension of `skyvec tokenize`)."
        ),
    ] = "ridge",
    extension: ExtensionOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Whose encoder reads the tokens, of --kind attentive; skyvec-tiny."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Parquet file with the targets and ids or positions (ra, dec)."),
    ] = None,
    on: Annotated[str | None, typer.Option(help="Name of the id in --labels.")] = None,
    radius: Annotated[
        float, typer.Option(help="Arcseconds within which positions of --labels match.")
    ] = 1.0,
    where: Annotated[
        str | None, typer.Option(help="Learn from these rows only, e.g. 'Z > 0 and ZWARN == 0'.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the predicted columns, e.g. photoz.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Parts of the sky that are left out in turn.")] = 5,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    allow_leaks: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--allow-leaks", help="Fit targets that the model has read, too."),
    ] = False,
    save: Annotated[Path | None, typer.Option("--out", help="Folder for the probe.")] = None,
    workers: _Workers = None,
    scheduler: Annotated[
        str | None,
        typer.Option(rich_help_panel="Where it runs", help="Address of a Dask scheduler."),
    ] = None,
) -> None:
    """Fit a small model from vectors, or tokens, to columns; scored on parts of the sky left out."""
    from skyvec.probes.probe import Probe
    from skyvec.stage.cluster import connected

    probe = Probe(
        target[0] if len(target) == 1 else tuple(target), kind,  # type: ignore[arg-type]
        name=name, folds=folds, confidence=confidence, allow_leaks=allow_leaks,
    )  # fmt: skip
    with connected(scheduler) if scheduler else nullcontext() as client:
        probe.fit(
            catalog, extension=extension, labels=labels, on=on, radius_arcsec=radius, where=where,
            model=model, workers=workers, client=client,
        )  # fmt: skip
    _print_report(probe)
    if save:
        out.print(f"probe in {probe.save(save)}")


@probe_app.command("apply")
def probe_apply(
    catalog: Catalog,
    probe: _Probe,
    extension: ExtensionOption = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only predictions like these, e.g. 'photoz > 1 and photoz_width < 0.1'."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the predicted columns.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Where the model of an attentive probe lies, if not where it was fitted."
        ),
    ] = None,
    save: SaveOption = None,
    gallery: GalleryOption = None,
    publish: Annotated[
        str | None, typer.Option(help="Write all predictions as an extension of this name.")
    ] = None,
    over: Annotated[
        Path | None,
        typer.Option("--bridge", help="Folder written by `skyvec bridge`, for newer vectors."),
    ] = None,
    workers: _Workers = None,
) -> None:
    """Predict for every row with a vector, or tokens; refuses those of another model."""
    from skyvec.probes.probe import Probe
    from skyvec_schemas.errors import ConfigurationError

    loaded = Probe.load(probe)
    if publish and (where or save or gallery):
        raise ConfigurationError(
            "takes neither --where nor --save nor --gallery", where=f"--publish {publish}",
            remedy="An extension holds every row; select from it with LSDB",
        )  # fmt: skip
    if publish:
        place = loaded.publish(catalog, publish, extension=extension, bridge=over, model=model,
                               columns=name, workers=workers)  # fmt: skip
        out.print(f"predictions in {place.with_suffix('')}, described by {place.name}")
        out.print(f'Read them: lsdb.open_catalog("{catalog}").load_extension("{publish}")')
        return
    found = loaded.apply(
        catalog, extension=extension, bridge=over, model=model, name=name, where=where,
        workers=workers,
    )  # fmt: skip
    hand_out(found, save=save, gallery=gallery, shown=10)


@probe_app.command("report")
def probe_report(
    probe: Annotated[Path, typer.Argument(help="Folder written by `skyvec probe fit --out`.")],
    json: Annotated[bool, typer.Option("--json", help="All of it, for machines.")] = False,  # noqa: FBT002
) -> None:
    """What a probe predicts, how well, with which intervals, and on which vectors."""
    from skyvec.probes.probe import Probe
    from skyvec.probes.storage import facts_of

    loaded = Probe.load(probe)
    if json:
        from json import dumps

        typer.echo(dumps(facts_of(loaded), indent=2, sort_keys=True))
        return
    _print_report(loaded)


def _print_report(probe: Any) -> None:  # noqa: ANN401
    from skyvec.probes.report import interval_rows, report_lines

    out.print(facts(report_lines(probe)))
    for target, intervals in probe.intervals.items():
        out.print(
            f"\nIntervals of {target} at {intervals.confidence:.0%} by prediction; left out, they "
            f"held {intervals.coverage:.1%}"
        )
        table, rows = Table(box=None, pad_edge=False), interval_rows(intervals)
        for column in rows[0]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row.values())
        out.print(table)
