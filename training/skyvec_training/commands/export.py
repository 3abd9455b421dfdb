"""``export CODECS``: gather codecs and transformer into one model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyvec_training.commands.command import CONSOLE, common_arguments, recipe_of
from skyvec_training.masked import transformer
from skyvec_training.publish import export, model_card

NAME = "export"
HELP = "gather codecs and transformer into one model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    common_arguments(parser, "codecs", "run of `image-codec`")
    parser.add_argument("--scalars", type=Path, required=True, help="run of `scalars`")
    parser.add_argument("--transformer", type=Path, help="its run; none: untrained")
    parser.add_argument("--without-constants", action="store_true",
                        help="leave out what only the official package reads: a smaller folder")  # fmt: skip
    parser.add_argument("--data", default="not stated", help="training data, in words")


def run(arguments: argparse.Namespace) -> None:
    """Write the folder and its card; without ``--transformer`` only codecs matter."""
    recipe = recipe_of(arguments)
    model = transformer.build_transformer(recipe.transformer, seed=arguments.seed)
    learnt = export.newest_of(arguments.transformer) if arguments.transformer else None
    exported = export.export_model(
        model, learnt, [arguments.codecs, arguments.scalars], arguments.out,
        name=recipe.name, constants=not arguments.without_constants,
    )  # fmt: skip
    if arguments.transformer:
        card = model_card.model_card(
            exported, recipe, seed=arguments.seed, data=arguments.data,
            codec_run=arguments.codecs, transformer_run=arguments.transformer,
            commands=_commands(arguments, learnt.facts.origin if learnt else ""),
        )  # fmt: skip
        model_card.write_card(arguments.out, card)
    size = sum(f.stat().st_size for f in arguments.out.rglob("*") if f.is_file())
    CONSOLE.print(f"{arguments.out}: {size / 1e6:.1f} MB, digest {exported.digest}")


def _commands(arguments: argparse.Namespace, origin: str) -> list[str]:
    start = f" --from START  # {origin}" if origin else ""
    train_with = f"--recipe {arguments.recipe.name} --seed {arguments.seed}"
    small = " --without-constants" if arguments.without_constants else ""
    parts = "--scalars scalars --transformer transformer"
    return [
        f"python -m skyvec_training image-codec CATALOG --out codec {train_with}",
        f"python -m skyvec_training scalars CATALOG --out scalars {train_with}",
        f"python -m skyvec_training export codec --scalars scalars --out codecs-only {train_with}",
        "skyvec tokenize CATALOG --model codecs-only --name train_tokens",
        f"python -m skyvec_training transformer CATALOG/train_tokens --out transformer {train_with}{start}",
        f"python -m skyvec_training export codec {parts} --out {arguments.out.name} {train_with}{small}",
    ]
