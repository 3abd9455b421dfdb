"""``scalars CATALOG``: fit the scalar codecs to the columns of a catalog."""

from __future__ import annotations

import argparse

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_training.codecs.scalars import columns_of, fit_scalars, read_scalars
from skyvec_training.commands.command import CONSOLE, common_arguments, recipe_of

NAME = "scalars"
HELP = "fit the scalar codecs to the columns of a catalog"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    common_arguments(parser, "catalog", "HATS collection with the columns")


def run(arguments: argparse.Namespace) -> None:
    """Fit the scalar codecs of a survey and write them into ``--out``."""
    run = recipe_of(arguments).scalars
    survey = SURVEYS[run.survey]
    values = read_scalars(arguments.catalog, list(columns_of(survey)))
    for key, codec in fit_scalars(values, survey, run).items():
        save_codec(codec, arguments.out, MODALITIES[key])
        table = codec.quantizer.values
        CONSOLE.print(f"{key:14s} {table[0]:.4g} to {table[-1]:.4g} (codec scale)")
