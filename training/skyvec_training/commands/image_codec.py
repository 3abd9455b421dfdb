"""``image-codec CATALOG``: train the image codec on the cutouts of a catalog."""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_training.codecs import image, reconstruction
from skyvec_training.commands.command import (
    CONSOLE,
    clock_argument,
    common_arguments,
    recipe_of,
    run_digest,
)
from skyvec_training.data import pixels
from skyvec_training.loop import curves
from skyvec_training.loop.progress import RunProgress
from skyvec_training.loop.trainer import Outcome, train

NAME = "image-codec"
HELP = "train the image codec on the cutouts of a catalog"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    common_arguments(parser, "catalog", "HATS collection with cutouts")
    clock_argument(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Unpack the cutouts, train, and write codec, scores and pictures into ``--out``."""
    run, out = recipe_of(arguments).image_codec, arguments.out
    survey = SURVEYS[run.survey]
    store_folder = out / "pixels"
    if not (store_folder / "bands.txt").is_file():
        CONSOLE.print(f"unpacking cutouts of {arguments.catalog}")
        pixels.unpack(arguments.catalog, survey, store_folder)
    store = pixels.open_store(store_folder)
    codec = image.build_codec(run, seed=arguments.seed)
    task = image.CodecTask(codec, store, run, seed=arguments.seed)
    with RunProgress("image codec", steps=run.optimizer.steps, console=CONSOLE) as progress:
        outcome = train(
            task, run.optimizer, out, run_digest=run_digest(run, arguments),
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
