"""Fitting of the scalar codecs: quantiles of a survey's columns, and the redshift grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from skyvec_core.codecs.folder import build_codec
from skyvec_core.codecs.scalar import GridScalarCodec, ScalarCodec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.survey_columns import Survey
from skyvec_training.data.leaves import leaves_of, require_columns
from skyvec_training.recipe.codecs import ScalarRun
from skyvec_training.recipe.reading import rows_to_train


def read_scalars(catalog: Path, columns: list[str]) -> dict[str, NDArray[np.float64]]:
    """Columns of a catalog as float64, NaN where null, in the order of its leaves."""
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns}
    for leaf in leaves_of(catalog):
        require_columns(leaf, columns, remedy="Add the column, or choose another survey")
        table = pq.read_table(leaf, columns=columns, partitioning=None)
        for name in columns:
            column = table[name].to_numpy()
            parts[name].append(np.asarray(column, dtype=np.float64))
    return {name: np.concatenate(values) for name, values in parts.items()}


def fit_scalars(
    values: Mapping[str, NDArray[np.float64]], survey: Survey, run: ScalarRun
) -> dict[str, ScalarCodec]:
    """Token key -> fitted codec, for the scalars and labels of a survey.

    Parameters
    ----------
    values
        Column name -> numbers (rows,) in the survey's unit; the held-out rows are not read.
    """
    rows = rows_to_train(len(next(iter(values.values()))), run.held_out, where="scalars")
    codecs: dict[str, ScalarCodec] = {}
    for name, key in columns_of(survey).items():
        codec = cast("ScalarCodec", build_codec(MODALITIES[key], {}))
        if isinstance(codec, GridScalarCodec):
            codec.set_grid(*run.redshift_grid)
        else:
            codec.fit(torch.from_numpy(values[name][:rows]))
        codecs[key] = codec.eval()
    return codecs


def columns_of(survey: Survey) -> dict[str, str]:
    """Column -> token key of every scalar and label that becomes a token."""
    return {**{s.name: s.token_key for s in survey.scalars}, **survey.labels}
