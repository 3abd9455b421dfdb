"""``spectrum-codec CATALOG``: train the spectrum codec on the spectra of one or several surveys."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import Survey
from skyvec_training.codecs import spectrum, spectrum_scores
from skyvec_training.commands.codec_command import (
    RECIPES,
    codec_run,
    round_to_half,
    run_codec,
    stores_of,
    trained_codec_arguments,
    write_scores,
)
from skyvec_training.data import spectra
from skyvec_training.loop.trainer import Outcome
from skyvec_training.recipe.codecs import CodecSource, SpectrumCodecRun

NAME = "spectrum-codec"
HELP = "train the spectrum codec on the spectra of one or several surveys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    trained_codec_arguments(parser, "folder of HDF5 files, or HATS collection, with spectra")
    parser.set_defaults(recipe=RECIPES / "spectrum_codec_tiny.toml")


def run(arguments: argparse.Namespace) -> Outcome:
    """Unpack the spectra, train, and write codec, scores and pictures into ``--out``."""
    run, out = codec_run(arguments.recipe, SpectrumCodecRun, "spectrum_codec"), arguments.out
    sources = stores_of(arguments, run.sources, _unpack, spectra.open_store)
    codec = spectrum.build_codec(run, seed=arguments.seed)
    task = spectrum.SpectrumTask(codec, sources, run, seed=arguments.seed)
    outcome = run_codec(task, run, arguments, title="spectrum codec")
    round_to_half(codec.eval())
    save_codec(codec, out, MODALITIES["tok_spectrum_desi"], dtype=torch.float16)
    spectrum_scores.draw(codec, sources, out / "reconstruction.png")
    write_scores(spectrum_scores.all_scores(codec, sources), out)
    return outcome


def _unpack(
    place: Path, survey: Survey, source: CodecSource, folder: Path
) -> spectra.SpectrumStore:
    if source.bands:
        raise ConfigurationError(
            "spectra have no bands", where=f"source {source.name}", remedy="Leave bands out"
        )
    return spectra.unpack(place, survey, folder)
