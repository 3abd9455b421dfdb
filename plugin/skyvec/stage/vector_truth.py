"""What must hold of the vectors of one file: null only where failed, finite, not all alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.quality_flags import Status, count_reasons, status_of
from skyvec_schemas.vectors import tensor_values

NAMED_ROWS = 3
"""Rows of each kind of fault that are named; all are counted."""


@dataclass
class _Fault:
    rows: int = 0
    first: list[int] = field(default_factory=list)

    def note(self, bad: NDArray[np.bool_], start: int) -> None:
        found = np.flatnonzero(bad)
        self.rows += len(found)
        self.first += (found[: NAMED_ROWS - len(self.first)] + start).tolist()

    def named(self) -> str:
        more = ", ..." if self.rows > len(self.first) else ""
        return f"{'row' if self.rows == 1 else 'rows'} {', '.join(map(str, self.first))}{more}"


class VectorTruth:
    """Looks at the vectors of a file, piece by piece and in order.

    Parameters
    ----------
    columns
        Of the extension; their names, width and type.
    """

    def __init__(self, columns: EmbeddingColumns) -> None:
        self.columns = columns
        self.rows = 0
        self.failed = 0
        self.flags: Counter[str] = Counter()
        """Rows by reason."""
        self._unmatched, self._status = _Fault(), _Fault()
        self._infinite, self._constant = _Fault(), _Fault()
        self._first: NDArray[Any] | None = None
        self._valid, self._all_same = 0, True

    @property
    def needed(self) -> list[str]:
        """Columns that `take` looks at."""
        return list(self.columns.names[:3])

    def take(self, batch: pa.RecordBatch) -> None:
        """Look at the next rows."""
        vectors, status, flags = (batch.column(name) for name in self.needed)
        failed = pc.equal(status, str(Status.FAILED)).to_numpy(zero_copy_only=False)
        null = vectors.is_null().to_numpy(zero_copy_only=False)
        self._unmatched.note(failed != null, self.rows)
        self._take_flags(status, flags.to_numpy(zero_copy_only=False))
        values = tensor_values(vectors, missing=0)
        finite, varied = _finite_and_varied(values)
        self._infinite.note(~finite & ~null, self.rows)
        self._constant.note(finite & ~varied & ~null, self.rows)
        self._take_likeness(values[~null] if null.any() else values)
        self.rows += len(batch)
        self.failed += int(null.sum())

    def problems(self) -> list[str]:
        """One line for each kind of fault that was found, with the first rows."""
        lines = {
            "{} vectors do not match their status": self._unmatched,
            "{} rows have a status that is not that of their flags": self._status,
            "{} vectors have a value that is not finite": self._infinite,
            "{} vectors are constant": self._constant,
        }
        found = [
            f"{text.format(fault.rows)} ({fault.named()})"
            for text, fault in lines.items()
            if fault.rows
        ]
        if self._valid > 2 and self._all_same:
            found.append(f"all {self._valid} vectors are one and the same")
        return found

    def _take_flags(self, status: pa.Array, flags: NDArray[np.int32]) -> None:
        kinds, which = np.unique(flags, return_inverse=True)
        words = pa.array([str(status_of(bits)) for bits in kinds.tolist()], pa.string())
        other = pc.not_equal(status, words.take(pa.array(which))).fill_null(fill_value=True)
        self._status.note(other.to_numpy(zero_copy_only=False), self.rows)
        self.flags.update(count_reasons(flags))

    def _take_likeness(self, values: NDArray[Any]) -> None:
        if not len(values):
            return
        if self._first is None:
            self._first = values[0].copy()
        self._valid += len(values)
        # The last row tells nearly always.
        self._all_same = self._all_same and all(
            bool((some == self._first).all()) for some in (values[-1], values)
        )


def _finite_and_varied(values: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows (n,) without NaN and infinity, and rows with two different values.

    Magnitudes of floats order as their bits do, and integers compare ten times faster than halves.
    """
    kind = np.dtype(f"i{values.dtype.itemsize}")
    # Copied as bytes: rows of a mapped page seldom lie at a multiple of their size.
    magnitudes = values.view(np.uint8).copy().view(kind)
    magnitudes &= np.iinfo(kind).max
    largest = magnitudes.max(axis=1)
    finite = largest < np.array(np.inf, values.dtype).view(kind)
    varied = largest > magnitudes.min(axis=1)
    # One magnitude may still stand for two values: of either sign.
    alike = np.flatnonzero(~varied)
    varied[alike] = values[alike].max(axis=1) > values[alike].min(axis=1)
    return finite, varied
