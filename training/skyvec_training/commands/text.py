"""``text TOKENS --captions CATALOG``: bring the objects of a catalog and words into one space."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.commands.align import head_arguments
from skyvec_training.commands.command import CONSOLE, clock_argument
from skyvec_training.heads.running import align
from skyvec_training.loop.trainer import Outcome
from skyvec_training.recipe.heads import AlignmentRun
from skyvec_training.recipe.reading import read

NAME = "text"
HELP = "contrastive alignment of a trained model with words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    head_arguments(parser)
    parser.add_argument("--captions", type=Path, required=True,
                        help="HATS catalog with the columns of the recipe's captions")  # fmt: skip
    clock_argument(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Write ``head.safetensors`` and ``scores.json`` into ``--out``."""
    recipe = read(AlignmentRun, arguments.recipe)
    if not recipe.captions:
        raise ConfigurationError(
            "it says nothing of captions",
            where=str(arguments.recipe),
            remedy="Name captions.column, or captions.templates with their phrases",
        )
    return align(
        recipe, tokens=arguments.tokens, model_folder=arguments.model, out=arguments.out,
        seed=arguments.seed, console=CONSOLE, captions=arguments.captions,
        minutes=arguments.minutes,
    )  # fmt: skip
