"""``python -m skyvec_training image-codec|scalars|transformer|export``; ``--help`` says more."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError, SkyvecError
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_training import checkpoint, curves, image_codec, pixels, reconstruction
from skyvec_training.config import Recipe, digest_of_run, load_recipe
from skyvec_training.progress import RunProgress
from skyvec_training.trainer import Outcome, train

CONSOLE = Console()
RECIPE = Path(__file__).parent.parent / "recipes" / "skyvec_tiny.toml"


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
    assert survey.image is not None
    # Scores are those of the weights that are published: rounded to half precision.
    codec.load_state_dict({k: v.half().float() if v.is_floating_point() else v
                           for k, v in codec.state_dict().items()})  # fmt: skip
    save_codec(codec, out, MODALITIES[survey.image.token_key], dtype=torch.float16)
    held_out = np.arange(task.train_rows, min(len(store), task.train_rows + 512))
    scored = reconstruction.scores(codec, store, held_out)
    (out / "reconstruction.json").write_text(json.dumps(scored, indent=2))
    reconstruction.draw(codec, store, held_out[:8], out / "reconstruction.png")
    curves.draw_curve(out, out / "loss.png")
    CONSOLE.print_json(data=scored)
    return outcome


def _digest(run: object, seed: int) -> str:
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
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `skyvec_schemas.errors`."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        recipe = load_recipe(arguments.recipe)
        outcome = COMMANDS[arguments.command](recipe, arguments)
    except SkyvecError as error:
        CONSOLE.print(f"[red]{error}[/red]")
        return error.exit_code
    return 0 if outcome is None or outcome.finished else 20


COMMANDS = {"image-codec": train_image_codec}

if __name__ == "__main__":
    sys.exit(main())
