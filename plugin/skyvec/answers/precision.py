"""Precision of an answer beside the prevalence of what was wanted: never a bare score.

Precision at k says little on its own: a tenth is poor where every second object is wanted, and
three hundredfold where one in three thousand is. The interval is Wilson's (1927), which holds for
few objects and for shares near 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

CONFIDENCE = 0.95
_COUNTS = ("rows", "judged", "hits", "labelled", "positives", "searched")


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Counts by labels; objects without a label are counted and said, and judge nothing."""

    wanted: str
    """What is wanted, in words or as an expression."""
    rows: int
    """Objects of the answer."""
    judged: int
    """Of these, those with a label."""
    hits: int
    """Of these, those that are wanted."""
    labelled: int
    """Objects with a label among all that were searched."""
    positives: int
    """Of these, those that are wanted."""
    searched: int
    """Objects that were searched."""
    unfiltered: bool = False
    """Whether these are the whole extension, though the question had filters."""

    @property
    def precision(self) -> float:
        """Share of the judged objects of the answer that are wanted."""
        return self.hits / self.judged if self.judged else float("nan")

    @property
    def prevalence(self) -> float:
        """Share of the labelled objects of the searched set that are wanted."""
        return self.positives / self.labelled if self.labelled else float("nan")

    @property
    def lift(self) -> float:
        """Precision over prevalence: 1 is chance; not a number where none is wanted."""
        return self.precision / self.prevalence if self.positives else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the precision at 95%; (0, 1) where nothing is judged."""
        from scipy.stats import binomtest

        if not self.judged:
            return 0.0, 1.0
        found = binomtest(self.hits, self.judged).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    @property
    def chance(self) -> float:
        """Probability of as many hits or more if the judged objects were drawn blindly."""
        from scipy.stats import hypergeom

        return float(hypergeom.sf(self.hits - 1, self.labelled, self.positives, self.judged))

    @property
    def lines(self) -> dict[str, str]:
        """For people: precision never without prevalence."""
        low, high = self.interval
        where = (
            "the whole extension, without the filters" if self.unfiltered else "what was searched"
        )
        lines = {
            f"precision at {self.rows}": f"{_percent(self.precision)} ({self.hits} of the "
            f"{self.judged} with a label; 95%: {_percent(low)} to {_percent(high)})",
            "prevalence": f"{_percent(self.prevalence)} of {self.labelled:,} labelled objects in "
            f"{where} ({self.positives:,} with {self.wanted})",
        }
        if self.unfiltered:
            lines["lift"] = (
                "not told: the filters chose, too; judge among what passed them (`among=`)"
            )
        elif self.positives:
            lines["lift"] = (
                f"{self.lift:.2g} times a blind draw, which has as many hits with "
                f"probability {self.chance:.2g}"
            )
        else:
            lines["lift"] = "cannot be told: no labelled object is wanted"
        if missing := self.searched - self.labelled:
            lines["without a label"] = (
                f"{self.rows - self.judged} objects of the answer, {missing:,} of "
                f"{self.searched:,} searched: they count neither way"
            )
        return lines

    def to_json(self) -> dict[str, object]:
        """Counts."""
        return asdict(self)

    @classmethod
    def of_json(cls, facts: Mapping[str, object]) -> Precision:
        """Read `to_json`."""
        counts = {name: int(str(facts[name])) for name in _COUNTS}
        return cls(wanted=str(facts["wanted"]), unfiltered=bool(facts.get("unfiltered")), **counts)


def _percent(share: float) -> str:
    """Two digits that count, down to the rarest."""
    percent = 100 * share
    return f"{percent:.3g}%" if percent < 10 else f"{percent:.0f}%"
