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

from skyvec.surveys import chosen_survey
from skyvec.terminal import counting, facts, fail, out, print_rows, say
from skyvec.version import __version__
from skyvec_schemas.errors import ConfigurationError, SkyvecError

if TYPE_CHECKING:
    from skyvec.quantum import QuantumRecord
    from skyvec.run_record import RunRecord

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

Catalog = Annotated[Path, typer.Argument(help="Folder of a HATS collection or catalog.")]
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
    seed: Annotated[int, typer.Option(help="Equal seeds make equal galaxies.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all cores by default.")
    ] = None,
) -> None:
    """Write a synthetic survey with truth: griz cutouts, fluxes, shapes, redshift."""
    from skyvec.mock.survey import write_mock_survey

    with counting("galaxies", rows) as advance:
        write_mock_survey(to, rows=rows, seed=seed, workers=workers, progress=advance)
    out.print(f"{rows:,} mock galaxies in {to}; next: skyvec embed {to}")


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
) -> None:
    """Check catalog, model and output, and say what `embed` would do; computes nothing."""
    from skyvec.stage import plan as make_plan

    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    ready = make_plan(catalog, name=name, model=model, survey=chosen, out=to)
    columns = ready.job.columns
    table = facts(
        {
            "catalog": f"{ready.release.name}, {ready.rows:,} rows in "
            f"{len(ready.release.pixels)} pixels",
            "inputs": ", ".join(ready.job.provenance.inputs),
            "model": f"{ready.job.model.name} ({ready.job.model.digest[:12]})",
            "extension": f"{ready.name} in {ready.job.output}",
            "vectors": f"{columns.dim} x {columns.dtype}, "
            f"{ready.rows * columns.dim * (2 if columns.dtype == 'float16' else 4) / 1e6:,.1f} MB"
            if columns
            else "tokens",
            "to do": f"{len(ready.todo)} pixels ({len(ready.done)} done before)",
        }
    )
    out.print(table)


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
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    dtype: DtypeOption = "float16",
    precision: PrecisionOption = "float32",
    device: DeviceOption = "cpu",
    batch_rows: BatchOption = 128,
) -> None:
    """Embed a catalog and publish the vectors as a HATS extension of it.

    Run again after a failure: finished pixels are skipped.
    """
    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    _choice("--dtype", dtype, ("float16", "float32"))
    _choice("--precision", precision, ("float32", "bfloat16"))
    _run(
        catalog, product="embedding", name=name, model=model, survey=chosen, out=to,
        workers=workers, scheduler=scheduler, dtype=dtype, precision=precision, device=device,
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
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    batch_rows: BatchOption = 128,
) -> None:
    """Store the tokens of a catalog as a HATS extension: what training reads."""
    chosen = chosen_survey(survey, id_column=id_column, image_column=image_column, without=without)
    _run(
        catalog, product="tokens", name=name, model=model, survey=chosen, out=to,
        workers=workers, scheduler=scheduler, batch_rows=batch_rows,
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


def _run(catalog: Path, *, workers: int | None, scheduler: str | None, **choices: Any) -> None:  # noqa: ANN401
    from skyvec.releases.hats_catalog import HatsRelease
    from skyvec.stage import run

    rows = int(HatsRelease.open(catalog).catalog.catalog_info.total_rows or 0)
    with _dask(scheduler) as client, counting("objects", rows) as advance:

        def progress(record: QuantumRecord) -> None:
            advance(record.rows)

        record = run(catalog, client=client, workers=workers, progress=progress, **choices)
    _report(record)


def _report(record: RunRecord) -> None:
    embedded = record.rows - record.failed_rows
    lines = {
        "extension": record.name,
        "rows": f"{record.rows:,}: {embedded - record.partial_rows:,} ok, "
        f"{record.partial_rows:,} partial, {record.failed_rows:,} failed",
        **({"reasons": _reasons(record.flags)} if record.flags else {}),
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
    load = record.name if properties.parent == record.source.resolve() else properties
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
