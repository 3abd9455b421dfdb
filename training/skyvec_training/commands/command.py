"""What every command shares: its options, its recipe, how it speaks and how it ends."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console

from skyvec_training.loop.trainer import Outcome
from skyvec_training.recipe.codecs import CodecRun
from skyvec_training.recipe.reading import digest_of_run
from skyvec_training.recipe.recipe import Recipe, load_recipe
from skyvec_training.recipe.transformer import TransformerRun

CONSOLE = Console()
RECIPE = Path(__file__).parents[1] / "recipes" / "skyvec_tiny.toml"


class Command(Protocol):
    """A module of this folder."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        ...

    def run(self, arguments: argparse.Namespace) -> Outcome | None:
        """Do it; an outcome that is not finished makes exit code 20."""
        ...


def common_arguments(parser: argparse.ArgumentParser, source: str, what: str) -> None:
    """Where from, where to, by which recipe."""
    parser.add_argument(source, type=Path, help=what)
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def clock_argument(parser: argparse.ArgumentParser) -> None:
    """A run that may stop by the clock."""
    parser.add_argument("--minutes", type=float, help="stop here; run again to go on")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that was named."""
    return load_recipe(arguments.recipe)


def run_digest(run: CodecRun | TransformerRun, arguments: argparse.Namespace) -> str:
    """Identity of a run: its settings and its seed."""
    return f"{digest_of_run(run)}-{arguments.seed}"
