"""Vectors: null only where failed, finite, varied, and none that another object has by accident.

Different tokens never gave one vector in a healthy model, so vectors that repeat although their
tokens differ are those of other rows (a stale buffer, dropped tokens). Many rows with the same many
tokens are what a codec makes of inputs that it blanks (a spectrum padded to nothing).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.extensions.checks.report import Check, Findings
from skyvec.extensions.checks.subject import REDO, LeafFacts, Subject
from skyvec.releases.hats.remote import first_line
from skyvec.stage.row_truth import vector_batches
from skyvec.stage.vector_truth import VectorTruth
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.vectors import tensor_values

MANY_TOKENS = 64
"""Rows made of fewer may well be alike: a few quantized numbers are all that is known of them."""
REPEATED_SHARE = 0.01
"""Of the rows of many tokens, so many may repeat another's vector before something is wrong."""
FOREIGN_SHARE = 0.001
"""... and so many whose tokens differ."""
FREQUENT = 4096
"""Vectors that are counted through the whole extension; any of a larger share is among them."""
PROBED = 32
"""Pairs of one file whose inputs are compared; the others are taken to be like them."""
SHOWN_IDS = 5

SameInput = Callable[[HealpixPixel, int, int], bool]
"""Whether two rows of a pixel have the same input, bit for bit."""


@dataclass
class _Tally:
    """Repeats of the whole extension."""

    rows: int = 0
    """Rows of many tokens with a vector."""
    repeated: int = 0
    """Of these, rows whose vector another row of their file has."""
    foreign: int = 0
    """Of these, rows whose tokens differ from those of that other row."""
    repeated_ids: list[str] = field(default_factory=list)
    foreign_ids: list[str] = field(default_factory=list)
    frequent: Counter[int] = field(default_factory=Counter)
    """Digest of a vector -> rows, at least; a mergeable summary (Agarwal et al. 2012)."""

    def count(self, digests: NDArray[np.int64]) -> None:
        for start in range(0, len(digests), FREQUENT):
            values, counts = np.unique(digests[start : start + FREQUENT], return_counts=True)
            self.frequent.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            if len(self.frequent) > FREQUENT:
                floor = self.frequent.most_common(FREQUENT + 1)[-1][1]
                kept = {value: n - floor for value, n in self.frequent.items() if n > floor}
                self.frequent = Counter(kept)


def check_vectors(subject: Subject, same_input: SameInput | None) -> Check:
    """Look at every vector once, 2048 at a time.

    Parameters
    ----------
    same_input
        Tells real duplicates from accidents, where the input is at hand.
    """
    findings = Findings("vectors")
    if subject.provenance.product != "embedding":
        return findings.not_done("the extension holds tokens, no vectors")
    if subject.columns is None:
        findings.problem(
            f"no column {subject.name!r} with vectors", where=subject.folder, remedy=REDO
        )
        return findings.check("no vectors")
    tally, rows = _Tally(), 0
    for leaf in subject.readable:
        try:
            rows += _look_at(leaf, subject, subject.columns, tally, findings, same_input)
        except (SkyvecError, OSError, pa.ArrowException) as problem:
            findings.problem(
                f"cannot be read ({first_line(problem)})",
                where=subject.shown(leaf.path),
                remedy=REDO,
            )
    _judge(tally, subject, findings)
    return findings.check(f"{rows:,} rows, {tally.repeated:,} repeated vectors")


def _look_at(
    leaf: LeafFacts,
    subject: Subject,
    columns: EmbeddingColumns,
    tally: _Tally,
    findings: Findings,
    same_input: SameInput | None,
) -> int:
    truth, repeats = VectorTruth(columns), _Repeats(columns, subject.keys[1])
    known = set(subject.schema.names) if subject.schema else set()
    names = [subject.keys[1], *(name for name in columns.names if name in known)]
    for batch in vector_batches(leaf.path, names):
        repeats.take(batch)
        truth.take(batch)
    for what in truth.problems():
        findings.problem(what, where=subject.shown(leaf.path), remedy=REDO)
    record = subject.records[leaf.pixel.order, leaf.pixel.pixel]
    for name, told, found in (
        ("failed rows", record.failed_rows, truth.failed),
        ("reasons", dict(record.flags), dict(truth.flags)),
    ):
        if told != found:
            findings.problem(
                f"{name}: {found} in the file, {told} in its record",
                where=subject.shown(leaf.path),
                remedy=REDO,
            )
    repeats.add_to(tally, leaf, same_input)
    return truth.rows


class _Repeats:
    """Rows of one file whose vector another row has."""

    def __init__(self, columns: EmbeddingColumns, id_column: str) -> None:
        self.vector, self.id_column = columns.name, id_column
        self.tokens, self.content = f"{self.vector}_tokens", f"{self.vector}_content"
        self.start = 0
        self.parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        self.ids: list[pa.Array] = []

    def take(self, batch: pa.RecordBatch) -> None:
        column = batch.column(self.vector)
        counts = batch.column(self.tokens).to_numpy(zero_copy_only=False)
        many = column.is_valid().to_numpy(zero_copy_only=False) & (counts >= MANY_TOKENS)
        rows = np.flatnonzero(many)
        vectors = tensor_values(column, missing=0)
        digests = np.array([_digest(vectors[row].tobytes()) for row in rows], np.int64)
        contents = np.zeros(len(batch), np.int64)
        if self.content in batch.schema.names:
            contents = batch.column(self.content).to_numpy(zero_copy_only=False)
        self.parts.append((rows + self.start, digests, contents[rows]))
        self.ids.append(batch.column(self.id_column))
        self.start += len(batch)

    def add_to(self, tally: _Tally, leaf: LeafFacts, same_input: SameInput | None) -> None:
        if not self.parts:
            return
        rows, digests, contents = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        ids = pa.chunked_array(self.ids)
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        origin = first[inverse]
        again = origin != np.arange(len(rows))
        foreign = again & (contents != contents[origin])
        pairs = [(int(rows[origin[at]]), int(rows[at])) for at in np.flatnonzero(again & ~foreign)]
        probed = pairs[:PROBED]
        accidents = [p for p in probed if not (same_input and same_input(leaf.pixel, *p))]
        tally.rows += len(rows)
        tally.foreign += int(foreign.sum())
        tally.repeated += ceil(len(pairs) * len(accidents) / max(len(probed), 1))
        # Objects that the input holds twice are no accident, here as through the extension.
        tally.count(digests if accidents else digests[~again | foreign])
        strangers = [(int(rows[origin[at]]), int(rows[at])) for at in np.flatnonzero(foreign)]
        for kept, found in ((tally.foreign_ids, strangers), (tally.repeated_ids, accidents)):
            kept += [f"{ids[a]} and {ids[b]}" for a, b in found[: SHOWN_IDS - len(kept)]]


def _judge(tally: _Tally, subject: Subject, findings: Findings) -> None:
    where = subject.shown(subject.folder)
    if tally.foreign:
        what = (
            f"{tally.foreign} rows have exactly the vector of another row although their tokens "
            f"differ (ids {'; '.join(tally.foreign_ids)})"
        )
        if tally.foreign > FOREIGN_SHARE * tally.rows:
            findings.problem(
                what, where=where, remedy="The vectors are not of their rows: embed again"
            )
        else:
            findings.note(what)
    common = max(tally.frequent.values(), default=0)
    repeated = max(tally.repeated, common - 1 if common > 2 else 0)
    if repeated:
        what = (
            f"{repeated} of {tally.rows} rows repeat the vector and the tokens of another although "
            f"each is made of {MANY_TOKENS} tokens or more (ids {'; '.join(tally.repeated_ids)})"
        )
        if repeated > max(1, REPEATED_SHARE * tally.rows):
            findings.problem(
                what,
                where=where,
                remedy="Look at these objects: a codec or a reader that blanks its input makes "
                "them alike",
            )
        else:
            findings.note(what)


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
