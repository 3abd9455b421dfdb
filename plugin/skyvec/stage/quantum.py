"""One quantum of work: a HATS pixel goes in, its verified output file comes out.

Nothing appears under its final name before it was written completely and verified. A pixel whose
data break the contract is reported, not raised, since no retry can mend it.
"""

from __future__ import annotations

import gc
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import spatial_index_to_healpix
from numpy.typing import NDArray

from skyvec.extensions.hats_output import SKYMAP_ORDER
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.canaries import prove_canaries
from skyvec.stage.earlier import EarlierVectors, earlier_extension, taken_over
from skyvec.stage.failures import in_one_line, is_memory
from skyvec.stage.job import Job
from skyvec.stage.leaf_writer import LeafWriter, file_digest
from skyvec.stage.monitor import Beat
from skyvec.stage.output import Output
from skyvec.stage.partition import TokenizedRows, embed_rows, stored_as
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.quarantine import QuarantineLog, finished_and_whole, take_quarantine
from skyvec.stage.row_stream import PixelRows, Rows, RowStream, TokenRows, opened
from skyvec.stage.row_truth import RowTruth
from skyvec.stage.timing import StepTimes
from skyvec.stage.worker import golden_on_worker, model_on_worker
from skyvec.stage.written_leaf import WrittenLeaf
from skyvec_core.embedder import Model
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import ContractError
from skyvec_schemas.provenance import pixel_fingerprint
from skyvec_schemas.quality_flags import INFORMATIVE, count_reasons
from skyvec_schemas.token_columns import token_array

BEAT_SECONDS = 2.0
"""A pixel says so often how far it is."""

Tell = Callable[[Beat], None]


def run_quantum(
    job: Job,
    order: int,
    pixel: int,
    *,
    attempt: int = 1,
    batch_rows: int | None = None,
    tell: Tell | None = None,
    beat_seconds: float = BEAT_SECONDS,
    worker: str = "",
    release: HatsRelease | None = None,
) -> QuantumRecord:
    """Embed (or tokenize) one pixel; runs on a worker.

    Where memory does not suffice, the pixel is begun anew with half the rows at a time; the rows
    come out the same.

    Parameters
    ----------
    release
        The catalog of the job, where it is open already.

    Raises
    ------
    Exception
        Whatever is not the data's fault, for the driver to sort (`skyvec.stage.failures`).
    """
    place, output = HealpixPixel(order, pixel), Output(job.output)
    rows = batch_rows or job.batch_rows
    while True:
        began = _now()
        record = QuantumRecord(
            order=order, pixel=pixel, outcome="done", attempts=attempt, batch_rows=rows,
            host=socket.gethostname(), worker=worker, device=job.model.device, started=began,
        )  # fmt: skip
        started = time.perf_counter()
        try:
            beats = _Beats(place, tell, every=beat_seconds)
            release = release or opened(job.source, job.run_id)
            record = _Quantum(job, place, output, release, batch_rows=rows, beats=beats).run(record)
        except ContractError as problem:
            if problem.retry:
                raise
            record = replace(record, outcome="data", error=in_one_line(problem))
        except Exception as problem:
            if not is_memory(problem) or rows == 1:
                raise
            rows = max(1, rows // 2)
            _give_memory_back(job.model.device)
            continue
        if record.started != began:
            return record  # another worker, thought dead, has done it meanwhile
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spent = round(time.perf_counter() - started, 4)
        record = replace(record, wall_seconds=spent, peak_memory=peak)
        output.save(record)
        return record


def _give_memory_back(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class _Quantum:
    def __init__(
        self,
        job: Job,
        place: HealpixPixel,
        output: Output,
        release: HatsRelease,
        *,
        batch_rows: int,
        beats: _Beats,
    ) -> None:
        self.job, self.place, self.output, self.release = job, place, output, release
        self.batch_rows = batch_rows
        self.timed = StepTimes()
        self.flags: Counter[str] = Counter()
        self.skymap: Counter[int] = Counter()
        self.rows = self.failed = self.partial = self.reused = 0
        self.log = QuarantineLog.of(self.release, place, job.survey)
        self.earlier: EarlierVectors | None = None
        self.beats = beats

    def run(self, record: QuantumRecord) -> QuantumRecord:
        identity = self.job.identity(self.release, self.place)
        fingerprint = pixel_fingerprint(self.job.provenance.fingerprint(), identity)
        before = self.output.record(self.place)
        if before and before.fingerprint == fingerprint and finished_and_whole(self.output, before):
            return before
        truth = RowTruth.of(self.release, self.place, self.job.survey.id_column)
        if truth.rows == 0:
            return replace(record, fingerprint=fingerprint, outcome="empty")
        if same := self._taken_over(record, fingerprint):
            return same
        model = model_on_worker(self.job.model)
        with self.output.staged(self.place) as staged:
            stream = self._stream(model, staged.parent, rows=truth.rows)
            try:
                self._write(stream, model, staged)
                with self.timed("verify"):
                    self._verify(truth, stream, model, staged)
            finally:
                stream.close()
                if self.earlier:
                    self.earlier.close()
            size, digest = staged.stat().st_size, file_digest(staged)
            joined = stream.joined if isinstance(stream, PixelRows) else None
            for source, refused in (joined.refused if joined else {}).items():
                self.log.add_objects(source, refused)
            self.log.write(self.output)
            self.output.commit(staged, self.place)
        return replace(
            record,
            fingerprint=fingerprint,
            rows=self.rows,
            failed_rows=self.failed,
            partial_rows=self.partial,
            bad_rows=self.log.failed_rows,
            quarantined=self.log.failed,
            reused_rows=self.reused,
            flags=dict(self.flags),
            sources={n: asdict(c) for n, c in joined.counts.items()} if joined else {},
            skymap=dict(self.skymap),
            seconds=self.timed.rounded(),
            bytes=size,
            digest=digest,
            golden=golden_on_worker(self.job.model),
        )

    def _taken_over(self, record: QuantumRecord, fingerprint: str) -> QuantumRecord | None:
        """The leaf of an earlier extension, where input and settings are the same."""
        if not self.job.earlier:
            return None
        earlier = earlier_extension(self.job.earlier, self.job.run_id)
        same = earlier.same_leaf(self.place, fingerprint)
        if same is None or earlier.name != self.output.root.name:
            return None  # columns carry the name of their extension
        if same.outcome == "done":
            with self.output.staged(self.place) as staged:
                if not earlier.take_leaf(same, staged) or not take_quarantine(
                    earlier.output, self.output, same
                ):
                    return None
                self.output.commit(staged, self.place)
        return taken_over(same, started=record.started, host=record.host, worker=record.worker)

    def _stream(self, model: Model, staging: Path, *, rows: int) -> RowStream:
        if self.job.tokens:
            return TokenRows(
                self.job,
                self.job.tokens,
                self.release,
                self.place,
                rows=rows,
                batch_rows=self.batch_rows,
                timed=self.timed,
            )
        return PixelRows(
            self.job, self.release, self.place, model,
            rows=rows, batch_rows=self.batch_rows, staging=staging, timed=self.timed,
        )  # fmt: skip

    def _write(self, stream: RowStream, model: Model, staged: Path) -> None:
        if self.job.columns and self.job.earlier:
            with self.timed("read"):
                earlier = earlier_extension(self.job.earlier, self.job.run_id)
                if earlier.provenance.same_numbers(self.job.provenance):
                    self.earlier = earlier.vectors(self.place, self.job.columns)
        schema = self.job.schema(self.release)
        plain = self.job.columns.vector_leaf if self.job.columns else None
        unique = frozenset(field.name for field in self.job.match_fields)
        with LeafWriter(staged, schema, plain=plain, unique=unique) as writer:
            for rows in stream:
                table = self._table(rows, model, schema)
                self._count(rows, stream)
                with self.timed("write"):
                    writer.write(table)
                self.beats.after(self.rows, self.failed, self.timed.seconds)

    def _verify(self, truth: RowTruth, stream: RowStream, model: Model, staged: Path) -> None:
        columns = self.job.columns
        with WrittenLeaf(staged, columns.name if columns else None) as written:
            truth.verify(written, columns)
            prove_canaries(written, stream, model, self.job, self.place, where=self.log.leaf)

    def _table(self, rows: Rows, model: Model, schema: pa.Schema) -> pa.Table:
        coded = rows.tokenized
        arrays = list(rows.keys.columns)
        if self.job.columns is None:
            arrays += [
                token_array(each.ids_BN.numpy(), each.valid_BN.numpy())
                for each in (*coded.tokens.values(), *coded.labels.values())
            ]
            arrays.append(pa.array(coded.flags, pa.int32()))
        else:
            contents = coded.contents
            arrays += self.job.columns.arrays(
                self._vectors(rows, contents, model, self.job.columns),
                flags=coded.flags,
                modality_bits=coded.modality_bits,
                token_counts=coded.token_counts,
                contents=contents,
                failed=coded.failed,
            )
        return pa.Table.from_arrays([*arrays, *rows.matches], schema=schema)

    def _vectors(
        self, rows: Rows, contents: NDArray[np.int64], model: Model, columns: EmbeddingColumns
    ) -> NDArray[np.floating]:
        if self.earlier is None:
            with self.timed("encode"):
                return stored_as(embed_rows(rows.tokenized, model), columns.dtype)
        with self.timed("read"):
            ids = rows.keys.column(self.job.survey.id_column)
            known, vectors = self.earlier.find(ids, contents)
        fresh = np.setdiff1d(np.arange(len(contents)), known)
        self.reused += len(known)
        merged = np.zeros((len(contents), model.dim), np.float32)
        if len(known):
            merged[known] = vectors
        if len(fresh):
            with self.timed("encode"):
                merged[fresh] = embed_rows(rows.tokenized, model, only=fresh)
        return merged

    def _count(self, rows: Rows, stream: RowStream) -> None:
        coded: TokenizedRows = rows.tokenized
        joined = stream.joined if isinstance(stream, PixelRows) else None
        matched = joined.ids if joined else None
        if coded.flags.any():
            self.log.add_rows(rows.keys, coded.flags, start=self.rows, matched=matched)
            self.partial += int((((coded.flags & ~INFORMATIVE) != 0) & ~coded.failed).sum())
            self.flags.update(count_reasons(coded.flags))
        self.rows += len(coded.flags)
        self.failed += int(coded.failed.sum())
        healpix = rows.keys.column(self.release.healpix_column).to_numpy()
        cells, counts = np.unique(
            spatial_index_to_healpix(healpix, SKYMAP_ORDER), return_counts=True
        )
        self.skymap.update(dict(zip(cells.tolist(), counts.tolist(), strict=True)))


class _Beats:
    """Tells now and then how far a pixel is."""

    def __init__(self, place: HealpixPixel, tell: Tell | None, *, every: float) -> None:
        self.place, self.tell, self.every = place, tell, every
        self.rows = self.failed = 0
        self.seconds: Counter[str] = Counter()
        self.spoken = time.monotonic()

    def after(self, rows: int, failed: int, seconds: Mapping[str, float]) -> None:
        """So many rows are done."""
        if self.tell is None or time.monotonic() - self.spoken < self.every:
            return
        now = Counter(seconds)
        spent = {step: float(now[step] - self.seconds[step]) for step in now}
        beat = Beat(
            order=self.place.order, pixel=self.place.pixel, rows=rows - self.rows,
            failed_rows=failed - self.failed, worker=socket.gethostname(), seconds=spent,
        )  # fmt: skip
        self.rows, self.failed, self.seconds = rows, failed, now
        self.spoken = time.monotonic()
        self.tell(beat)
