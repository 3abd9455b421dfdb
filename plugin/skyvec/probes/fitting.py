"""Fits a probe in one pass over labelled vectors and measures it on sky that was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skyvec.probes.conformal import Intervals
from skyvec.probes.folds import Folds
from skyvec.probes.logistic import Logits, fit_logistic
from skyvec.probes.neighbours import ROWS as NEIGHBOUR_ROWS
from skyvec.probes.neighbours import Neighbours, fit_neighbours
from skyvec.probes.products import Accumulator, Centre
from skyvec.probes.ridge import ALPHAS, Linear, RidgeFit, fit_ridge
from skyvec.probes.rows import Rows, first_vectors
from skyvec.probes.scan import (
    CLASSES,
    Census,
    Count,
    Gather,
    Gathered,
    Sample,
    no_sample,
    over,
)
from skyvec.probes.scores import (
    Score,
    classification_metrics,
    is_redshift,
    photoz_metrics,
)
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client

Floats = NDArray[np.floating]

SAMPLES = {"ridge": 20_000, "logistic": 50_000, "knn": NEIGHBOUR_ROWS}
"""Labelled rows that are kept in memory: for a ridge to measure it, for others to fit them."""
SHUFFLED_ROWS = 2000
"""Rows whose labels are shuffled to show what chance scores."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of a fit."""

    targets: tuple[str, ...]
    kind: str
    folds: int
    alphas: tuple[float, ...] = ALPHAS
    confidence: float
    bins: int
    max_rows: int | None
    seed: int
    blocks_are_sky: bool = True


@dataclass(kw_only=True)
class Fitted:
    """A model with everything that is known of it."""

    model: Linear | Logits | Neighbours
    classes: tuple[Any, ...] = ()
    """What is told apart, in the order of the model's columns; empty for numbers."""
    intervals: dict[str, Intervals] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """For JSON: rows, folds, choices, metrics."""
    scaler: dict[str, Floats] = field(default_factory=dict)


def fit_rows(
    rows: Rows, settings: Settings, *, workers: int, client: Client | None = None
) -> Fitted:
    """Fit one kind of model to labelled vectors.

    Raises
    ------
    ConfigurationError
        Too few labels or sky blocks, constant labels, or classes that are none.
    """
    census = over(Count(rows=rows), rows.pieces(), Census(), workers=workers, client=client)
    folds = Folds(census.blocks, settings.folds, where=rows.where)
    classes = _classes(census, settings, rows.where)
    targets = len(settings.targets)
    if not classes:
        _refuse_constant(census, settings.targets, rows.where)
    near = first_vectors(rows)
    centre = Centre(
        vectors=near.mean(0) if len(near) else np.zeros(rows.dim, np.float32),
        labels=np.zeros(targets) if classes else census.means,
        scale=np.ones(targets) if classes else census.deviations,
    )
    most = settings.max_rows or SAMPLES[settings.kind]
    gather = Gather(
        rows=rows, folds=folds, centre=centre, classes=classes,
        share=min(1.0, most / census.labelled), seed=settings.seed,
        products=settings.kind == "ridge",
    )  # fmt: skip
    nothing = Gathered(moments={}, parts=[no_sample(rows.dim, targets, rows.dtype)])
    found = over(gather, rows.pieces(), nothing, workers=workers, client=client)
    used = census.labelled - found.null - found.not_finite
    sample_folds = folds.of(found.sample.blocks)
    filled = np.unique(sample_folds)
    if used < 2 * settings.folds or len(filled) < 2:
        raise ConfigurationError(
            f"of {census.labelled} labelled rows {found.null} have no vector and "
            f"{found.not_finite} one with NaN or infinity; {used} are left in {len(filled)} folds",
            where=rows.where,
            remedy=f"At least {2 * settings.folds} in 2 blocks of the sky are needed",
        )
    fitted = _FITS[settings.kind](found, sample_folds, centre, classes, settings)
    fitted.facts.update(
        rows=census.rows, labelled=census.labelled, used=used, partly_labelled=census.partly,
        null_vectors=found.null, vectors_not_finite=found.not_finite, folds=folds.count,
        blocks=len(folds.blocks), sample=len(found.sample), confidence=settings.confidence,
        seed=settings.seed, notes=_notes(census, found, folds, settings),
    )  # fmt: skip
    return fitted


def _fit_ridge(
    found: Gathered, folds: NDArray[np.int64], centre: Centre, classes: tuple[Any, ...],
    settings: Settings,
) -> Fitted:  # fmt: skip
    del classes
    fit = fit_ridge(found.moments, centre, settings.alphas)
    sample = found.sample
    left_out = np.empty_like(sample.labels)
    for fold in np.unique(folds).tolist():
        held = folds == fold
        left_out[held] = fit.without[fold].predict(sample.vectors[held])
    fitted = _numbers(fit.model, left_out, sample, folds, settings)
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
    found: Gathered, folds: NDArray[np.int64], centre: Centre, settings: Settings
) -> RidgeFit:
    """The same fit, to labels that belong to other rows."""
    rng = np.random.default_rng(settings.seed)
    few = _few(folds, rng)
    sums = Accumulator(centre, int(folds.max()) + 1)
    labels = found.sample.labels[few]
    sums.add(found.sample.vectors[few], labels[rng.permutation(len(few))], folds[few])
    return fit_ridge(sums.moments(), centre, settings.alphas)


def _fit_knn(
    found: Gathered, folds: NDArray[np.int64], centre: Centre, classes: tuple[Any, ...],
    settings: Settings,
) -> Fitted:  # fmt: skip
    del centre
    sample, rng = found.sample, np.random.default_rng(settings.seed)
    answers = np.eye(len(classes))[sample.labels[:, 0].astype(int)] if classes else sample.labels
    fit = fit_neighbours(sample.vectors, answers, folds)
    few = _few(folds, rng)
    mixed = answers[few][rng.permutation(len(few))]
    least = min(int((folds[few] != fold).sum()) for fold in np.unique(folds[few]))
    chance = fit_neighbours(sample.vectors[few], mixed, folds[few],
                            counts=(min(fit.model.k, least),)).left_out  # fmt: skip
    if classes:
        fitted = _called(fit.model, fit.left_out, sample, classes)
        fitted.facts["metrics"]["auroc_shuffled"] = classification_metrics(mixed.argmax(1), chance)[
            "auroc"
        ]
    else:
        fitted = _numbers(fit.model, fit.left_out, sample, folds, settings)
        for place, target in enumerate(settings.targets):
            fitted.facts["metrics"][target]["r2_shuffled"] = Score.of(
                mixed[:, place], chance[:, place], sample.blocks[few], seed=settings.seed
            ).r2
    fitted.facts["k"] = fit.model.k
    fitted.scaler = {"mean": fit.model.mean, "scale": fit.model.scale}
    return fitted


def _fit_logistic(
    found: Gathered, folds: NDArray[np.int64], centre: Centre, classes: tuple[Any, ...],
    settings: Settings,
) -> Fitted:  # fmt: skip
    del centre
    sample, rng = found.sample, np.random.default_rng(settings.seed)
    codes = sample.labels[:, 0].astype(np.int64)
    fit = fit_logistic(sample.vectors, codes, folds, classes=len(classes), seed=settings.seed)
    few = _few(folds, rng)
    mixed = codes[few][rng.permutation(len(few))]
    chance = fit_logistic(sample.vectors[few], mixed, folds[few], classes=len(classes),
                          seed=settings.seed, strengths=(fit.strength,))  # fmt: skip
    fitted = _called(fit.model, fit.probabilities, sample, classes)
    fitted.facts["metrics"] |= {
        "ece_uncalibrated": classification_metrics(codes, fit.uncalibrated)["ece"],
        "auroc_shuffled": classification_metrics(mixed, chance.probabilities)["auroc"],
    }
    fitted.facts |= {"strength": fit.strength, "temperature": fit.model.temperature}
    fitted.scaler = {"mean": fit.mean, "scale": fit.scale}
    return fitted


_FITS = {"ridge": _fit_ridge, "logistic": _fit_logistic, "knn": _fit_knn}


def _numbers(
    model: Linear | Neighbours, left_out: Floats, sample: Sample, folds: NDArray[np.int64],
    settings: Settings,
) -> Fitted:  # fmt: skip
    metrics: dict[str, Any] = {}
    intervals = {}
    for place, target in enumerate(settings.targets):
        labels, predicted = sample.labels[:, place], left_out[:, place]
        metrics[target] = asdict(Score.of(labels, predicted, sample.blocks, seed=settings.seed))
        metrics[target]["bias"] = float(np.mean(predicted - labels))
        if is_redshift(target) and float(labels.min()) > -1:
            metrics[target]["photoz"] = photoz_metrics(labels, predicted)
        intervals[target] = Intervals.fit(
            predicted, labels, folds, confidence=settings.confidence, bins=settings.bins
        )
    return Fitted(model=model, intervals=intervals, facts={"metrics": metrics})


def _called(
    model: Logits | Neighbours, probabilities: Floats, sample: Sample, classes: Sequence[Any]
) -> Fitted:
    codes = sample.labels[:, 0].astype(np.int64)
    counts = np.bincount(codes, minlength=len(classes)).tolist()
    metrics: Mapping[str, Any] = classification_metrics(codes, probabilities)
    facts = {"metrics": {**metrics, "rows": len(codes), "blocks": len(np.unique(sample.blocks))},
             "class_rows": counts}  # fmt: skip
    return Fitted(model=model, classes=tuple(classes), facts=facts)


def _few(folds: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    few: NDArray[np.int64] = np.sort(rng.permutation(len(folds))[:SHUFFLED_ROWS])
    return few


def _classes(census: Census, settings: Settings, where: str) -> tuple[Any, ...]:
    if not census.classes:
        return ()
    target = settings.targets[0]
    if len(census.classes) > CLASSES:
        raise ConfigurationError(
            f"{target!r} has {len(census.classes)} different values",
            where=where,
            remedy=f"Classes are at most {CLASSES}; for numbers use kind='ridge'",
        )
    if len(census.classes) < 2:
        raise ConfigurationError(
            f"{target!r} is constant", where=where,
            remedy="There is nothing to learn; choose another target",
        )  # fmt: skip
    if rare := [str(name) for name, rows in census.classes.items() if rows < 2]:
        raise ConfigurationError(
            f"only one row is {', '.join(sorted(rare))}",
            where=where,
            remedy="Label more of them, or leave them out with where=...",
        )
    return tuple(sorted(census.classes, key=lambda name: (str(type(name)), name)))


def _refuse_constant(census: Census, targets: Sequence[str], where: str) -> None:
    size = np.maximum(np.abs(census.means), 1e-300)
    for target, deviation, mean in zip(targets, census.deviations, size, strict=True):
        if not deviation > 1e-12 * mean:
            raise ConfigurationError(
                f"{target!r} is constant",
                where=where,
                remedy="There is nothing to learn; choose another target",
            )


def _notes(census: Census, found: Gathered, folds: Folds, settings: Settings) -> list[str]:
    notes = []
    if folds.count < settings.folds:
        notes.append(f"{folds.count} folds instead of {settings.folds}: there are as many blocks")
    if not settings.blocks_are_sky:
        notes.append("no groups were given: rows were left out one by one, not by sky block")
    if census.partly:
        notes.append(f"{census.partly:,} rows lack some of the targets and were left out")
    if found.null or found.not_finite:
        notes.append(
            f"{found.null:,} labelled rows have no vector, {found.not_finite:,} one with NaN or "
            "infinity; they were left out"
        )
    if settings.kind != "ridge" and len(found.sample) < census.labelled - found.null:
        notes.append(
            f"fitted to a sample of {len(found.sample):,} of {census.labelled:,} labelled rows"
        )
    return notes
