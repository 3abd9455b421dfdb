"""The command line: ``skyvec embed``, ``plan``, ``status``, ``search``, ``probe`` and the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from skyvec.release_commands import release_app, repack
from skyvec.surveys import chosen_survey
from skyvec.terminal import counting, facts, fail, out, print_rows, say
from skyvec.version import __version__
from skyvec_schemas.errors import ConfigurationError, ContractError, SkyvecError

if TYPE_CHECKING:
    from skyvec.quantum import QuantumRecord
    from skyvec.run_record import RunRecord
    from skyvec.stage import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Foundation-model embedding columns for astronomical catalogs.",
    epilog="First steps: skyvec mock-survey --rows 200 --out sky && skyvec embed sky "
    "&& skyvec probe fit sky --target Z",
)
probe_app = typer.Typer(no_args_is_help=True, help="Linear models on the vectors.")
models_app = typer.Typer(no_args_is_help=True, help="Models: what is there, what it is.")
app.add_typer(probe_app, name="probe")
app.add_typer(models_app, name="models")
app.add_typer(release_app, name="release")
app.command()(repack)

Catalog = Annotated[str, typer.Argument(help="Folder or URI of a HATS collection or catalog.")]
ModelOption = Annotated[
    str, typer.Option(help="skyvec-tiny, a model folder, or hf://owner/name@revision.")
]
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
WorkersOption = Annotated[
    int | None, typer.Option(help="Dask worker processes; all cores by default, 0: none.")
]
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
ExtensionOption = Annotated[
    str | None, typer.Option(help="Which extension, if the collection has several.")
]


def main() -> None:
    """Run the command line; every expected failure is one line and an exit code."""
    quiet = logging.StreamHandler()
    quiet.setLevel(logging.ERROR)  # hats and distributed talk while they look around
    logging.basicConfig(handlers=[quiet])
    try:
        app()
    except SkyvecError as problem:
        fail(str(problem), problem.exit_code)
    except SystemExit as ended:
        if ended.code == 130:  # typer's answer to Ctrl-C
            fail("interrupted; run the same command again to continue", 130)
        raise
    except Exception as problem:
        if os.environ.get("SKYVEC_DEBUG"):
            raise
        what = str(problem).strip().splitlines()
        fail(
            f"unexpected {type(problem).__name__}: {what[0] if what else ''} "
            "(set SKYVEC_DEBUG=1 for the traceback, and report it)",
            50,
        )


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        out.print(f"skyvec {__version__}")
        raise typer.Exit


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--out", help="Folder for everything that it makes.")] = Path(
        "skyvec-demo"
    ),
    rows: Annotated[int, typer.Option(help="Mock galaxies.")] = 1500,
    seed: Annotated[int, typer.Option(help="Of the mock galaxies.")] = 7,
    model: ModelOption = "skyvec-tiny",
    workers: WorkersOption = None,
) -> None:
    """Real and mock galaxies: HATS in, extension out, a probe, neighbours and one page."""
    from skyvec.demo import run_demo

    page = run_demo(to, rows=rows, seed=seed, model=model, workers=workers, say=say)
    out.print(f"\nOpen [bold]{page.resolve()}[/] in a browser; it needs no network.")


@app.command("mock-survey")
def mock_survey(
    to: Annotated[Path, typer.Option("--out", help="Folder of the new HATS collection.")],
    rows: Annotated[int, typer.Option(help="Galaxies.")] = 1000,
    seed: Annotated[int, typer.Option(help="Equal seeds make equal objects.")] = 1,
    surveys: Annotated[
        str,
        typer.Option(
            help="Releases to write beside the collection, as files of the Multimodal Universe: "
            "legacysurvey,hsc,sdss,desi,gaia or all."
        ),
    ] = "",
    size: Annotated[
        int, typer.Option(help="Pixels along a side of the cutouts of these releases.")
    ] = 160,
    stars: Annotated[
        int | None, typer.Option(help="Stars; with --surveys a quarter of the rows, else none.")
    ] = None,
    quasars: Annotated[
        int | None, typer.Option(help="Quasars; with --surveys 5% of the rows, else none.")
    ] = None,
    release: Annotated[
        int, typer.Option(help="2: the same sky a release later, with changes and withdrawals.")
    ] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all cores by default.")
    ] = None,
) -> None:
    """Write a synthetic survey with truth: images, spectra, fluxes, shapes, redshifts."""
    from skyvec.mock.inventory import inventory
    from skyvec.mock.releases import chosen_surveys
    from skyvec.mock.survey import plan_mock_survey

    survey = plan_mock_survey(
        rows=rows, seed=seed, surveys=chosen_surveys(surveys), stamp=size, stars=stars,
        quasars=quasars, release=release,
    )  # fmt: skip
    done = 0
    with counting("observations", survey.observations) as advance:

        def progress(count: int) -> None:
            nonlocal done
            advance(count - done)
            done = count

        survey.write(to, workers=workers, progress=progress)
    lines = {one.what: one.line(to) for one in inventory(to)}
    absent = {name: "no object of this sky" for name in survey.surveys if name not in lines}
    out.print(f"{to}:")
    out.print(facts(lines | absent))
    out.print(f"Next: skyvec embed {to}")


@app.command()
def plan(
    catalog: Catalog,
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


@app.command()
def embed(
    catalog: Catalog,
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


@app.command()
def tokenize(
    catalog: Catalog,
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


@app.command()
def status(catalog: Catalog, extension: ExtensionOption = None) -> None:
    """What the last run of an extension left: rows, reasons, problems."""
    from skyvec.status import read_status

    found = read_status(catalog, extension)
    out.print(facts(found.lines))
    raise typer.Exit(found.exit_code)


@app.command()
def search(
    catalog: Catalog,
    like: Annotated[str, typer.Option(help="Id of the object to start from.")],
    k: Annotated[int, typer.Option("-k", help="Neighbours.")] = 10,
    extension: ExtensionOption = None,
    save: Annotated[Path | None, typer.Option(help="Write the table to this Parquet file.")] = None,
) -> None:
    """Find the objects most like this one."""
    from skyvec.search import search as find

    print_rows(find(catalog, like=like, k=k, extension=extension), save, shown=k)


@probe_app.command("fit")
def probe_fit(
    catalog: Catalog,
    target: Annotated[str, typer.Option(help="Column to predict, e.g. Z.")],
    extension: ExtensionOption = None,
    save: Annotated[Path | None, typer.Option("--out", help="Folder for the probe.")] = None,
) -> None:
    """Fit a ridge regression from vectors to a column, scored on sky blocks left out."""
    from skyvec.probe import Probe

    probe = Probe(target).fit(catalog, extension=extension)
    if probe.score:
        out.print(facts(_score_lines(probe)))
    if save:
        out.print(f"probe in {probe.save(save)}")


@probe_app.command("apply")
def probe_apply(
    catalog: Catalog,
    probe: Annotated[Path, typer.Option(help="Folder written by `skyvec probe fit --out`.")],
    extension: ExtensionOption = None,
    save: Annotated[Path | None, typer.Option(help="Write the table to this Parquet file.")] = None,
) -> None:
    """Predict for every row with a vector; refuses vectors of another model."""
    from skyvec.probe import Probe

    print_rows(Probe.load(probe).apply(catalog, extension=extension), save, shown=10)


@probe_app.command("report")
def probe_report(
    probe: Annotated[Path, typer.Argument(help="Folder written by `skyvec probe fit --out`.")],
) -> None:
    """What a probe predicts, how well, and on which vectors."""
    from skyvec.probe import Probe

    out.print(facts(_score_lines(Probe.load(probe))))


@models_app.command("list")
def models_list() -> None:
    """Models inside the package."""
    from skyvec.models import model_card, packaged_models

    out.print(facts({n: str(model_card(f).get("data", "")) for n, f in packaged_models().items()}))


@models_app.command("show")
def models_show(model: Annotated[str, typer.Argument(help="Name or folder.")]) -> None:
    """Size, modalities, digest and origin of a model."""
    from skyvec.models import load_model, model_card, model_folder

    loaded = load_model(model)
    card = model_card(model_folder(model))
    parameters = loaded.num_parameters
    lines = {
        "digest": loaded.digest,
        "vector": f"{loaded.dim} values",
        "parameters": f"{parameters:,} in the transformer",
        "modalities": ", ".join(loaded.codecs),
    }
    simple = {k: str(v) for k, v in card.items() if isinstance(v, str | int | float)}
    out.print(facts({**lines, **{k: v for k, v in simple.items() if k not in lines}}))


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


def _score_lines(probe: Any) -> dict[str, str]:  # noqa: ANN401
    lines = {
        "target": probe.target,
        "vectors": f"{probe.extension} (fingerprint {probe.fingerprint[:12]})",
    }
    if (score := probe.score) is None:
        return lines
    return lines | {
        "R2": f"{score.r2:.3f} (95%: {score.r2_low:.3f} to {score.r2_high:.3f})",
        "RMSE, NMAD": f"{score.rmse:.4f}, {score.nmad:.4f}",
        "measured on": f"{score.rows:,} rows, {score.blocks} sky blocks left out in turn",
    }


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
