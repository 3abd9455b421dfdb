"""What the codecs lose: scores of the image codec, and of every number, in physical units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from skyvec_core.codecs.image import ImageCodec
from skyvec_core.codecs.scalar import ScalarCodec
from skyvec_core.embedder import Model
from skyvec_schemas.survey_columns import Survey
from skyvec_training.codecs import reconstruction
from skyvec_training.scorecard.sample import Sample
from skyvec_training.scorecard.supervised import cutouts_of, has_cutouts


def reconstruct(
    model: Model, catalog: Path, survey: Survey, sample: Sample, work: Path, *, objects: int
) -> dict[str, object]:
    """Token key -> scores; images only if the release has cutouts with inverse variances."""
    out: dict[str, object] = {"scalars": _scalars(model, survey, sample)}
    column = survey.image
    codec = model.codecs.get(column.token_key) if column else None
    if column is None or not isinstance(codec, ImageCodec) or not has_cutouts(catalog, survey):
        return out
    store = cutouts_of(catalog, survey, work / "pixels")
    if rows := np.unique(np.linspace(0, len(store) - 1, objects).astype(np.int64)).tolist():
        out[column.token_key] = reconstruction.scores(codec, store, np.array(rows))
    return out


def _scalars(model: Model, survey: Survey, sample: Sample) -> dict[str, dict[str, float]]:
    """Median and 90th percentile of the absolute error, in units of the column's spread."""
    out = {}
    for scalar in survey.scalars:
        values, codec = sample.numbers(scalar.name), model.codecs.get(scalar.token_key)
        if values is None or not isinstance(codec, ScalarCodec):
            continue
        known = torch.from_numpy(values[np.isfinite(values)]).float()
        low, high = np.percentile(known.numpy(), [16, 84]) if len(known) else (0.0, 0.0)
        if not high > low:
            continue
        again = codec.decode(codec.encode(known).ids_BN)
        error = (again - known).abs().numpy() / ((high - low) / 2)
        out[scalar.token_key] = {"median": float(np.median(error)),
                                 "p90": float(np.percentile(error, 90))}  # fmt: skip
    return out
