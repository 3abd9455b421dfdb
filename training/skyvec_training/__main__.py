"""``python -m skyvec_training image-codec|scalars|transformer|export``; ``--help`` says more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_training.codecs import image as image_codec
from skyvec_training.codecs import reconstruction, scalars
from skyvec_training.data import pixels, tokens
from skyvec_training.loop import curves
from skyvec_training.loop.progress import RunProgress
from skyvec_training.loop.trainer import Outcome, train
from skyvec_training.masked import transformer
from skyvec_training.publish import export, model_card
from skyvec_training.recipe.codecs import CodecRun
from skyvec_training.recipe.reading import digest_of_run
from skyvec_training.recipe.recipe import Recipe, load_recipe
from skyvec_training.recipe.transformer import TransformerRun

CONSOLE = Console()
RECIPE = Path(__file__).parent / "recipes" / "skyvec_tiny.toml"


def train_image_codec(recipe: Recipe, arguments: argparse.Namespace) -> Outcome:
    """Unpack the cutouts, train, and write codec, scores and pictures into ``--out``."""
    run, out = recipe.image_codec, arguments.out
    survey = SURVEYS[run.survey]
    store_folder = out / "pixels"
    if not (store_folder / "bands.txt").is_file():
        CONSOLE.print(f"unpacking cutouts of {arguments.catalog}")
        pixels.unpack(arguments.catalog, survey, store_folder)
    store = pixels.open_store(store_folder)
    codec = image_codec.build_codec(run, seed=arguments.seed)
    task = image_codec.CodecTask(codec, store, run, seed=arguments.seed)
    with RunProgress("image codec", steps=run.optimizer.steps, console=CONSOLE) as progress:
        outcome = train(
            task, run.optimizer, out, run_digest=_digest(run, arguments.seed),
            minutes=arguments.minutes, observe=progress.show,
        )  # fmt: skip
    # Scores are those of the weights that are published: rounded to half precision.
    codec.load_state_dict({k: v.half().float() if v.is_floating_point() else v
                           for k, v in codec.state_dict().items()})  # fmt: skip
    save_codec(codec, out, MODALITIES["tok_image"], dtype=torch.float16)
    held_out = np.arange(task.train_rows, min(len(store), task.train_rows + 512))
    scored = reconstruction.scores(codec, store, held_out)
    (out / "reconstruction.json").write_text(json.dumps(scored, indent=2))
    reconstruction.draw(codec, store, held_out[:8], out / "reconstruction.png")
    curves.draw_curve(out, out / "loss.png")
    CONSOLE.print_json(data=scored)
    return outcome


def fit_scalars(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Fit the scalar codecs of a survey and write them into ``--out``."""
    survey = SURVEYS[recipe.scalars.survey]
    columns = scalars.columns_of(survey)
    values = scalars.read_scalars(arguments.catalog, list(columns))
    for key, codec in scalars.fit_scalars(values, survey, recipe.scalars).items():
        save_codec(codec, arguments.out, MODALITIES[key])
        table = codec.quantizer.values
        CONSOLE.print(f"{key:14s} {table[0]:.4g} to {table[-1]:.4g} (codec scale)")


def train_transformer(recipe: Recipe, arguments: argparse.Namespace) -> Outcome:
    """Train on a token extension; the checkpoints and the log lie in ``--out``."""
    run, out = recipe.transformer, arguments.out
    model = transformer.build_transformer(run, seed=arguments.seed)
    store = tokens.read_tokens(arguments.tokens, model.vocabulary)
    task = transformer.TransformerTask(model, store, run, seed=arguments.seed)
    CONSOLE.print(f"{len(store)} objects, {run.held_out} of them held out")
    with RunProgress("transformer", steps=run.optimizer.steps, console=CONSOLE) as progress:
        outcome = train(
            task, run.optimizer, out, run_digest=_digest(run, arguments.seed),
            minutes=arguments.minutes, observe=progress.show,
        )  # fmt: skip
    curves.draw_curve(out, out / "loss.png")
    return outcome


def export_folder(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Gather a model folder and write its card; without ``--transformer`` only codecs matter."""
    model = transformer.build_transformer(recipe.transformer, seed=arguments.seed)
    learnt = export.newest_of(arguments.transformer) if arguments.transformer else None
    exported = export.export_model(
        model, learnt, [arguments.codecs, arguments.scalars], arguments.out, name=recipe.name
    )
    if arguments.transformer:
        card = model_card.model_card(
            exported, recipe, seed=arguments.seed, data=arguments.data,
            codec_run=arguments.codecs, transformer_run=arguments.transformer,
            commands=_commands(arguments),
        )  # fmt: skip
        model_card.write_card(arguments.out, card)
    size = sum(f.stat().st_size for f in arguments.out.rglob("*") if f.is_file())
    CONSOLE.print(f"{arguments.out}: {size / 1e6:.1f} MB, digest {exported.digest}")


def _commands(arguments: argparse.Namespace) -> list[str]:
    train_with = f"--recipe {arguments.recipe.name} --seed {arguments.seed}"
    parts = "--scalars scalars --transformer transformer"
    return [
        f"python -m skyvec_training image-codec CATALOG --out codec {train_with}",
        f"python -m skyvec_training scalars CATALOG --out scalars {train_with}",
        f"python -m skyvec_training export codec --scalars scalars --out codecs-only {train_with}",
        "skyvec tokenize CATALOG --model codecs-only --name train_tokens",
        f"python -m skyvec_training transformer CATALOG/train_tokens --out transformer {train_with}",
        f"python -m skyvec_training export codec {parts} --out {arguments.out.name} {train_with}",
    ]


def _digest(run: CodecRun | TransformerRun, seed: int) -> str:
    return f"{digest_of_run(run)}-{seed}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m skyvec_training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, what in (
        ("image-codec", "catalog", "train the image codec on the cutouts of a catalog"),
        ("scalars", "catalog", "fit the scalar codecs to the columns of a catalog"),
        ("transformer", "tokens", "train the transformer on a token extension"),
        ("export", "codecs", "gather codecs and transformer into one model folder"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument(source, type=Path)
        command.add_argument("--out", type=Path, required=True, help="folder of this run")
        command.add_argument("--recipe", type=Path, default=RECIPE)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=torch.get_num_threads())
        if name in {"image-codec", "transformer"}:
            command.add_argument("--minutes", type=float, help="stop here; run again to go on")
        if name == "export":
            command.add_argument("--scalars", type=Path, required=True, help="run of `scalars`")
            command.add_argument("--transformer", type=Path, help="its run; none: untrained")
            command.add_argument("--data", default="not stated", help="training data, in words")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `skyvec_schemas.errors`."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        recipe = load_recipe(arguments.recipe)
        outcome = COMMANDS[arguments.command](recipe, arguments)
    except SkyvecError as error:
        CONSOLE.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0 if outcome is None or outcome.finished else 20


COMMANDS: dict[str, Callable[[Recipe, argparse.Namespace], Outcome | None]] = {
    "image-codec": train_image_codec,
    "scalars": fit_scalars,
    "transformer": train_transformer,
    "export": export_folder,
}

if __name__ == "__main__":
    sys.exit(main())
