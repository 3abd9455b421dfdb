"""``evaluate CATALOG``: score a model on a release, beside baselines, blocked by sky."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import AlignmentHead
from skyvec_schemas.errors import WeightsError
from skyvec_training.commands.command import CONSOLE
from skyvec_training.recipe.evaluation import Evaluation
from skyvec_training.recipe.reading import read
from skyvec_training.scorecard.evaluate import evaluate
from skyvec_training.scorecard.page import write_page
from skyvec_training.scorecard.sample import tokens_folder
from skyvec_training.scorecard.wording import table_of

NAME = "evaluate"
HELP = "score a model on a release, beside baselines, blocked by sky"
TASKS = Path(__file__).parents[1] / "recipes" / "scorecard.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("catalog", type=Path, help="HATS collection with labels")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--tokens", required=True,
                        help="token extension of the catalog by this model: its name or folder")  # fmt: skip
    parser.add_argument("--labels", type=Path, action="append", default=[],
                        help="Parquet file with ids and more labels; may be repeated")  # fmt: skip
    parser.add_argument("--alignment", type=Path, action="append", default=[],
                        help="alignment head of this model, for search; may be repeated")  # fmt: skip
    parser.add_argument("--tasks", type=Path, default=TASKS, help="what is asked (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scorecard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def run(arguments: argparse.Namespace) -> None:
    """Write ``scorecard.json`` and ``scorecard.html`` into ``--out``; run again to go on."""
    asked = read(Evaluation, arguments.tasks)
    tokens = tokens_folder(arguments.catalog, arguments.tokens)
    with threadpool_limits(arguments.threads):
        card = evaluate(
            _model(arguments.model), arguments.catalog, tokens, asked, arguments.out,
            labels=arguments.labels, seed=arguments.seed,
            alignments=[_head(path) for path in arguments.alignment],
            say=lambda words: CONSOLE.print(words, style="dim", markup=False, highlight=False),
        )  # fmt: skip
    page = write_page(card, arguments.out)
    CONSOLE.print(table_of(card))
    CONSOLE.print(f"{page}", soft_wrap=True)


def _model(folder: Path) -> Model:
    try:
        return Model.load(folder)
    except (OSError, ValueError) as problem:
        raise WeightsError(
            str(problem), where=str(folder), remedy="Give a folder that `export` wrote"
        ) from problem


def _head(path: Path) -> AlignmentHead:
    try:
        return AlignmentHead.load(path)
    except (OSError, ValueError) as problem:
        raise WeightsError(
            str(problem), where=str(path), remedy="Give a file that `AlignmentHead.save` wrote"
        ) from problem
