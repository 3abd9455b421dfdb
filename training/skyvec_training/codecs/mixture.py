"""Several sources in one run: which of them a step learns from, and which rows are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import SURVEYS, Survey
from skyvec_training.data.draws import rows_of_step
from skyvec_training.recipe.codecs import CodecSource
from skyvec_training.recipe.reading import rows_to_train

_GOLDEN = (5**0.5 - 1) / 2


class Store(Protocol):
    """Objects on disk that are read by their rows."""

    def __len__(self) -> int: ...


StoreT = TypeVar("StoreT", bound=Store)


@dataclass(frozen=True, slots=True)
class Learnt(Generic[StoreT]):
    """One source with its data."""

    source: CodecSource
    store: StoreT

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def train_rows(self) -> int:
        """Rows that are trained on; the others, at the end, are held out."""
        return rows_to_train(len(self.store), self.source.held_out, where=self.source.name)

    def held_out(self, most: int) -> NDArray[np.int64]:
        """At most so many held-out rows, spread evenly over all of them."""
        rows = np.arange(self.train_rows, len(self.store))
        return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


class Mixture(Generic[StoreT]):
    """Sources by weight.

    Raises
    ------
    ConfigurationError
        If there is none, or one has no objects beside those that are held out.
    """

    def __init__(self, sources: Sequence[Learnt[StoreT]]) -> None:
        if not sources:
            raise ConfigurationError(
                "there is no source", where="codec", remedy="Name a survey in the recipe"
            )
        for learnt in sources:
            if learnt.source.held_out < 1 or learnt.train_rows < 1:
                raise ConfigurationError(
                    "held_out is 0", where=learnt.name, remedy="Hold objects out to be scored on"
                )
        self.sources = list(sources)
        weights = np.array([learnt.source.weight for learnt in sources])
        self._edges = weights.cumsum() / weights.sum()

    def of_step(self, step: int) -> Learnt[StoreT]:
        """The source of a step: after n steps each had its share of them to within a few."""
        # Multiples of the golden ratio fill [0, 1) evenly, whatever the shares.
        place = (step + 0.5) * _GOLDEN % 1
        chosen = int(np.searchsorted(self._edges, place, side="right"))
        return self.sources[min(chosen, len(self.sources) - 1)]

    def rows(self, step: int, *, batch: int, seed: int) -> tuple[Learnt[StoreT], NDArray[np.int64]]:
        """Source and training rows (batch,) of a step."""
        learnt = self.of_step(step)
        rows = rows_of_step(seed=seed, step=step, batch=batch, rows=learnt.train_rows)
        return learnt, rows

    def mean(self, losses: Sequence[float]) -> dict[str, float]:
        """``loss`` weighted as the steps are, and, if there are several, that of each source."""
        shares = np.diff(self._edges, prepend=0.0)
        total = {"loss": float((shares * losses).sum())}
        if len(self.sources) == 1:
            return total
        each = zip(self.sources, losses, strict=True)
        return total | {f"loss_{learnt.name}": loss for learnt, loss in each}


def survey_of(source: CodecSource) -> Survey:
    """The survey that describes a source's columns.

    Raises
    ------
    ConfigurationError
        If it is not known; lists those that are.
    """
    if source.survey_name not in SURVEYS:
        raise ConfigurationError(
            f"no such survey {source.survey_name!r}",
            where=f"source {source.name}",
            remedy=f"Choose among {', '.join(SURVEYS)}",
        )
    return SURVEYS[source.survey_name]
