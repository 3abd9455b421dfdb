"""``train RECIPE``: train the transformer by a recipe; what `skyvec train` is.

``skyvec train --rehearse --ranks 512 --size xxl`` takes one step of a large run on paper instead
(`python -m skyvec_training rehearse --help`). The other parts of a model have commands of their own:
`python -m skyvec_training --help`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from skyvec_training.commands import transformer
from skyvec_training.commands.command import clock_argument
from skyvec_training.loop.trainer import Outcome

NAME = "train"
HELP = "train the transformer by a recipe; resumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", type=Path, help="TOML; see recipes/skyvec_tiny.toml")
    parser.add_argument("--tokens", type=Path, required=True,
                        help="token extension, or shards by `compile-tokens`")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    clock_argument(parser)
    transformer.add_origin(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Train; the same command goes on where it was stopped."""
    return transformer.run(arguments)
