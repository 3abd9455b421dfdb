"""``image-codec CATALOG``: train the image codec on the cutouts of one or several surveys."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.survey_columns import Survey
from skyvec_training.codecs import image, reconstruction
from skyvec_training.commands.codec_command import (
    codec_run,
    round_to_half,
    run_codec,
    stores_of,
    trained_codec_arguments,
    write_scores,
)
from skyvec_training.data import pixels
from skyvec_training.loop.trainer import Outcome
from skyvec_training.recipe.codecs import CodecRun, CodecSource

NAME = "image-codec"
HELP = "train the image codec on the cutouts of one or several surveys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    trained_codec_arguments(parser, "HATS collection or folder of HDF5 files with cutouts")


def run(arguments: argparse.Namespace) -> Outcome:
    """Unpack the cutouts, train, and write codec, scores and pictures into ``--out``."""
    run, out = codec_run(arguments.recipe, CodecRun, "image_codec"), arguments.out
    sources = stores_of(arguments, run.all_sources, _unpack, pixels.open_store)
    codec = image.build_codec(run, seed=arguments.seed)
    task = image.CodecTask(codec, sources, run, seed=arguments.seed)
    outcome = run_codec(task, run, arguments, title="image codec")
    round_to_half(codec.eval())
    save_codec(codec, out, MODALITIES["tok_image"], dtype=torch.float16)
    reconstruction.draw(codec, sources, out / "reconstruction.png")
    write_scores(reconstruction.all_scores(codec, sources), out)
    return outcome


def _unpack(place: Path, survey: Survey, source: CodecSource, folder: Path) -> pixels.PixelStore:
    return pixels.unpack(place, survey, folder, bands=source.bands)
