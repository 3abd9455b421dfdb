"""The command line of the stage: ``skyvec plan``, ``embed`` and ``tokenize``, and what they report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from skyvec.options import Catalog, ModelOption, WorkersOption
from skyvec.surveys import chosen_survey
from skyvec.terminal import counting, facts, fail, out
from skyvec_schemas.errors import ConfigurationError, ContractError

if TYPE_CHECKING:
    from skyvec.quantum import QuantumRecord
    from skyvec.run_record import RunRecord
    from skyvec.stage import Plan

NameOption = Annotated[
    str | None, typer.Option("--name", help="Of the extension; <model>_v1 by default.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for the extension; the collection by default.")
]
SurveyOption = Annotated[str, typer.Option(help="Which columns feed which modality.")]
IdOption = Annotated[str | None, typer.Option(help="Column with the unique id of an object.")]
ImageOption = Annotated[str | None, typer.Option(help="Column with the cutouts.")]
WithoutOption = Annotated[
    str, typer.Option(help="Columns to leave out, separated by commas, e.g. FLUX_W4,SHAPE_R.")
]
SourceOption = Annotated[
    list[str],
    typer.Option(
        "--source",
        help="NAME=PATH of more pixels or spectra of the same objects, e.g. desi=/data/desi; "
        "may be repeated.",
    ),
]
SourcesOption = Annotated[
    Path | None, typer.Option(help="TOML file of sources, for more choices (docs/releases.md).")
]
RadiusOption = Annotated[float, typer.Option(help="Arcseconds within which positions match.")]
SchedulerOption = Annotated[
    str | None, typer.Option(help="Address of a running Dask scheduler, e.g. tcp://host:8786.")
]
DtypeOption = Annotated[str, typer.Option(help="Stored vectors: float16 or float32.")]
PrecisionOption = Annotated[str, typer.Option(help="Arithmetic: float32 or bfloat16.")]
DeviceOption = Annotated[str, typer.Option(help="Torch device of every worker.")]
BatchOption = Annotated[int, typer.Option(help="Rows in memory at a time.")]
UncheckedOption = Annotated[
    bool, typer.Option("--unchecked", help="Go on although the linter finds errors in the data.")
]


def plan(
    catalog: Catalog,
    *,
    model: ModelOption = "skyvec-tiny",
    name: NameOption = None,
    survey: SurveyOption = "legacysurvey",
    to: OutOption = None,
    id_column: IdOption = None,
    image_column: ImageOption = None,
    without: WithoutOption = "",
    source: SourceOption = [],  # noqa: B006 - typer's way of an empty list
    sources: SourcesOption = None,
    radius: RadiusOption = 1.0,
    sample_rows: Annotated[
        int, typer.Option(min=1, help="Objects of each release to look at.")
    ] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check catalog, sources, model and output on a sample; say what `embed` would do and cost.

    Ends with 30 if the data hold an error that `embed` would refuse.
    """
    from skyvec.plan_report import preview_tables
    from skyvec.preview import preview
    from skyvec.stage import plan as make_plan

    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    joined = _sources(source, sources, radius)
    ready = make_plan(catalog, name=name, model=model, survey=chosen, out=to, sources=joined)
    seen = preview(ready, sample_rows=sample_rows)
    if as_json:
        out.print_json(data=seen.to_dict())
    else:
        out.print(facts(_plan_lines(ready)))
        for table in preview_tables(seen):
            out.print()
            out.print(table)
    if seen.errors:
        raise typer.Exit(ContractError.exit_code)


def _plan_lines(ready: Plan) -> dict[str, str]:
    return {
        "catalog": f"{ready.release.name}, {ready.rows:,} rows in "
        f"{len(ready.release.pixels)} pixels",
        "model": f"{ready.job.model.name} ({ready.job.model.digest[:12]})",
        "extension": f"{ready.name} in {ready.job.output}",
        "to do": f"{len(ready.todo)} pixels ({len(ready.done)} done before)",
    }


def embed(
    catalog: Catalog,
    *,
    model: ModelOption = "skyvec-tiny",
    name: NameOption = None,
    survey: SurveyOption = "legacysurvey",
    to: OutOption = None,
    id_column: IdOption = None,
    image_column: ImageOption = None,
    without: WithoutOption = "",
    source: SourceOption = [],  # noqa: B006 - typer's way of an empty list
    sources: SourcesOption = None,
    radius: RadiusOption = 1.0,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    dtype: DtypeOption = "float16",
    precision: PrecisionOption = "float32",
    device: DeviceOption = "cpu",
    batch_rows: BatchOption = 128,
    unchecked: UncheckedOption = False,
) -> None:
    """Embed a catalog and publish the vectors as a HATS extension of it.

    Run again after a failure: finished pixels are skipped.
    """
    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    _choice("--dtype", dtype, ("float16", "float32"))
    _choice("--precision", precision, ("float32", "bfloat16"))
    _run(
        catalog, unchecked=unchecked, product="embedding", name=name, model=model, survey=chosen, out=to,
        sources=_sources(source, sources, radius), workers=workers,
        scheduler=scheduler, dtype=dtype, precision=precision, device=device,
        batch_rows=batch_rows,
    )  # fmt: skip


def tokenize(
    catalog: Catalog,
    *,
    model: ModelOption = "skyvec-tiny",
    name: Annotated[
        str | None, typer.Option("--name", help="Of the extension; <model>_tokens by default.")
    ] = None,
    survey: SurveyOption = "legacysurvey",
    to: OutOption = None,
    id_column: IdOption = None,
    image_column: ImageOption = None,
    without: WithoutOption = "",
    source: SourceOption = [],  # noqa: B006 - typer's way of an empty list
    sources: SourcesOption = None,
    radius: RadiusOption = 1.0,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    batch_rows: BatchOption = 128,
    unchecked: UncheckedOption = False,
) -> None:
    """Store the tokens of a catalog as a HATS extension: what training reads."""
    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    _run(
        catalog, unchecked=unchecked, product="tokens", name=name, model=model, survey=chosen, out=to,
        sources=_sources(source, sources, radius), workers=workers,
        scheduler=scheduler, batch_rows=batch_rows,
    )  # fmt: skip


def _sources(pairs: list[str], file: Path | None, radius: float) -> Any:  # noqa: ANN401
    from skyvec.sources import declared_sources

    return declared_sources(pairs, file, radius=radius)


def _run(
    catalog: str,
    *,
    workers: int | None,
    scheduler: str | None,
    unchecked: bool,
    **choices: Any,  # noqa: ANN401
) -> None:
    from skyvec.stage import plan as make_plan
    from skyvec.stage import run_plan

    prepared = make_plan(catalog, **choices)
    if prepared.todo and not unchecked:
        _refuse_wrong_data(prepared)
    with _dask(scheduler) as client, counting("objects", prepared.rows) as advance:

        def progress(record: QuantumRecord) -> None:
            advance(record.rows)

        record = run_plan(prepared, client=client, workers=workers, progress=progress)
    _report(record)


def _refuse_wrong_data(prepared: Plan) -> None:
    from skyvec.preview import lint_plan

    # A file that cannot be read is the failure of its own pixels alone.
    errors = [
        finding
        for finding in lint_plan(prepared)
        if finding.severity == "error" and finding.topic != "files"
    ]
    if errors:
        first = errors[0]
        others = f" ({len(errors) - 1} more: see `skyvec plan`)" if len(errors) > 1 else ""
        raise ContractError(
            f"{first.what}{others}",
            where=f"{first.source}, {first.where}",
            remedy=f"{first.remedy.rstrip('.')}, or go on with --unchecked",
        )


def _report(record: RunRecord) -> None:
    from skyvec.releases.hats.remote import resolved
    from skyvec.run_record import join_outcomes

    embedded = record.rows - record.failed_rows
    lines = {
        "extension": record.name,
        "rows": f"{record.rows:,}: {embedded - record.partial_rows:,} ok, "
        f"{record.partial_rows:,} partial, {record.failed_rows:,} failed",
        **({"reasons": _reasons(record.flags)} if record.flags else {}),
        **{f"source {name}": join_outcomes(counts) for name, counts in record.sources.items()},
        "HEALPix pixels": f"{len(record.quanta)} ({record.skipped} done before)",
        "seconds": f"{record.seconds:.1f}",
        "fingerprint": record.provenance.fingerprint()[:12],
    }
    out.print(facts(lines))
    for problem in record.problems:
        out.print(f"[red]{escape(problem)}[/]")
    if (properties := record.properties) is None:
        fail(
            f"{len(record.problems)} of {len(record.quanta)} pixels are not done; nothing was "
            "published. Mend what is named above and run the same command again",
            record.exit_code,
        )
    load = record.name if properties.parent == resolved(record.source) else properties
    out.print(f'Read it: lsdb.open_catalog("{record.source}").load_extension("{load}")')
    out.print(f"Ask it:  skyvec search {properties.parent} --extension {record.name} --like ID")


def _reasons(flags: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in flags.items())


def _choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(
            f"{value!r} is not known", where=option, remedy=f"Choose from: {', '.join(known)}"
        )


@contextmanager
def _dask(scheduler: str | None) -> Iterator[Any]:
    if scheduler is None:
        yield None
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout=10)
    except OSError as problem:
        raise ConfigurationError(
            "no Dask scheduler answers",
            where=scheduler,
            remedy="Start one, or leave out --scheduler",
        ) from problem
    with client:
        yield client
