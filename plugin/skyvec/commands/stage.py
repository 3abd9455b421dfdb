"""The command line of the stage: ``skyvec plan``, ``embed`` and ``tokenize``, and what they report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape

from skyvec.commands.options import Catalog, ModelOption, WorkersOption
from skyvec.commands.terminal import facts, fail, out
from skyvec.surveys import chosen_survey
from skyvec_schemas.errors import ConfigurationError, ContractError

if TYPE_CHECKING:
    from skyvec.stage.monitor import Monitor
    from skyvec.stage.plan import Plan
    from skyvec.stage.run_record import RunRecord
    from skyvec.stage.selection import Selection
    from skyvec_core.embedder import Precision
    from skyvec_schemas.embedding_columns import VectorType

_INPUT, _PART, _PLACE = "What goes in", "Debug small, run big", "Where it runs"
_FAILURE, _OPERATORS = "When data or workers fail", "For operators"

NameOption = Annotated[
    str | None, typer.Option("--name", help="Of the extension; <model>_v1 by default.")
]
TokensNameOption = Annotated[
    str | None, typer.Option("--name", help="Of the extension; <model>_tokens by default.")
]
OutOption = Annotated[
    str | None,
    typer.Option("--out", help="Folder or URI for the extension; the collection by default."),
]
SurveyOption = Annotated[
    str, typer.Option(rich_help_panel=_INPUT, help="Which columns feed which modality.")
]
IdOption = Annotated[
    str | None, typer.Option(rich_help_panel=_INPUT, help="Column with the unique id of an object.")
]
ImageOption = Annotated[
    str | None, typer.Option(rich_help_panel=_INPUT, help="Column with the cutouts.")
]
WithoutOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=_INPUT,
        help="Columns to leave out, separated by commas, e.g. FLUX_W4,SHAPE_R.",
    ),
]
SourceOption = Annotated[
    list[str],
    typer.Option(
        "--source",
        rich_help_panel=_INPUT,
        help="NAME=PATH of more pixels or spectra of the same objects, e.g. desi=/data/desi; "
        "may be repeated.",
    ),
]
SourcesOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=_INPUT, help="TOML file of sources, for more choices (docs/releases.md)."
    ),
]
RadiusOption = Annotated[
    float, typer.Option(rich_help_panel=_INPUT, help="Arcseconds within which positions match.")
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PLACE, help="Address of a running Dask scheduler, e.g. tcp://host:8786."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="Stored vectors: float16 or float32.")]
PrecisionOption = Annotated[str, typer.Option(help="Arithmetic: float32 or bfloat16.")]
DeviceOption = Annotated[
    str, typer.Option(rich_help_panel=_PLACE, help="Torch device of every worker.")
]
ResourcesOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=_PLACE,
        help="What each task needs of a Dask worker, e.g. GPU=1 or GPU=1,MEMORY=8e9.",
    ),
]
ConeOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PART, help="RA,DEC,RADIUS (degrees, arcsec): only HATS pixels it meets."
    ),
]
MocOption = Annotated[
    Path | None, typer.Option(rich_help_panel=_PART, help="Only HATS pixels that this MOC meets.")
]
PixelsOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_PART, help="Only these HATS pixels, as Norder/Npix: 5/1234,5/100-120."
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=_PART, help="Only the first HATS pixels that hold at least so many rows."
    ),
]
TokensOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_INPUT,
        help="Token extension to embed from (name, properties file or folder): no pixel is read.",
    ),
]
ReuseOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=_INPUT,
        help="Earlier extension (name, properties file or folder), e.g. of the release before: "
        "what did not change is taken from it.",
    ),
]
MaxBadOption = Annotated[
    float,
    typer.Option(
        rich_help_panel=_FAILURE,
        help="Share of rows with bad data above which nothing is published.",
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        rich_help_panel=_FAILURE,
        help="End with 10, not 0, where objects are quarantined.",
    ),
]
RetriesOption = Annotated[
    int,
    typer.Option(
        min=0,
        rich_help_panel=_FAILURE,
        help="Further attempts at a pixel whose worker, disk or memory fails.",
    ),
]
LogJsonOption = Annotated[
    Path | None,
    typer.Option(
        "--log-json",
        rich_help_panel=_OPERATORS,
        help="File to append every event to, as JSON lines.",
    ),
]
MetricsOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=_OPERATORS,
        help="File for Prometheus' textfile collector, e.g. /var/lib/node/skyvec.prom.",
    ),
]
DashboardOption = Annotated[
    bool,
    typer.Option(
        "--dashboard", rich_help_panel=_PLACE, help="Serve Dask's dashboard on 127.0.0.1."
    ),
]
BatchOption = Annotated[int, typer.Option(rich_help_panel=_PLACE, help="Rows in memory at a time.")]
UncheckedOption = Annotated[
    bool,
    typer.Option(
        "--unchecked",
        rich_help_panel=_FAILURE,
        help="Go on although the linter finds errors in the data.",
    ),
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
    tokens: TokensOption = None,
    reuse: ReuseOption = None,
    cone: ConeOption = None,
    moc: MocOption = None,
    pixels: PixelsOption = None,
    limit: LimitOption = None,
    sample_rows: Annotated[
        int, typer.Option(min=1, help="Objects of each release to look at.")
    ] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check catalog, sources, model and output on a sample; say what `embed` would do and cost.

    Ends with 30 if the data hold an error that `embed` would refuse.
    """
    from skyvec.preview.preview import preview
    from skyvec.preview.report import preview_tables
    from skyvec.stage.plan import plan as make_plan

    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    joined = _sources(source, sources, radius)
    ready = make_plan(
        catalog, name=name, model=model, survey=chosen, out=to, sources=joined, tokens=tokens,
        reuse=reuse, selection=chosen_pixels(cone, moc, pixels, limit),
    )  # fmt: skip
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
        f"{len(ready.pixels)} pixels"
        + (f" ({ready.selection.describe()})" if not ready.selection.everything else ""),
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
    tokens: TokensOption = None,
    reuse: ReuseOption = None,
    cone: ConeOption = None,
    moc: MocOption = None,
    pixels: PixelsOption = None,
    limit: LimitOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resources: ResourcesOption = "",
    dashboard: DashboardOption = False,
    dtype: DtypeOption = "float16",
    precision: PrecisionOption = "float32",
    device: DeviceOption = "cpu",
    batch_rows: BatchOption = 128,
    retries: RetriesOption = 4,
    max_bad: MaxBadOption = 0.1,
    strict: StrictOption = False,
    unchecked: UncheckedOption = False,
    log_json: LogJsonOption = None,
    metrics: MetricsOption = None,
) -> None:
    """Embed a catalog and publish the vectors as a HATS extension of it.

    Run again after a failure: finished pixels are skipped.
    """
    from skyvec.stage.plan import plan as make_plan

    _choice("--dtype", dtype, ("float16", "float32"))
    _choice("--precision", precision, ("float32", "bfloat16"))
    ready = make_plan(
        catalog, product="embedding", name=name, model=model,
        survey=chosen_survey(
            survey, id_column=id_column, image_column=image_column, without=without
        ),
        out=to, sources=_sources(source, sources, radius), tokens=tokens, reuse=reuse,
        selection=chosen_pixels(cone, moc, pixels, limit), dtype=cast("VectorType", dtype), precision=cast("Precision", precision), device=device,
        batch_rows=batch_rows,
    )  # fmt: skip
    _run(
        ready, unchecked=unchecked, workers=workers, scheduler=scheduler,
        resources=parsed_resources(resources), dashboard=dashboard, retries=retries,
        max_bad=max_bad, strict=strict, log_json=log_json, metrics=metrics,
    )  # fmt: skip


def tokenize(
    catalog: Catalog,
    *,
    model: ModelOption = "skyvec-tiny",
    name: TokensNameOption = None,
    survey: SurveyOption = "legacysurvey",
    to: OutOption = None,
    id_column: IdOption = None,
    image_column: ImageOption = None,
    without: WithoutOption = "",
    source: SourceOption = [],  # noqa: B006 - typer's way of an empty list
    sources: SourcesOption = None,
    radius: RadiusOption = 1.0,
    reuse: ReuseOption = None,
    cone: ConeOption = None,
    moc: MocOption = None,
    pixels: PixelsOption = None,
    limit: LimitOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resources: ResourcesOption = "",
    dashboard: DashboardOption = False,
    device: DeviceOption = "cpu",
    batch_rows: BatchOption = 128,
    retries: RetriesOption = 4,
    max_bad: MaxBadOption = 0.1,
    strict: StrictOption = False,
    unchecked: UncheckedOption = False,
    log_json: LogJsonOption = None,
    metrics: MetricsOption = None,
) -> None:
    """Store the tokens of a catalog as a HATS extension: training and `embed --tokens` read it."""
    from skyvec.stage.plan import plan as make_plan

    ready = make_plan(
        catalog, product="tokens", name=name, model=model,
        survey=chosen_survey(
            survey, id_column=id_column, image_column=image_column, without=without
        ),
        out=to, sources=_sources(source, sources, radius), reuse=reuse,
        selection=chosen_pixels(cone, moc, pixels, limit), device=device,
        batch_rows=batch_rows,
    )  # fmt: skip
    _run(
        ready, unchecked=unchecked, workers=workers, scheduler=scheduler,
        resources=parsed_resources(resources), dashboard=dashboard, retries=retries,
        max_bad=max_bad, strict=strict, log_json=log_json, metrics=metrics,
    )  # fmt: skip


def _sources(pairs: list[str], file: Path | None, radius: float) -> Any:  # noqa: ANN401
    from skyvec.sources import declared_sources

    return declared_sources(pairs, file, radius=radius)


def chosen_pixels(
    cone: str | None, moc: Path | None, pixels: str | None, limit: int | None
) -> Selection:
    """Selection of the options ``--cone``, ``--moc``, ``--pixels`` and ``--limit``."""
    from skyvec.stage.selection import Selection

    return Selection.parse(cone=cone, moc=moc, pixels=pixels, limit=limit)


def parsed_resources(text: str) -> dict[str, float]:
    """Resources of ``--resources``.

    Raises
    ------
    ConfigurationError
        If it is not NAME=NUMBER.
    """
    found = {}
    for pair in filter(None, text.split(",")):
        name, _, amount = pair.partition("=")
        try:
            found[name.strip()] = float(amount)
        except ValueError as problem:
            raise ConfigurationError(
                "not NAME=NUMBER", where=f"--resources {text}", remedy="Write e.g. GPU=1"
            ) from problem
    return found


def _run(
    prepared: Plan,
    *,
    unchecked: bool,
    workers: int | None,
    scheduler: str | None,
    dashboard: bool,
    retries: int,
    log_json: Path | None,
    metrics: Path | None,
    **choices: Any,  # noqa: ANN401
) -> None:
    from skyvec.commands.monitors import console_monitor
    from skyvec.stage.driver import Patience
    from skyvec.stage.monitor import monitors
    from skyvec.stage.run import run_plan

    if prepared.todo and not unchecked:
        _refuse_wrong_data(prepared)
    listeners = telemetry(log_json, metrics)
    with (
        _dask(scheduler, workers, tasks=len(prepared.todo), dashboard=dashboard) as client,
        console_monitor(out) as shown,
    ):
        record = run_plan(
            prepared, client=client, workers=workers, monitor=monitors([shown, *listeners]),
            patience=Patience(attempts=retries + 1), **choices,
        )  # fmt: skip
    _report(record)


def telemetry(log_json: Path | None, metrics: Path | None) -> list[Monitor]:
    """Monitors that write for operators."""
    from skyvec.stage.telemetry import JsonLines, Prometheus

    found: list[Monitor] = []
    if log_json:
        found.append(JsonLines(log_json))
    if metrics:
        found.append(Prometheus(metrics))
    return found


def _refuse_wrong_data(prepared: Plan) -> None:
    from skyvec.preview.preview import lint_plan

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
    from skyvec.extensions.publish import published_rows
    from skyvec.releases.hats.remote import resolved
    from skyvec.stage.output import Output
    from skyvec.stage.run_record import join_outcomes

    embedded = record.rows - record.failed_rows
    lines = {
        "extension": record.name,
        "rows": f"{record.rows:,}: {embedded - record.partial_rows:,} ok, "
        f"{record.partial_rows:,} partial, {record.failed_rows:,} failed",
        **({"reasons": _reasons(record.flags)} if record.flags else {}),
        **{f"source {name}": join_outcomes(counts) for name, counts in record.sources.items()},
        **({"reused": f"{record.reused_rows:,} rows from earlier"} if record.reused_rows else {}),
        **(
            {"quarantined": f"{record.quarantined:,} objects, in {record.name}_quarantine"}
            if record.quarantined
            else {}
        ),
        "HEALPix pixels": f"{len(record.quanta)} ({record.skipped} done before)"
        + (f", of {record.selection}" if record.selection else ""),
        "seconds": f"{record.seconds:.1f}",
        "fingerprint": record.provenance.fingerprint()[:12],
    }
    out.print(facts(lines))
    for problem in record.problems:
        out.print(f"[red]{escape(problem)}[/]")
    if (properties := record.properties) is None:
        undone = record.pixels - sum(quantum.finished for quantum in record.quanta)
        what = f"{undone} of {record.pixels} pixels are not done" if undone else "too much is bad"
        before = published_rows(Output(record.output), record.name)
        kept = (
            "nothing was published"
            if before is None
            else f"the {before:,} rows published before stay"
        )
        fail(
            f"{what}; {kept}. Mend what is named above and run the same command again",
            record.exit_code,
        )
    load = record.name if properties.parent == resolved(record.source) else properties
    out.print(f'Read it: lsdb.open_catalog("{record.source}").load_extension("{load}")')
    if record.provenance.product == "embedding":
        out.print(f"Ask it:  skyvec search {properties.parent} --extension {record.name} --like ID")
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def _reasons(flags: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in flags.items())


def _choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(
            f"{value!r} is not known", where=option, remedy=f"Choose from: {', '.join(known)}"
        )


@contextmanager
def _dask(
    scheduler: str | None, workers: int | None, *, tasks: int, dashboard: bool
) -> Iterator[Any]:
    from skyvec.stage.cluster import connected, dask_client

    if scheduler is not None:
        with connected(scheduler) as client:
            yield client
    elif dashboard and tasks:
        with dask_client(workers=workers, tasks=tasks, dashboard=True) as client:
            out.print(f"Dashboard: {client.dashboard_link}")
            yield client
    else:
        yield None
