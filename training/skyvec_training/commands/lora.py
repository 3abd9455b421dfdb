"""``lora TOKENS``: fit a trained model to a new survey through low-rank changes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from skyvec_core.weights import load_transformer
from skyvec_training.commands.align import head_arguments
from skyvec_training.commands.command import CONSOLE, clock_argument
from skyvec_training.data.corpus import open_corpus
from skyvec_training.heads import low_rank
from skyvec_training.heads.filling import require_codecs
from skyvec_training.heads.running import MODEL, RUN, load_model, run_task, write_scores
from skyvec_training.loop.trainer import Outcome
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.transformer import TransformerTask
from skyvec_training.publish.export import export_model
from skyvec_training.recipe.heads import LowRankRun
from skyvec_training.recipe.reading import digest_of_run, read

NAME = "lora"
HELP = "fit a trained model to a new survey through low-rank changes"
ROWS = "rows"
"""Folder of the first part of the run, in which only rows of new domains move."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    head_arguments(parser)
    parser.add_argument("--codecs", type=Path, help="folder with the codecs of new domains")
    clock_argument(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Write a plain model folder ``model`` and ``scores.json`` into ``--out``."""
    run, out, seed = read(LowRankRun, arguments.recipe), arguments.out, arguments.seed
    model = load_model(arguments.model)
    base = load_transformer(arguments.model)
    grown = low_rank.survey_model(base, run, seed=seed)
    vocabulary = grown.model.vocabulary
    known = [key for key in run.domains if key not in grown.new]
    require_codecs(model, arguments.tokens, known)
    corpus = open_corpus(arguments.tokens, vocabulary, run.data)
    CONSOLE.print(f"{len(corpus.train)} objects; new domains: {', '.join(grown.new) or 'none'}")

    def trained(part: LowRankRun, folder: str) -> tuple[TransformerTask, Outcome]:
        masked = low_rank.masked_run(grown.model, part)
        batches = MaskedBatches(corpus, vocabulary, masked, seed=seed)
        task = TransformerTask(grown.model, batches, masked)
        return task, run_task(
            task, part.optimizer, out / folder, title=folder, console=CONSOLE,
            run_digest=f"{digest_of_run(run)}-{seed}-{model.digest}", minutes=arguments.minutes,
        )  # fmt: skip

    if grown.new and run.row_steps:
        low_rank.free_rows(grown)
        _, outcome = trained(low_rank.rows_run(run), ROWS)
        if not outcome.finished:
            return outcome
    low_rank.free_low_rank(grown, run, seed=seed)
    task, outcome = trained(run, RUN)
    if outcome.finished:
        grown.model.eval()
        with torch.inference_mode():
            write_scores(task.evaluate(), out)
        whole = low_rank.whole_model(base, grown, seed=seed)
        folders = [arguments.model, *([arguments.codecs] if arguments.codecs else [])]
        exported = export_model(whole, None, folders, out / MODEL, name=f"{model.name}-lora")
        CONSOLE.print(f"{out / MODEL}: digest {exported.digest}")
    return outcome
