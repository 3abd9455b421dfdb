"""What the codec commands share: recipe, sources, the run itself, and weights as they are published."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import Survey
from skyvec_training.codecs.mixture import Learnt, Store, survey_of
from skyvec_training.commands.command import CONSOLE, clock_argument, common_arguments
from skyvec_training.data import arrays
from skyvec_training.loop import curves
from skyvec_training.loop.progress import RunProgress
from skyvec_training.loop.trainer import Outcome, Task, train
from skyvec_training.recipe.codecs import (
    CodecRun,
    CodecSource,
    MapCodecRun,
    ScalarRun,
    SpectrumCodecRun,
)
from skyvec_training.recipe.reading import digest_of_run, read
from skyvec_training.recipe.recipe import load_recipe

Run = TypeVar("Run", CodecRun, ScalarRun, SpectrumCodecRun, MapCodecRun)
StoreT = TypeVar("StoreT", bound=Store)

RECIPES = Path(__file__).parents[1] / "recipes"
SCORES_FILE = "reconstruction.json"


def codec_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Options of every codec command."""
    common_arguments(parser, "catalog", what)
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME=PATH",
        help="where a source of the recipe lies, if not in CATALOG",
    )  # fmt: skip


def trained_codec_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Options of a codec that is trained step by step."""
    codec_arguments(parser, what)
    clock_argument(parser)


def codec_run(path: Path, kind: type[Run], section: str) -> Run:
    """The run of a codec, from a recipe of its own or from its section of a model's recipe."""
    try:
        in_model = section in tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        in_model = False  # whoever reads it next says what is wrong
    if not in_model:
        return read(kind, path)
    run: Run = getattr(load_recipe(path), section)
    return run


def places_of(arguments: argparse.Namespace, sources: tuple[CodecSource, ...]) -> dict[str, Path]:
    """Where each source lies.

    Raises
    ------
    ConfigurationError
        If an option is no NAME=PATH, or names no source of the recipe.
    """
    known = [source.name for source in sources]
    places = dict.fromkeys(known, arguments.catalog)
    for pair in arguments.source:
        name, separator, path = pair.partition("=")
        if not separator or name not in known:
            raise ConfigurationError(
                "it is no NAME=PATH with a source of the recipe",
                where=f"--source {pair}",
                remedy=f"Sources are {', '.join(known)}",
            )
        places[name] = Path(path)
    return places


def stores_of(
    arguments: argparse.Namespace,
    sources: tuple[CodecSource, ...],
    unpack: Callable[[Path, Survey, CodecSource, Path], StoreT],
    open_store: Callable[[Path], StoreT],
) -> list[Learnt[StoreT]]:
    """Every source with its data, unpacked into ``--out`` unless that was done before."""
    learnt = []
    for source in sources:
        place = places_of(arguments, sources)[source.name]
        folder = arguments.out / "data" / source.name
        if not arrays.is_written(folder):
            CONSOLE.print(f"unpacking {source.name} of {place}", soft_wrap=True)
            unpack(place, survey_of(source), source, folder)
        learnt.append(Learnt(source, open_store(folder)))
        CONSOLE.print(f"{source.name}: {len(learnt[-1].store)} objects")
    return learnt


def run_codec(
    task: Task, run: CodecRun | SpectrumCodecRun | MapCodecRun, arguments: argparse.Namespace,
    *, title: str,
) -> Outcome:  # fmt: skip
    """Train until the recipe or the clock ends it, and draw the loss."""
    out, optimizer = arguments.out, run.optimizer
    with RunProgress(title, steps=optimizer.steps, console=CONSOLE) as progress:
        outcome = train(
            task, optimizer, out, run_digest=f"{digest_of_run(run)}-{arguments.seed}",
            minutes=arguments.minutes, observe=progress.show,
        )  # fmt: skip
    curves.draw_curve(out, out / "loss.png")
    return outcome


def round_to_half(module: nn.Module) -> None:
    """Round parameters to half precision: scores are those of the weights that are published."""
    for parameter in module.parameters():
        parameter.data = parameter.data.half().float()


def write_scores(scores: Mapping[str, object], out: Path) -> None:
    """Write the scores beside the codec, and show them."""
    (out / SCORES_FILE).write_text(json.dumps(scores, indent=2))
    CONSOLE.print_json(data=dict(scores))
