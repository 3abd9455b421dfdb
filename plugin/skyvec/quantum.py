"""One quantum of work: a HATS pixel goes in, its verified output file comes out.

Nothing appears under its final name before it was written completely and verified. A pixel whose
data break the contract is reported, not raised, since no retry can mend it.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import spatial_index_to_healpix

from skyvec.hats_output import SKYMAP_ORDER
from skyvec.joined import JoinedRows, join_sources, match_fields, sources_identity
from skyvec.partition import FromSources, TokenizedRows, embed_rows, tokenize_rows
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.row_truth import RowTruth
from skyvec.sources import SourceSpec
from skyvec.worker import ModelReference, model_on_worker
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import ContractError
from skyvec_schemas.provenance import FOOTER_KEY, Provenance, pixel_fingerprint
from skyvec_schemas.quality_flags import INFORMATIVE, Flag
from skyvec_schemas.survey_columns import Survey
from skyvec_schemas.token_columns import token_array, token_type

STAGING, RECORDS = Path(".staging"), Path("skyvec", "records")
PAGE_BYTES = 1 << 20
STEPS = ("match", "read", "tokenize", "encode", "write", "verify")
"""What the time of a quantum is spent on."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker needs to know, and nothing that is heavy."""

    source: str
    """Folder of the input catalog."""
    output: str
    """Folder of the output catalog."""
    survey: Survey
    model: ModelReference
    provenance: Provenance
    columns: EmbeddingColumns | None
    """What to append; None writes tokens instead of vectors."""
    batch_rows: int
    sources: tuple[SourceSpec, ...] = ()
    """What is joined to the catalog."""

    @property
    def source_labels(self) -> tuple[str, ...]:
        """Labels that only a source has; the catalog's own come first."""
        known = dict.fromkeys(self.survey.labels.values())
        offered = [key for spec in self.sources for key in spec.survey.labels.values()]
        return tuple(dict.fromkeys(key for key in offered if key not in known))

    @property
    def token_keys(self) -> tuple[str, ...]:
        """Columns of a token product: the inputs, then the labels."""
        surveys = (self.survey, *(spec.survey for spec in self.sources))
        inputs = tuple(key for survey in surveys for _, key in survey.inputs)
        return (*inputs, *self.survey.labels.values(), *self.source_labels)

    @property
    def match_fields(self) -> tuple[pa.Field, ...]:
        """Which object of each source a row was joined with."""
        prefix = f"{self.columns.name}_" if self.columns else ""
        return tuple(match_fields(prefix, (spec.name for spec in self.sources)))

    @property
    def products(self) -> tuple[str, ...]:
        """Columns that the output adds to the keys."""
        own = self.columns.names if self.columns else self.token_keys
        return (*own, *(field.name for field in self.match_fields))

    def identity(self, release: HatsRelease, pixel: HealpixPixel) -> Mapping[str, object]:
        """What the input of one pixel is, without reading it all."""
        own = dict(release.identity(pixel))
        if not self.sources:
            return own
        joined = sources_identity(release, pixel, survey=self.survey, sources=self.sources)
        return {**own, **joined}


@dataclass(frozen=True, kw_only=True)
class QuantumRecord:
    """What became of one pixel."""

    order: int
    pixel: int
    outcome: str
    """``done``, ``empty``, ``data`` (broken contract) or ``lost`` (worker or disk)."""
    fingerprint: str = ""
    rows: int = 0
    failed_rows: int = 0
    partial_rows: int = 0
    flags: dict[str, int] = field(default_factory=dict)
    """Rows by reason."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Source -> outcomes of the join (``counts``) and the first objects that it could not use."""
    skymap: dict[int, int] = field(default_factory=dict)
    """Rows by HEALPix pixel of order 8."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent in each of `STEPS`."""
    host: str = ""
    device: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """Order and pixel."""
        return self.order, self.pixel

    def save(self, output: Path) -> None:
        """Write beside the data, in one step."""
        place = record_path(output, self.order, self.pixel)
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_suffix(f".{uuid.uuid4().hex}")
        aside.write_text(json.dumps(asdict(self)))
        aside.replace(place)

    @classmethod
    def load(cls, place: Path) -> QuantumRecord:
        """Read `save`."""
        facts = json.loads(place.read_text())
        facts["skymap"] = {int(k): v for k, v in facts["skymap"].items()}
        return cls(**facts)


def record_path(output: Path, order: int, pixel: int) -> Path:
    """Where the record of a pixel lies."""
    return output / RECORDS / f"Norder={order}_Npix={pixel}.json"


def output_is_whole(output: Path, record: QuantumRecord) -> bool:
    """Whether the file of a finished pixel is still there with the rows that its record counts."""
    if record.outcome == "empty":
        return True
    place = Path(str(paths.pixel_catalog_file(output, HealpixPixel(*record.key))))
    try:
        return int(pq.read_metadata(place).num_rows) == record.rows
    except (OSError, pa.ArrowInvalid):
        return False


def run_quantum(job: Job, order: int, pixel: int) -> QuantumRecord:
    """Embed (or tokenize) one pixel; runs on a worker."""
    record = QuantumRecord(
        order=order, pixel=pixel, outcome="done", host=socket.gethostname(), device=job.model.device
    )
    release = HatsRelease.open(job.source)
    place = HealpixPixel(order, pixel)
    try:
        record = _Quantum(job, release, place).run(record)
    except ContractError as problem:
        record = replace(record, outcome="data", error=str(problem))
    record.save(Path(job.output))
    return record


class _Quantum:
    def __init__(self, job: Job, release: HatsRelease, place: HealpixPixel) -> None:
        self.job, self.release, self.place = job, release, place
        self.output = Path(job.output)
        self.staged = self.output / STAGING / f"{place.order}_{place.pixel}.{uuid.uuid4().hex}"
        self.seconds: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.skymap: Counter[int] = Counter()
        self.rows = self.failed = self.partial = 0
        self.joined: JoinedRows | None = None

    def run(self, record: QuantumRecord) -> QuantumRecord:
        identity = self.job.identity(self.release, self.place)
        fingerprint = pixel_fingerprint(self.job.provenance.fingerprint(), identity)
        truth = RowTruth.of(self.release, self.place, self.job.survey.id_column)
        if truth.rows == 0:
            return replace(record, outcome="empty", fingerprint=fingerprint)
        model = model_on_worker(self.job.model)
        self.staged.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.joined = self._join(model)
            self._write(model)
            with self._timed("verify"):
                truth.verify(self.staged, self.job.columns)
            final = Path(str(paths.pixel_catalog_file(self.output, self.place)))
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.staged, final)  # noqa: PTH105 - atomic on every platform
        finally:
            self.staged.unlink(missing_ok=True)
            if self.joined:
                self.joined.spool.close()
        return replace(
            record,
            fingerprint=fingerprint,
            rows=self.rows,
            failed_rows=self.failed,
            partial_rows=self.partial,
            flags=dict(self.flags),
            sources={n: asdict(c) for n, c in self.joined.counts.items()} if self.joined else {},
            skymap=dict(self.skymap),
            seconds={name: round(spent, 4) for name, spent in self.seconds.items()},
        )

    def _join(self, model: Model) -> JoinedRows | None:
        if not self.job.sources:
            return None
        return join_sources(
            self.release,
            self.place,
            survey=self.job.survey,
            sources=self.job.sources,
            model=model,
            labels=() if self.job.columns else self.job.source_labels,
            folder=self.staged.parent,
            batch_rows=self.job.batch_rows,
            timed=self._timed,
        )

    def _write(self, model: Model) -> None:
        schema = output_schema(self.job, self.release)
        options = parquet_options(self.job, schema)
        with pq.ParquetWriter(self.staged, schema, **options) as writer:
            batches = self.release.batches(
                self.place,
                self.job.survey,
                rows=self.job.batch_rows,
                with_labels=self.job.columns is None,
            )
            while True:
                with self._timed("read"):
                    batch = next(batches, None)
                if batch is None:
                    return
                table = self._columns(batch, model, schema)
                with self._timed("write"):
                    writer.write_table(table)

    def _columns(self, batch: pa.RecordBatch, model: Model, schema: pa.Schema) -> pa.Table:
        tokenizing = self.job.columns is None
        start, stop = self.rows, self.rows + len(batch)
        joined = None
        if self.joined:
            ids = batch.column(self.job.survey.id_column)
            self.joined.prove(start, ids, where=str(self.release.leaf(self.place)))
            joined = FromSources(
                tokens=self.joined.tokens(start, stop),
                labels=self.joined.label_tokens(start, stop),
                flags=self.joined.flags[start:stop],
            )
        with self._timed("tokenize"):
            rows = tokenize_rows(
                batch, self.job.survey, model, with_labels=tokenizing, sources=joined
            )
        self._count(batch, rows)
        survey = self.job.survey
        keys = [self.release.healpix_column, survey.id_column, survey.ra_column, survey.dec_column]
        arrays = [batch.column(key) for key in keys]
        if self.job.columns is None:
            arrays += [
                token_array(coded.ids_BN.numpy(), coded.valid_BN.numpy())
                for coded in (*rows.tokens.values(), *rows.labels.values())
            ]
        else:
            with self._timed("encode"):
                vectors = embed_rows(rows, model)
            arrays += self.job.columns.arrays(
                vectors,
                flags=rows.flags,
                modality_bits=rows.modality_bits,
                token_counts=rows.token_counts,
                failed=rows.failed,
            )
        if self.joined:
            arrays += self.joined.columns(start, stop)
        return pa.Table.from_arrays(arrays, schema=schema)

    def _count(self, batch: pa.RecordBatch, rows: TokenizedRows) -> None:
        self.rows += len(batch)
        self.failed += int(rows.failed.sum())
        self.partial += int((((rows.flags & ~INFORMATIVE) != 0) & ~rows.failed).sum())
        for flag in Flag:
            count = int(((rows.flags & flag) != 0).sum())
            if count and flag.name:
                self.flags[flag.name.lower()] += count
        healpix = batch.column(self.release.healpix_column).to_numpy()
        cells, counts = np.unique(
            spatial_index_to_healpix(healpix, SKYMAP_ORDER), return_counts=True
        )
        self.skymap.update(dict(zip(cells.tolist(), counts.tolist(), strict=True)))

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.seconds, name)


class _Timer:
    def __init__(self, seconds: Counter[str], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] += time.perf_counter() - self.start  # type: ignore[assignment]


def output_schema(job: Job, release: HatsRelease) -> pa.Schema:
    """Key columns in the input's own types, then ours; provenance in the schema metadata."""
    survey = job.survey
    keys = [release.healpix_column, survey.id_column, survey.ra_column, survey.dec_column]
    fields = [release.schema.field(key) for key in keys]
    if job.columns is None:
        fields += [pa.field(k, token_type(MODALITIES[k].num_tokens)) for k in job.token_keys]
    else:
        fields += job.columns.fields()
    fields += job.match_fields
    return pa.schema(fields, metadata={FOOTER_KEY: job.provenance.to_json()})


def parquet_options(job: Job, schema: pa.Schema) -> dict[str, object]:
    """Vectors plain and uncompressed, so that a scan reads pages without decoding; keys zstd 1.

    HATS' default (zstd 15 and byte-stream split) costs twenty times the CPU for nothing, and
    DuckDB cannot read it in float16.
    """
    plain = job.columns.vector_leaf if job.columns else None
    leaves = [f"{f.name}.list.element" if _is_tensor(f.type) else f.name for f in schema]
    scalars = [f.name for f in schema if not _is_tensor(f.type)]
    unique = {field.name for field in job.match_fields}
    words = [f.name for f in schema if pa.types.is_string(f.type) and f.name not in unique]
    return {
        "compression": {leaf: "none" if leaf == plain else "zstd" for leaf in leaves},
        "compression_level": {leaf: 1 for leaf in leaves if leaf != plain},
        "use_dictionary": words,
        "write_statistics": scalars,
        "data_page_size": PAGE_BYTES,
    }


def _is_tensor(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedShapeTensorType)
