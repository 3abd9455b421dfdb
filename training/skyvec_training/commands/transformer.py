"""``transformer TOKENS``: train the transformer on a token extension, on one process or many."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.commands.command import (
    CONSOLE,
    clock_argument,
    common_arguments,
    recipe_of,
    run_digest,
)
from skyvec_training.data.corpus import open_corpus
from skyvec_training.loop import curves
from skyvec_training.loop.progress import RunProgress
from skyvec_training.loop.trainer import Origin, Outcome, train
from skyvec_training.masked import transformer
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.parallel.mesh import World, join
from skyvec_training.parallel.signals import StopRequestedError, StopRequests
from skyvec_training.recipe.parallel import ParallelRun
from skyvec_training.recipe.transformer import TransformerRun

NAME = "transformer"
HELP = "train the transformer on a token extension"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    common_arguments(parser, "tokens", "HATS catalog of tokens, as `skyvec tokenize` writes it")
    clock_argument(parser)
    add_origin(parser)


def add_origin(parser: argparse.ArgumentParser) -> None:
    """Declare where the weights of a new run may come from."""
    parser.add_argument("--from", dest="origin", type=Path, metavar="RUN",
                        help="start from the weights of another run: its plateau, or its last")  # fmt: skip
    parser.add_argument("--with-optimizer", action="store_true",
                        help="with --from: take over the averages of its gradients, too")  # fmt: skip


def run(arguments: argparse.Namespace) -> Outcome:
    """Train; the checkpoints and the log lie in ``--out``.

    Raises
    ------
    StopRequestedError
        If a signal or a file STOP ended it; its exit code 75 asks for another start.
    """
    run, out = recipe_of(arguments).transformer, arguments.out
    with join(run.parallel) as world, StopRequests(out) as requests:
        outcome = _train(arguments, run, world, requests)
        if outcome.finished and world.is_first:
            curves.draw_curve(out, out / "loss.png")
    if outcome.reason == "asked":
        raise StopRequestedError(
            f"stopped after step {outcome.step} because it was asked to",
            where=str(out),
            remedy="The same command goes on",
        )
    return outcome


def _train(
    arguments: argparse.Namespace, run: TransformerRun, world: World, requests: StopRequests
) -> Outcome:
    vocabulary = Vocabulary(transformer.config_of(run).domains)
    corpus = open_corpus(arguments.tokens, vocabulary, run.data)
    batches = MaskedBatches(corpus, vocabulary, run, seed=arguments.seed)
    task = transformer.build_task(batches, run, seed=arguments.seed, world=world)
    console = CONSOLE if world.is_first else Console(quiet=True)
    console.print(
        f"{len(corpus.train)} objects to train on, {batches.held_out} held out; "
        f"{world.size} processes"
    )
    # How a run is spread changes nothing that is learnt, so its digest leaves that out.
    digest = run_digest(replace(run, parallel=ParallelRun()), arguments)
    origin = Origin(folder=arguments.origin, with_optimizer=arguments.with_optimizer)
    with RunProgress("transformer", steps=run.optimizer.steps, console=console) as progress:
        return train(
            task, run.optimizer, arguments.out, run_digest=digest, data_digest=batches.digest,
            minutes=arguments.minutes, observe=progress.show, tell=console.print,
            world=world, parallel=run.parallel, requests=requests,
            origin=origin if arguments.origin else None,
        )  # fmt: skip
