"""``scalars CATALOG``: fit the codecs that are tables to the columns of one or several surveys."""

from __future__ import annotations

import argparse

from skyvec_core.codecs.folder import save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_training.codecs import scalar_scores
from skyvec_training.codecs.mixture import survey_of
from skyvec_training.codecs.scalars import fit_source
from skyvec_training.commands.codec_command import (
    codec_arguments,
    codec_run,
    places_of,
    write_scores,
)
from skyvec_training.commands.command import CONSOLE
from skyvec_training.recipe.codecs import ScalarRun

NAME = "scalars"
HELP = "fit scalars, coefficients and catalogs to the columns of one or several surveys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    codec_arguments(parser, "HATS collection or folder of HDF5 files with the columns")


def run(arguments: argparse.Namespace) -> None:
    """Fit, and write codecs, scores and a picture into ``--out``."""
    run, out = codec_run(arguments.recipe, ScalarRun, "scalars"), arguments.out
    places = places_of(arguments, run.all_sources)
    scored: dict[str, object] = {}
    compared: scalar_scores.Pairs = {}
    for source in run.all_sources:
        place = places[source.name]
        columns, rows = fit_source(place, survey_of(source), source, run)
        for column in columns:
            save_codec(column.codec, out, MODALITIES[column.token_key])
        # Where nothing is held out, the numbers that were fitted are better than none.
        found = scalar_scores.pairs(place, columns, first=rows if source.held_out else 0)
        scored[source.name] = scalar_scores.scores(found, columns)
        compared = {**compared, **found}
        CONSOLE.print(f"{source.name}: {len(columns)} codecs from {rows} objects")
    scalar_scores.draw(compared, out / "reconstruction.png")
    write_scores({"sources": scored}, out)
