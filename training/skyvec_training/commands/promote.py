"""``promote CANDIDATE CURRENT``: promote a model only if its scorecard does not fall."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyvec_training.commands.command import CONSOLE
from skyvec_training.scorecard.promotion import promote

NAME = "promote"
HELP = "promote a model only if its scorecard does not fall"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("candidate", type=Path, help="folder that `evaluate` wrote")
    parser.add_argument("current", type=Path, help="that of the model in use")
    parser.add_argument("--out", type=Path, required=True, help="folder for promoted.json")


def run(arguments: argparse.Namespace) -> None:
    """Say how every declared metric moved; exit code 30 if one fell beyond its tolerance."""
    for change in promote(arguments.candidate, arguments.current, arguments.out):
        CONSOLE.print(change.words(), markup=False, highlight=False, soft_wrap=True)
    CONSOLE.print("promoted", style="green")
