"""``align TOKENS``: bring two modalities of one model into one space, image and spectrum say."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyvec_training.commands.command import CONSOLE, clock_argument
from skyvec_training.heads.running import align
from skyvec_training.loop.trainer import Outcome
from skyvec_training.recipe.heads import AlignmentRun
from skyvec_training.recipe.reading import read

NAME = "align"
HELP = "contrastive alignment of two modalities of a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    head_arguments(parser)
    clock_argument(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Write ``head.safetensors`` and ``scores.json`` into ``--out``."""
    return align(
        read(AlignmentRun, arguments.recipe), tokens=arguments.tokens,
        model_folder=arguments.model, out=arguments.out, seed=arguments.seed, console=CONSOLE,
        minutes=arguments.minutes,
    )  # fmt: skip


def head_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that all commands of heads share."""
    parser.add_argument("tokens", type=Path, help="HATS catalog, as `skyvec tokenize` writes it")
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--recipe", type=Path, required=True, help="see recipes/heads")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
