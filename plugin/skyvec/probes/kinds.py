"""How each kind of probe is fitted to what one pass over the vectors left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.probes.fitted import (
    Fitted,
    Settings,
    add_chance,
    of_classes,
    of_numbers,
    some_rows,
)
from skyvec.probes.logistic import fit_logistic
from skyvec.probes.neighbours import fit_neighbours
from skyvec.probes.products import Accumulator, Centre
from skyvec.probes.ridge import RidgeFit, fit_ridge
from skyvec.probes.scan import Gathered, Sample
from skyvec.probes.scores import classification_metrics


def _fit_ridge(
    found: Gathered[Sample], folds: NDArray[np.int64], centre: Centre, classes: tuple[Any, ...],
    settings: Settings,
) -> Fitted:  # fmt: skip
    del classes
    fit = fit_ridge(found.moments, centre, settings.alphas)
    sample = found.sample
    left_out = np.empty_like(sample.labels)
    for fold in np.unique(folds).tolist():
        held = folds == fold
        left_out[held] = fit.without[fold].predict(sample.vectors[held])
    fitted = of_numbers(fit.model, left_out, sample, folds, settings)
    for place, target in enumerate(settings.targets):
        metrics = fitted.facts["metrics"][target]
        metrics["r2_of_every_row"] = fit.r2[place]
        metrics["alpha"] = fit.alphas[place]
    for target, chance in zip(
        settings.targets, _shuffled_ridge(found, folds, centre, settings).r2, strict=True
    ):
        fitted.facts["metrics"][target]["r2_shuffled"] = chance
    fitted.scaler = {"mean": fit.mean, "scale": fit.scale}
    return fitted


def _shuffled_ridge(
    found: Gathered[Sample], folds: NDArray[np.int64], centre: Centre, settings: Settings
) -> RidgeFit:
    """The same fit, to labels that belong to other rows."""
    rng = np.random.default_rng(settings.seed)
    few = some_rows(len(folds), rng)
    sums = Accumulator(centre, int(folds.max()) + 1)
    labels = found.sample.labels[few]
    sums.add(found.sample.vectors[few], labels[rng.permutation(len(few))], folds[few])
    return fit_ridge(sums.moments(), centre, settings.alphas)


def _fit_knn(
    found: Gathered[Sample], folds: NDArray[np.int64], centre: Centre, classes: tuple[Any, ...],
    settings: Settings,
) -> Fitted:  # fmt: skip
    del centre
    sample, rng = found.sample, np.random.default_rng(settings.seed)
    answers = np.eye(len(classes))[sample.labels[:, 0].astype(int)] if classes else sample.labels
    fit = fit_neighbours(sample.vectors, answers, folds)
    few = some_rows(len(folds), rng)
    mixed = answers[few][rng.permutation(len(few))]
    least = min(int((folds[few] != fold).sum()) for fold in np.unique(folds[few]))
    chance = fit_neighbours(sample.vectors[few], mixed, folds[few],
                            counts=(min(fit.model.k, least),)).left_out  # fmt: skip
    fitted = (
        of_classes(fit.model, fit.left_out, sample, classes)
        if classes
        else of_numbers(fit.model, fit.left_out, sample, folds, settings)
    )
    add_chance(fitted, mixed, chance, settings.targets)
    fitted.facts["k"] = fit.model.k
    fitted.scaler = {"mean": fit.model.mean, "scale": fit.model.scale}
    return fitted


def _fit_logistic(
    found: Gathered[Sample], folds: NDArray[np.int64], centre: Centre, classes: tuple[Any, ...],
    settings: Settings,
) -> Fitted:  # fmt: skip
    del centre
    sample, rng = found.sample, np.random.default_rng(settings.seed)
    codes = sample.labels[:, 0].astype(np.int64)
    fit = fit_logistic(sample.vectors, codes, folds, classes=len(classes), seed=settings.seed)
    few = some_rows(len(folds), rng)
    mixed = codes[few][rng.permutation(len(few))]
    chance = fit_logistic(sample.vectors[few], mixed, folds[few], classes=len(classes),
                          seed=settings.seed, strengths=(fit.strength,))  # fmt: skip
    fitted = of_classes(fit.model, fit.probabilities, sample, classes)
    fitted.facts["metrics"] |= {
        "ece_uncalibrated": classification_metrics(codes, fit.uncalibrated)["ece"],
        "auroc_shuffled": classification_metrics(mixed, chance.probabilities)["auroc"],
    }
    fitted.facts |= {"strength": fit.strength, "temperature": fit.model.temperature}
    fitted.scaler = {"mean": fit.mean, "scale": fit.scale}
    return fitted


FITS = {"ridge": _fit_ridge, "logistic": _fit_logistic, "knn": _fit_knn}
"""Each takes what the pass found, the fold of each row of its sample, the centre, the classes."""
