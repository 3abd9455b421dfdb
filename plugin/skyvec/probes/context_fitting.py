"""Fits an attentive probe to the contexts of labelled rows, on folds of the sky as the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from skyvec.probes.attentive import Lesson, chance, fit_attentive
from skyvec.probes.contexts import Contexts, ContextSpool
from skyvec.probes.fitted import (
    Fitted,
    Settings,
    add_chance,
    of_classes,
    of_numbers,
    some_rows,
)
from skyvec.probes.fitting import counted
from skyvec.probes.rows import LabelledPieces, of_all
from skyvec.probes.scan import Drawn, Gathered, coded, lots, over
from skyvec.probes.scores import calibration_error
from skyvec.search.partitions import one_thread_each

MAX_ROWS = 5000
"""Labelled rows whose contexts are kept on disk: 0.8 GB of ``skyvec-tiny`` with images, 4.5 GB at
AION-1's base size."""
SHUFFLED_ROWS = 500
"""Fewer than of other kinds, which take less time."""


class ContextSource(Protocol):
    """Contexts of the rows of an extension."""

    @property
    def dim(self) -> int:
        """Values of a context vector."""

    @property
    def num_heads(self) -> int:
        """Of the model."""

    @property
    def model_digest(self) -> str:
        """Identity of the model."""

    def present(self, pixel: HealpixPixel) -> NDArray[np.bool_]:
        """Which rows have tokens to attend to."""

    def read(
        self, pixel: HealpixPixel, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], list[Tensor]]]:
        """Wanted rows that are present, and their contexts (tokens, dim) in float16.

        A row whose contexts are not finite is left out.
        """


@dataclass(kw_only=True)
class DrawnContexts(Drawn):
    """Rows with the places of their contexts in a spool."""

    places: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GatherContexts:
    """The pass over tokens: contexts of a sample of labelled rows go to disk."""

    rows: LabelledPieces
    source: ContextSource
    spool: ContextSpool
    classes: tuple[Any, ...]
    share: float
    """Of the labelled rows that the sample takes, each with equal chance."""
    seed: int

    def __call__(self, pieces: Sequence[Any]) -> Gathered[DrawnContexts]:
        """Look at the drawn rows of some pieces."""
        found = [self._piece(piece) for piece in pieces]
        return sum(found[1:], found[0])

    def _piece(self, piece: Any) -> Gathered[DrawnContexts]:  # noqa: ANN401
        blocks, labels = self.rows.labels(piece)
        labelled, present = of_all(labels), self.source.present(piece)
        drawn = labelled & present & (lots(self.seed, piece, len(labels)) < self.share)
        kept, places = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
        for rows, contexts in self.source.read(piece, drawn):
            kept.append(rows)
            places.append(self.spool.put(contexts))
        rows = np.concatenate(kept)
        sample = DrawnContexts(labels=coded(labels, self.classes)[rows], blocks=blocks[rows],
                               places=np.concatenate(places))  # fmt: skip
        return Gathered(parts=[sample], null=int((labelled & ~present).sum()),
                        not_finite=int(drawn.sum()) - len(rows))  # fmt: skip


def fit_contexts(
    rows: LabelledPieces, source: ContextSource, settings: Settings, *, workers: int
) -> Fitted:
    """Fit a pool and a head to the contexts of at most ``max_rows`` labelled rows.

    Raises
    ------
    ConfigurationError
        As `fit_rows`, or if the labels of all but one fold are constant.
    """
    known = counted(rows, settings, workers=workers)
    most = settings.max_rows or MAX_ROWS
    # Sums over several threads would round otherwise.
    with one_thread_each(), closing(ContextSpool(source.dim)) as spool:
        gather = GatherContexts(
            rows=rows, source=source, spool=spool, classes=known.classes,
            share=known.share(most), seed=settings.seed,
        )  # fmt: skip
        nothing = Gathered(parts=[_no_contexts(len(settings.targets))])
        found = over(gather, rows.pieces(), nothing, workers=workers, client=None)
        # Lots give about as many rows as are wanted.
        kept = some_rows(len(found.sample), np.random.default_rng(settings.seed), most=most)
        found = replace(found, parts=[found.sample.of(kept)])
        folds = known.folds_of(found, settings)
        lesson = _lesson(found.sample, spool, source, known.classes, settings)
        fitted = _fitted(lesson, found.sample, folds, known.classes, settings, workers)
    fitted.facts.update(known.facts(found, settings))
    return fitted


def _lesson(
    sample: DrawnContexts, spool: ContextSpool, source: ContextSource, classes: tuple[Any, ...],
    settings: Settings,
) -> Lesson:  # fmt: skip
    codes = sample.labels[:, 0].astype(np.int64) if classes else None
    return Lesson(
        contexts=Contexts(spool, sample.places),
        answers=sample.labels if codes is None else np.eye(len(classes))[codes],
        names=tuple(str(name) for name in classes) or settings.targets, classes=bool(classes),
        num_heads=source.num_heads, model_digest=source.model_digest,
    )  # fmt: skip


def _fitted(
    lesson: Lesson, sample: Drawn, folds: NDArray[np.int64], classes: tuple[Any, ...],
    settings: Settings, workers: int,
) -> Fitted:  # fmt: skip
    rng = np.random.default_rng(settings.seed)
    fit = fit_attentive(lesson, folds, seed=settings.seed, workers=workers)
    few = some_rows(len(sample), rng, most=SHUFFLED_ROWS)
    mixed = lesson.of(few, lesson.answers[few][rng.permutation(len(few))])
    told = chance(mixed, folds[few], seed=settings.seed, workers=workers)
    if classes:
        fitted = of_classes(fit.model, fit.left_out, sample, classes)
        codes = lesson.answers.argmax(1)
        fitted.facts["metrics"]["ece_uncalibrated"] = calibration_error(codes, fit.uncalibrated)
        fitted.facts["temperature"] = fit.model.temperature
    else:
        fitted = of_numbers(fit.model, fit.left_out, sample, folds, settings)
    add_chance(fitted, mixed.answers, softmax(told, axis=1) if classes else told, settings.targets)
    return fitted


def _no_contexts(targets: int) -> DrawnContexts:
    return DrawnContexts(labels=np.empty((0, targets)), blocks=np.empty(0, np.int64),
                         places=np.empty((0, 2), np.int64))  # fmt: skip
