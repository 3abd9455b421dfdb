"""Baselines from the catalog's own columns: boosted trees and a linear model, no vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from skyvec_training.recipe.evaluation import Photometry
from skyvec_training.scorecard.heads import Floats, Rows
from skyvec_training.scorecard.sample import Sample
from skyvec_training.scorecard.targets import Targets

LEARNING_RATE = 0.05


def photometric_features(
    sample: Sample, run: Photometry, *, shapes: bool, colours: bool = True
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Fluxes, asinh magnitudes (Lupton et al. 1999), colours of neighbouring bands, dust.

    Returns features (B, F), NaN where unknown, and the columns that they were made of.
    """
    found = {name: values for name in (*run.fluxes, *run.magnitudes, *run.dust, *run.shapes)
             if (values := sample.numbers(name)) is not None}  # fmt: skip
    fluxes = [found[name] for name in run.fluxes if name in found]
    magnitudes = [asinh_magnitude(flux, softening=run.softening) for flux in fluxes]
    magnitudes += [found[name] for name in run.magnitudes if name in found]
    others = [found[name] for name in (*run.dust, *(run.shapes if shapes else ())) if name in found]
    parts = [*magnitudes, *others]
    if colours:
        parts += fluxes + [blue - red for blue, red in pairwise(magnitudes)]
    used = [name for name in found if shapes or name not in run.shapes]
    features = np.stack(parts, axis=1) if parts else np.zeros((len(sample), 0))
    return features, tuple(used)


def asinh_magnitude(flux: Floats, *, softening: float) -> NDArray[np.float64]:
    """Magnitude (zero point 22.5) that stays finite at zero flux."""
    softened = np.arcsinh(flux / (2 * softening)) + np.log(softening)
    return np.asarray(22.5 - 2.5 / np.log(10) * softened)


class BoostingHead:
    """Histogram gradient boosting, one model for each number and one for each set of classes."""

    def __init__(self, name: str, features_BF: Floats, *, iterations: int = 300) -> None:
        self.name, self.features_BF, self.iterations = name, features_BF, iterations

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:
        """See `skyvec_training.scorecard.heads.Head`."""
        out_BK = np.full((len(test), targets.values_BK.shape[1]), np.nan)
        for task, columns in targets.columns.items():
            learnt = train[targets.known(task)[train]]
            labels = targets.values_BK[learnt, columns]
            if not len(learnt):
                continue
            asked = self.features_BF[test]
            if task not in targets.classes:
                model = HistGradientBoostingRegressor(**self._settings(len(learnt), seed))
                model.fit(self.features_BF[learnt], labels[:, 0])
                out_BK[:, columns.start] = model.predict(asked)
                continue
            out_BK[:, columns] = 0.0
            classes = labels.argmax(1)
            if len(np.unique(classes)) == 1:
                out_BK[:, columns.start + classes[0]] = 1.0
                continue
            chooser = HistGradientBoostingClassifier(**self._settings(len(learnt), seed))
            chooser.fit(self.features_BF[learnt], classes)
            out_BK[:, columns.start + chooser.classes_] = chooser.predict_proba(asked)
        return out_BK

    def _settings(self, rows: int, seed: int) -> dict[str, float]:
        # With the default leaf of 20 rows, trees of less than 40 labels could not even split.
        return {"learning_rate": LEARNING_RATE, "max_iter": self.iterations, "random_state": seed,
                "min_samples_leaf": int(np.clip(rows // 10, 2, 20)), "early_stopping": False}  # fmt: skip


def with_columns(features_BF: Floats, sample: Sample, columns: Sequence[str]) -> Floats:
    """Further numeric columns beside features; NaN where the sample lacks one."""
    more = [values for name in columns if (values := sample.numbers(name)) is not None]
    return np.concatenate([features_BF, *(values[:, None] for values in more)], axis=1)
