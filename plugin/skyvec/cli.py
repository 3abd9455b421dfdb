"""The command line: ``skyvec embed``, ``plan``, ``status``, ``search``, ``probe`` and the others."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from skyvec.commands.answers import ask, show
from skyvec.commands.bridge import bridge
from skyvec.commands.examples import epilog, first_steps, with_examples
from skyvec.commands.explore import explore
from skyvec.commands.extensions import drop
from skyvec.commands.index import index
from skyvec.commands.models import models_app
from skyvec.commands.neighbours import add_neighbours
from skyvec.commands.options import Catalog, ExtensionOption, ModelOption, WorkersOption
from skyvec.commands.probe import probe_app
from skyvec.commands.release import release_app, repack
from skyvec.commands.report import doctor, report
from skyvec.commands.search import search
from skyvec.commands.stage import embed, plan, tokenize
from skyvec.commands.terminal import counting, facts, fail, out, say
from skyvec.commands.verify import verify
from skyvec.version import __version__
from skyvec_schemas.errors import SkyvecError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Foundation-model embedding columns for astronomical catalogs.",
    epilog=first_steps(),
)
app.add_typer(with_examples(probe_app, "probe"), name="probe")
app.add_typer(with_examples(models_app, "models"), name="models")
app.add_typer(with_examples(release_app, "release"), name="release")


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


@app.command(epilog=epilog("demo"))
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


@app.command("mock-survey", epilog=epilog("mock-survey"))
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
    without_images: Annotated[
        bool, typer.Option(help="Leave the cutouts out: measured numbers, labels and truth only.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; by default one for 500 objects, up to all cores."),
    ] = None,
) -> None:
    """Write a synthetic survey with truth: images, spectra, fluxes, shapes, redshifts."""
    from skyvec.mock.inventory import inventory
    from skyvec.mock.releases import chosen_surveys
    from skyvec.mock.survey import plan_mock_survey

    survey = plan_mock_survey(
        rows=rows, seed=seed, surveys=chosen_surveys(surveys), stamp=size, stars=stars,
        quasars=quasars, release=release, images=not without_images,
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
    out.print(f"Next: skyvec embed {to}{' --without image' if without_images else ''}")


for command in (
    plan, embed, tokenize, verify, drop, repack, report, explore, doctor, bridge, search, index,
    ask, show,
):  # fmt: skip
    app.command(epilog=epilog(command.__name__))(command)


add_neighbours(app)


@app.command(epilog=epilog("status"))
def status(catalog: Catalog, extension: ExtensionOption = None) -> None:
    """What the last run of an extension left: rows, reasons, problems."""
    from skyvec.stage.status import read_status

    found = read_status(catalog, extension)
    out.print(facts(found.lines))
    raise typer.Exit(found.exit_code)
