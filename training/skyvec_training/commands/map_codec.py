"""``map-codec CATALOG``: train the codec of segmentation maps on the maps of a survey."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.survey_columns import Survey
from skyvec_training.codecs import map as map_training
from skyvec_training.codecs import map_scores
from skyvec_training.commands.codec_command import (
    RECIPES,
    codec_run,
    round_to_half,
    run_codec,
    stores_of,
    trained_codec_arguments,
    write_scores,
)
from skyvec_training.data import maps
from skyvec_training.loop.trainer import Outcome
from skyvec_training.recipe.codecs import CodecSource, MapCodecRun

NAME = "map-codec"
HELP = "train the codec of segmentation maps on the maps of a survey"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    trained_codec_arguments(parser, "folder of HDF5 files, or HATS collection, with maps")
    parser.set_defaults(recipe=RECIPES / "map_codec_tiny.toml")


def run(arguments: argparse.Namespace) -> Outcome:
    """Unpack the maps, train, and write averaged codec, scores and pictures into ``--out``."""
    run, out = codec_run(arguments.recipe, MapCodecRun, "map_codec"), arguments.out

    def unpack(place: Path, survey: Survey, _: CodecSource, folder: Path) -> maps.MapStore:
        return maps.unpack(place, survey, run.column, folder)

    sources = stores_of(arguments, (run.source,), unpack, maps.open_store)
    codec = map_training.build_codec(run, seed=arguments.seed)
    task = map_training.MapTask(codec, sources, run, seed=arguments.seed)
    outcome = run_codec(task, run, arguments, title="map codec")
    task.module.follow()
    averaged = task.module.averaged.eval()
    round_to_half(averaged)
    save_codec(averaged, out, MODALITIES["tok_segmap"], dtype=torch.float16)
    map_scores.draw(averaged, sources[0], out / "reconstruction.png")
    write_scores(
        map_scores.scores(averaged, sources[0].store, sources[0].held_out(map_scores.MOST)), out
    )
    return outcome
