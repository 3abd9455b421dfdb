"""``pool TOKENS --labels CATALOG``: fit an attentive pool to columns of a catalog."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyvec_training.commands.align import head_arguments
from skyvec_training.commands.command import CONSOLE
from skyvec_training.heads.cache import CacheWriter, ContextCache
from skyvec_training.heads.filling import fill
from skyvec_training.heads.pooling import TOWER, fit_pool, read_labels
from skyvec_training.heads.running import CACHE, load_model, write_scores
from skyvec_training.recipe.heads import PoolRun
from skyvec_training.recipe.reading import read

NAME = "pool"
HELP = "fit an attentive pool to columns of a catalog"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    head_arguments(parser)
    parser.add_argument(
        "--labels", type=Path, required=True, help="HATS catalog with the targets of the recipe"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write ``pool.safetensors``, which ``Model.embed(pooling=...)`` takes, and ``scores.json``."""
    run, out = read(PoolRun, arguments.recipe), arguments.out
    model = load_model(arguments.model)
    towers = {TOWER: run.domains}
    with CacheWriter(out / CACHE, towers, model_digest=model.digest) as writer:
        fill(writer, model, arguments.tokens, towers)
    cache = ContextCache(out / CACHE)
    labels = read_labels(arguments.labels, run.targets, cache.keys)
    fitted = fit_pool(cache, labels, run, num_heads=model.config.num_heads, seed=arguments.seed)
    fitted.pool.save(out / "pool.safetensors")
    write_scores({"r2": fitted.r2, "held_out": fitted.held_out}, out)
    for target, r2 in fitted.r2.items():
        CONSOLE.print(f"{target}: R2 {r2:.3f} on {fitted.held_out} held-out objects")
