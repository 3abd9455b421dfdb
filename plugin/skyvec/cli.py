"""The command line: ``skyvec embed``, ``plan``, ``status``, ``search``, ``probe`` and the others."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from skyvec.commands.bridge import bridge
from skyvec.commands.extensions import drop
from skyvec.commands.models import models_app
from skyvec.commands.neighbours import add_neighbours
from skyvec.commands.options import Catalog, ExtensionOption, ModelOption, WorkersOption
from skyvec.commands.release import release_app, repack
from skyvec.commands.stage import embed, plan, tokenize
from skyvec.commands.terminal import counting, facts, fail, out, print_rows, say
from skyvec.commands.verify import verify
from skyvec.version import __version__
from skyvec_schemas.errors import SkyvecError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Foundation-model embedding columns for astronomical catalogs.",
    epilog="First steps: skyvec mock-survey --rows 200 --out sky && skyvec embed sky "
    "&& skyvec probe fit sky --target Z",
)
probe_app = typer.Typer(no_args_is_help=True, help="Linear models on the vectors.")
app.add_typer(probe_app, name="probe")
app.add_typer(models_app, name="models")
app.add_typer(release_app, name="release")


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


for command in (plan, embed, tokenize, verify, drop, repack, bridge):
    app.command()(command)


add_neighbours(app)


@app.command()
def status(catalog: Catalog, extension: ExtensionOption = None) -> None:
    """What the last run of an extension left: rows, reasons, problems."""
    from skyvec.stage.status import read_status

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
    over: Annotated[
        Path | None,
        typer.Option("--bridge", help="Folder written by `skyvec bridge`, for newer vectors."),
    ] = None,
) -> None:
    """Predict for every row with a vector; refuses vectors of another model."""
    from skyvec.probe import Probe

    predicted = Probe.load(probe).apply(catalog, extension=extension, bridge=over)
    print_rows(predicted, save, shown=10)


@probe_app.command("report")
def probe_report(
    probe: Annotated[Path, typer.Argument(help="Folder written by `skyvec probe fit --out`.")],
) -> None:
    """What a probe predicts, how well, and on which vectors."""
    from skyvec.probe import Probe

    out.print(facts(_score_lines(Probe.load(probe))))


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
