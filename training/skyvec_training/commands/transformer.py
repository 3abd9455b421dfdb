"""``transformer TOKENS``: train the transformer on a token extension."""

from __future__ import annotations

import argparse

from skyvec_training.commands.command import (
    CONSOLE,
    clock_argument,
    common_arguments,
    recipe_of,
    run_digest,
)
from skyvec_training.data import tokens
from skyvec_training.loop import curves
from skyvec_training.loop.progress import RunProgress
from skyvec_training.loop.trainer import Outcome, train
from skyvec_training.masked import transformer

NAME = "transformer"
HELP = "train the transformer on a token extension"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    common_arguments(parser, "tokens", "HATS catalog of tokens, as `skyvec tokenize` writes it")
    clock_argument(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Train; the checkpoints and the log lie in ``--out``."""
    run, out = recipe_of(arguments).transformer, arguments.out
    model = transformer.build_transformer(run, seed=arguments.seed)
    store = tokens.read_tokens(arguments.tokens, model.vocabulary)
    task = transformer.TransformerTask(model, store, run, seed=arguments.seed)
    CONSOLE.print(f"{len(store)} objects, {run.held_out} of them held out")
    with RunProgress("transformer", steps=run.optimizer.steps, console=CONSOLE) as progress:
        outcome = train(
            task, run.optimizer, out, run_digest=run_digest(run, arguments),
            minutes=arguments.minutes, observe=progress.show,
        )  # fmt: skip
    curves.draw_curve(out, out / "loss.png")
    return outcome
