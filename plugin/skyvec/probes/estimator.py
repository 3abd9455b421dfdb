"""The estimator in a probe: numbers in, numbers out, as scikit-learn has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from skyvec.probes.attentive import Attentive
from skyvec.probes.conformal import BINS, CONFIDENCE, Intervals
from skyvec.probes.fitted import Fitted, Model, Settings
from skyvec.probes.folds import BLOCK_ORDER, FOLDS
from skyvec.probes.logistic import Logits
from skyvec.probes.neighbours import Neighbours
from skyvec.probes.ridge import ALPHAS, Linear
from skyvec.probes.scores import r_squared
from skyvec.version import __version__
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from sklearn.utils import Tags

Floats = NDArray[np.floating]
Kind = Literal["ridge", "logistic", "knn", "attentive"]

KINDS = ("ridge", "logistic", "knn", "attentive")


class VectorEstimator(BaseEstimator):
    """Predicts one or more targets from vectors, with intervals.

    An attentive probe predicts from contexts instead: for each row one array (tokens, dim), as
    `Model.contexts_of_objects` gives them. Wherever vectors (rows, dim) are asked for below, it
    takes a sequence of these.

    Parameters
    ----------
    target
        Column to predict, e.g. ``Z``; several at once for numbers.
    kind
        ``ridge`` (numbers; all labelled rows, from sums), ``logistic`` (classes with calibrated
        probabilities; a sample), ``knn`` (numbers or classes; a sample) or ``attentive`` (numbers
        or classes, from a token extension; a sample).
    name
        Of the predicted columns, e.g. ``photoz``; with several targets a prefix. By default
        ``<target>_predicted``.
    folds, block_order
        Cross-validation leaves out whole HEALPix pixels of this order.
    alphas
        Penalties that a ridge chooses from.
    confidence, bins
        Of the conformal intervals, which are apart for each bin of the prediction.
    max_rows
        Labelled rows held in memory: for a ridge those that measure it, for others all it learns.
        Contexts of an attentive probe are held on disk.
    allow_leaks
        Fit targets, too, that were an input of the model; the record tells.
    seed
        Of samples and resampling.
    """

    def __init__(
        self,
        target: str | Sequence[str] = "y",
        kind: Kind = "ridge",
        *,
        name: str | None = None,
        folds: int = FOLDS,
        block_order: int = BLOCK_ORDER,
        alphas: Sequence[float] = ALPHAS,
        confidence: float = CONFIDENCE,
        bins: int = BINS,
        max_rows: int | None = None,
        allow_leaks: bool = False,
        seed: int = 0,
    ) -> None:
        self.target, self.kind, self.name = target, kind, name
        self.folds, self.block_order, self.alphas = folds, block_order, alphas
        self.confidence, self.bins, self.max_rows = confidence, bins, max_rows
        self.allow_leaks, self.seed = allow_leaks, seed
        self.extension = self.fingerprint = ""
        self.weights: Floats = np.zeros(0)
        self.intercept: Any = 0.0
        self.classes: tuple[Any, ...] = ()
        self.intervals: dict[str, Intervals] = {}
        self.record: dict[str, Any] = {}
        self.scaler: dict[str, Any] = {}
        self.neighbours: Neighbours | None = None
        self.attentive: Attentive | None = None
        self.temperature = 1.0

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    @property
    def metrics(self) -> dict[str, Any]:
        """Out-of-fold quality: of each target, or of the classes."""
        return dict(self.record.get("metrics", {}))

    def predict(self, X: Floats) -> NDArray[Any]:  # noqa: N803
        """Predictions (rows,) for vectors (rows, dim); (rows, targets) for several targets."""
        found = self._answers(X)
        if self.classes:
            return np.asarray(self.classes)[found.argmax(1)]
        return found[:, 0] if isinstance(self.target, str) else found

    def predict_proba(self, X: Floats) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities (rows, classes), in the order of ``classes``."""
        if not self.classes:
            raise ConfigurationError(
                "predicts numbers", where=self._told, remedy="Use predict and predict_interval"
            )
        return self._answers(X)

    def predict_interval(self, X: Floats) -> tuple[Floats, Floats]:  # noqa: N803
        """Lower and upper ends, each as `predict`; infinite where labels were too few."""
        found = self._answers(X)
        half = np.stack([self.intervals[t].half_widths(found[:, k])
                         for k, t in enumerate(self.targets)], axis=1)  # fmt: skip
        low, high = found - half, found + half
        return (low[:, 0], high[:, 0]) if isinstance(self.target, str) else (low, high)

    def score(self, X: Floats, y: NDArray[Any]) -> float:  # noqa: N803
        """Mean R2 of the targets, or the accuracy of classes, as scikit-learn's."""
        predicted, truth = self.predict(X), np.asarray(y)
        if self.classes:
            return float(np.mean(predicted == truth))
        both = (np.reshape(a, (len(truth), -1)).T for a in (truth, predicted))
        return float(np.mean([r_squared(t, p) for t, p in zip(*both, strict=True)]))

    def columns(self, vectors: Floats, name: str | None = None) -> dict[str, NDArray[Any]]:
        """What `apply` adds for these vectors, by column name."""
        found, columns = self._answers(vectors), dict[str, NDArray[Any]]()
        if self.classes:
            (prefix,) = self.prefixes(name)
            words = np.array([str(c) for c in self.classes], object)
            columns = {prefix: words[found.argmax(1)], f"{prefix}_probability": found.max(1)}
            return columns | {f"{prefix}_p_{c}": found[:, k] for k, c in enumerate(self.classes)}
        for k, (target, prefix) in enumerate(zip(self.targets, self.prefixes(name), strict=True)):
            half = self.intervals[target].half_widths(found[:, k])
            columns |= {
                prefix: found[:, k], f"{prefix}_low": found[:, k] - half,
                f"{prefix}_high": found[:, k] + half, f"{prefix}_width": 2 * half,
            }  # fmt: skip
        return columns

    def prefixes(self, name: str | None = None) -> list[str]:
        """Name of each target's predictions."""
        name = name or self.name
        if name is None:
            return [f"{target}_predicted" for target in self.targets]
        return [name] if len(self.targets) == 1 else [f"{name}_{t}" for t in self.targets]

    @property
    def _told(self) -> str:
        return f"probe for {', '.join(self.targets)}"

    def _model(self) -> Model:
        if held := self.neighbours or self.attentive:
            return held
        weights = np.asarray(self.weights, np.float64)
        if not weights.size:
            raise ConfigurationError(
                "not fitted", where=self._told, remedy="Call fit or load first"
            )
        weights = weights.reshape(len(weights), -1)
        intercept = np.atleast_1d(np.asarray(self.intercept, np.float64))
        if self.classes:
            return Logits(weights=weights, intercept=intercept, temperature=self.temperature)
        return Linear(weights=weights, intercept=intercept)

    def _answers(self, inputs: Any) -> NDArray[np.float64]:  # noqa: ANN401 - as the kind reads
        return self._model().predict(inputs)

    def _take(self, fitted: Fitted) -> None:
        model, one = fitted.model, isinstance(self.target, str) and not fitted.classes
        self.neighbours = model if isinstance(model, Neighbours) else None
        self.attentive = model if isinstance(model, Attentive) else None
        self.weights, self.intercept, self.temperature = np.zeros(0), 0.0, 1.0
        if isinstance(model, Linear | Logits):
            self.weights = model.weights[:, 0] if one else model.weights
            self.intercept = float(model.intercept[0]) if one else model.intercept
        if isinstance(model, Logits | Attentive):
            self.temperature = model.temperature
        self.classes, self.intervals = fitted.classes, fitted.intervals
        self.scaler = fitted.scaler
        self.record = {**fitted.facts, "skyvec_version": __version__}

    def _settings(self, *, sky: bool = True) -> Settings:
        return Settings(
            targets=self.targets, kind=self.kind, folds=self.folds, alphas=tuple(self.alphas),
            confidence=self.confidence, bins=self.bins, max_rows=self.max_rows, seed=self.seed,
            block_order=self.block_order, blocks_are_sky=sky,
        )  # fmt: skip

    def _refuse_settings(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(
                "unknown kind of probe", where=self.kind, remedy=f"Use one of {', '.join(KINDS)}"
            )
        if not 0 < self.confidence < 1:
            raise ConfigurationError(
                "must lie between 0 and 1", where=f"confidence = {self.confidence}",
                remedy="0.9 is usual",
            )  # fmt: skip
        if self.kind == "logistic" and len(self.targets) > 1:
            raise ConfigurationError(
                "predicts the classes of one target", where=self._told,
                remedy="Fit one probe for each",
            )  # fmt: skip

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import ClassifierTags, RegressorTags

        tags = super().__sklearn_tags__()
        called = self.kind == "logistic"
        tags.estimator_type = "classifier" if called else "regressor"
        tags.classifier_tags = ClassifierTags() if called else None
        tags.regressor_tags = None if called else RegressorTags()
        tags.target_tags.required = True
        return tags
