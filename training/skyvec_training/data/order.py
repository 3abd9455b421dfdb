"""Which row a slot of a step trains on: a mixture of data sets, each shuffled anew every epoch.

Everything follows from (seed, step, slot): no state, no table of rows, the same global batch on
any number of ranks. Data sets are interleaved as evenly as their weights allow, so each step has
its share of each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.data.draws import shuffled

Rows = NDArray[np.int64]

PERIOD = 1 << 16
"""Slots after which the interleaving of data sets repeats: weights are rounded to its parts."""


class Kept:
    """The rows ``start`` to ``stop`` without a few of them; memory goes with the few."""

    def __init__(self, start: int, stop: int, without: Rows) -> None:
        self.start, self.stop, self.without = start, stop, without  # ascending
        self._before = without - start - np.arange(len(without))
        """Kept rows before each row that is left out."""

    def __len__(self) -> int:
        return self.stop - self.start - len(self.without)

    def at(self, places: Rows) -> Rows:
        """The kept rows at these places."""
        return self.start + places + np.searchsorted(self._before, places, side="right")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One data set of a mixture."""

    name: str
    rows: Kept
    weight: float


class Mixture:
    """Rows to train on, and their order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = [part for part in parts if part.weight > 0]
        quotas = _quotas(np.array([part.weight for part in self.parts]))
        # The i-th of q slots of a part lies at (i + 1/2) / q of the period.
        spread = np.concatenate([(np.arange(q) + 0.5) / q for q in quotas])
        parts_P = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(spread, kind="stable")]
        earlier_P = np.empty(PERIOD, np.int64)
        for index, quota in enumerate(quotas):
            earlier_P[parts_P == index] = np.arange(quota)
        self._quotas, self._parts_P, self._earlier_P = quotas, parts_P, earlier_P

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the slots that each data set gets."""
        return {
            part.name: int(quota) / PERIOD
            for part, quota in zip(self.parts, self._quotas, strict=True)
        }

    def rows_of_slots(self, *, seed: int, step: int, slots: range, batch: int) -> Rows:
        """Rows (slots,) of some slots of a step.

        Parameters
        ----------
        batch
            Slots of a step, over all ranks.
        """
        periods, within = np.divmod(step * batch + np.arange(slots.start, slots.stop), PERIOD)
        parts_B = self._parts_P[within]
        places_B = periods * self._quotas[parts_B] + self._earlier_P[within]
        rows_B = np.empty(len(slots), np.int64)
        for index in np.unique(parts_B):
            part, chosen = self.parts[index], parts_B == index
            order = shuffled(places_B[chosen], seed=seed, rows=len(part.rows), name=part.name)
            rows_B[chosen] = part.rows.at(order)
        return rows_B


def mixture_of(rows: Mapping[str, Kept], weights: Mapping[str, float], *, where: str) -> Mixture:
    """A mixture of data sets by weights, or by size where there are none.

    Raises
    ------
    ConfigurationError
        If the weights name other data sets than there are, or one to train on is empty.
    """
    if weights and weights.keys() != rows.keys():
        raise ConfigurationError(
            f"data.weights names {', '.join(sorted(weights))}; there are {', '.join(sorted(rows))}",
            where=where,
            remedy="Give each data set a weight (0 leaves it out), or none of them",
        )
    parts = [
        Part(name=name, rows=kept, weight=weights.get(name, len(kept)))
        for name, kept in rows.items()
    ]
    empty = [part.name for part in parts if part.weight > 0 and not len(part.rows)]
    if empty or not any(part.weight for part in parts):
        raise ConfigurationError(
            f"no object to train on in {', '.join(empty or rows)}",
            where=where,
            remedy="Lower data.held_out in the recipe, or train on more objects or domains",
        )
    return Mixture(parts)


def _quotas(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Slots of a period for each weight, at least one each; rounding goes to the largest."""
    quotas = np.maximum(np.round(weights / weights.sum() * PERIOD).astype(np.int64), 1)
    quotas[np.argmax(quotas)] += PERIOD - quotas.sum()
    return quotas
