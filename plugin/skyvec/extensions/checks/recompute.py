"""Recomputing: a few rows, read anew and embedded alone, come out as stored, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.extensions.checks.recorded_job import NotRecordedError, recorded_model
from skyvec.extensions.checks.report import Check, Findings
from skyvec.extensions.checks.subject import LeafFacts, Subject
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import Leaf
from skyvec.releases.hats.remote import first_line
from skyvec.stage.job import Job
from skyvec.stage.partition import TokenizedRows, embed_rows
from skyvec.stage.row_stream import PixelRows, RowStream, TokenRows
from skyvec.stage.timing import StepTimes
from skyvec_core.embedder import Model
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.token_columns import FLAGS, token_array
from skyvec_schemas.vectors import tensor_values

TOLERANCE = 0.02
"""Of the length of a vector, where it was made on a device of another kind; bits are promised for
one kind only."""
_LOOK = "The rows, their input or the model were mixed up: delete the extension and embed again"
_FAILURES = (SkyvecError, OSError, ValueError, pa.ArrowException)


def check_recomputed(
    subject: Subject,
    source: HatsRelease | str,
    job: Job | str,
    *,
    stale: frozenset[HealpixPixel],
    sample: int,
    model: str | None,
    seed: int,
) -> Check:
    """Embed rows spread over the pixels again, each alone, and compare."""
    findings = Findings("recompute")
    if isinstance(source, str):
        return findings.not_done(source)
    leaves = [leaf for leaf in subject.readable if leaf.pixel not in stale and leaf.rows]
    if not leaves or sample < 1:
        return findings.not_done(
            "there is no row to look at" if sample else "no sample was asked for"
        )
    if isinstance(job, str):
        return findings.not_done(job)
    try:
        job, loaded = recorded_model(subject, job, model)
    except NotRecordedError as problem:
        return findings.not_done(str(problem))
    chosen = choose_rows([leaf.rows for leaf in leaves], sample, seed=seed)
    again = _Again(subject, source, job, loaded, findings)
    if not again.same_device:
        findings.note(
            f"made on {subject.provenance.device}, embedded again on {job.model.device}: compared "
            f"within {TOLERANCE:.0%}, not bit for bit"
        )
    for leaf, rows in zip(leaves, chosen, strict=True):
        if rows:
            again.compare(leaf, rows)
    return findings.check(f"{again.rows:,} rows in {sum(map(bool, chosen)):,} pixels, seed {seed}")


def choose_rows(sizes: Sequence[int], sample: int, *, seed: int) -> list[list[int]]:
    """Rows of each leaf to look at: of as many leaves as possible; equal seeds choose equal rows."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(sizes))
    wanted, left = [0] * len(sizes), min(sample, sum(sizes))
    while left:
        for leaf in order:
            if left and wanted[leaf] < sizes[leaf]:
                wanted[leaf] += 1
                left -= 1
    return [
        sorted(draw.choice(size, count, replace=False).tolist()) if count else []
        for size, count in zip(sizes, wanted, strict=True)
    ]


class _Again:
    def __init__(
        self,
        subject: Subject,
        release: HatsRelease,
        job: Job,
        model: Model,
        findings: Findings,
    ) -> None:
        self.subject, self.release, self.job = subject, release, job
        self.model, self.findings = model, findings
        self.known = set(subject.schema.names) if subject.schema else set()
        self.rows = 0
        self.probed = False

    @property
    def same_device(self) -> bool:
        """Whether bits are promised."""
        return self.job.model.device.partition(":")[0] == self.subject.provenance.device

    def compare(self, leaf: LeafFacts, rows: Sequence[int]) -> None:
        """Make these rows of a pixel anew, each alone."""
        where = self.subject.shown(leaf.path)
        with ExitStack() as stack:
            try:
                stream = self._stream(leaf.pixel, stack, rows=leaf.rows)
            except _FAILURES as problem:
                what = f"its rows cannot be made anew ({first_line(problem)})"
                self.findings.problem(what, where=where, remedy=_LOOK)
                return
            for row in rows:
                try:
                    self._compare_row(leaf, stream, row, where)
                except _FAILURES as problem:
                    what = f"row {row} cannot be made anew ({first_line(problem)})"
                    self.findings.problem(what, where=where, remedy=_LOOK)

    def _stream(self, pixel: HealpixPixel, stack: ExitStack, *, rows: int) -> RowStream:
        stream: RowStream
        if self.job.tokens:
            stream = TokenRows(
                self.job, self.job.tokens, self.release, pixel,
                rows=rows, batch_rows=self.job.batch_rows, timed=StepTimes(),
            )  # fmt: skip
        else:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="skyvec-")))
            stream = PixelRows(
                self.job, self.release, pixel, self.model,
                rows=rows, batch_rows=self.job.batch_rows, staging=folder, timed=StepTimes(),
            )  # fmt: skip
        stack.callback(stream.close)
        return stream

    def _compare_row(self, leaf: LeafFacts, stream: RowStream, row: int, where: str) -> None:
        (coded,) = stream.again([row])
        made = self._columns(coded)
        if isinstance(stream, PixelRows) and stream.joined:
            matches = stream.joined.columns(row, row + 1)
            made |= {f.name: a for f, a in zip(self.job.match_fields, matches, strict=True)}
        stored = _stored_row(leaf, [self.subject.keys[1], *made], row)
        self.rows += 1
        different = [name for name, array in made.items() if not self._same(stored, name, array)]
        if different:
            self.findings.problem(
                f"row {row} (id {stored.column(0)[0]}) comes out otherwise when it is read and "
                f"embedded again: {', '.join(different)}",
                where=where,
                remedy=_LOOK,
            )
        if not self.probed and self.job.columns and not coded.failed[0]:
            self.probed = True
            self._probe(coded, where, row)

    def _columns(self, coded: TokenizedRows) -> dict[str, pa.Array]:
        columns = self.job.columns
        if columns is None:
            made = {
                k: token_array(t.ids_BN.numpy(), t.valid_BN.numpy())
                for k, t in coded.tokens.items()
            }
            made[FLAGS] = pa.array(coded.flags, pa.int32())
        else:
            arrays = columns.arrays(
                embed_rows(coded, self.model),
                flags=coded.flags,
                modality_bits=coded.modality_bits,
                token_counts=coded.token_counts,
                contents=coded.contents,
                failed=coded.failed,
            )
            made = dict(zip(columns.names, arrays, strict=True))
        return {name: array for name, array in made.items() if name in self.known}

    def _same(self, stored: pa.RecordBatch, name: str, made: pa.Array) -> bool:
        found = stored.column(name)
        if not isinstance(found.type, pa.FixedShapeTensorType):
            return bool(found.equals(made))
        if found.null_count or made.null_count:
            return bool(found.null_count == made.null_count)
        ours, theirs = tensor_values(found, missing=0), tensor_values(made, missing=0)
        if self.same_device:
            return ours.tobytes() == theirs.tobytes()
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        return bool(np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs))

    def _probe(self, coded: TokenizedRows, where: str, row: int) -> None:
        """Every modality's last token moves the vector; what drops tokens leaves it as it is."""
        whole = embed_rows(coded, self.model)
        for key, tokens in coded.tokens.items():
            places = np.flatnonzero(tokens.valid_BN[0].numpy())
            if not len(places) or coded.token_counts[0] < 2:
                continue
            valid = tokens.valid_BN.clone()
            valid[0, int(places[-1])] = False
            fewer = {**coded.tokens, key: Tokens(ids_BN=tokens.ids_BN, valid_BN=valid)}
            if np.array_equal(whole, embed_rows(replace(coded, tokens=fewer), self.model)):
                self.findings.problem(
                    f"the last token of {key} does not move the vector of row {row}",
                    where=where,
                    remedy="The model drops tokens in silence: its vectors are not of whole objects",
                )


def _stored_row(leaf: LeafFacts, columns: list[str], row: int) -> pa.RecordBatch:
    with Leaf.open([leaf.path]) as file:
        for start, batch in file.batches(columns, rows=256, wanted=np.array([row])):
            if start <= row < start + len(batch):
                return batch.select(columns).slice(row - start, 1)
    raise ValueError("the file has no such row")
