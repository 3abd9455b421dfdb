"""Norms of vectors and the modalities they were made of, read from a bounded sample of the leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.remote import open_parquet
from skyvec.stage.output import Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.vectors import tensor_values

ROWS = 20_000
LEAVES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorSample:
    """What was read."""

    rows: int
    """Rows looked at, those without a vector included."""
    leaves: int
    unreadable: tuple[str, ...]
    """Leaves that their records call done, and that cannot be read; with the reason."""
    complete: bool
    """Whether these are all rows of all finished pixels."""
    norms: NDArray[np.float64]
    """Euclidean norms of the vectors, (vectors,)."""
    modalities: dict[tuple[str, ...], int]
    """Modalities used -> rows; most rows first."""


def sample_vectors(
    output: Output, records: Sequence[QuantumRecord], *, name: str, rows: int = ROWS
) -> VectorSample:
    """Look at up to ``rows`` rows from up to `LEAVES` leaves, spread evenly over the pixels."""
    done = [record for record in records if record.outcome == "done" and record.rows]
    places = np.unique(np.linspace(0, len(done) - 1, LEAVES).astype(int))
    chosen = [done[place] for place in places] if done else []
    share = -(-rows // max(1, len(chosen)))
    unreadable, norms, used, seen = [], [], Counter[int](), 0
    for record in chosen:
        try:
            table = _first_rows(output, record, name, share)
        except (OSError, KeyError, pa.ArrowException, SkyvecError) as problem:
            unreadable.append(f"Norder={record.order} Npix={record.pixel}: {problem}")
            continue
        seen += len(table)
        column = table.column(name)
        bits = table.column(f"{name}_modalities").filter(column.is_valid())
        used.update(bits.to_pylist())
        vectors = tensor_values(column.filter(column.is_valid()), missing=np.nan)
        norms.append(np.linalg.norm(vectors.astype(np.float64), axis=1))
    return VectorSample(
        rows=seen,
        leaves=len(chosen) - len(unreadable),
        unreadable=tuple(unreadable),
        complete=seen == sum(record.rows for record in done),
        norms=np.concatenate(norms) if norms else np.zeros(0),
        modalities={modality_names(bits): count for bits, count in used.most_common()},
    )


def modality_names(bits: int) -> tuple[str, ...]:
    """Names of the bits of ``<name>_modalities``, in the order of the registry."""
    return tuple(key for place, key in enumerate(MODALITIES) if bits >> place & 1)


def _first_rows(output: Output, record: QuantumRecord, name: str, rows: int) -> pa.Table:
    """In batches: a row group may be larger than memory should be."""

    def batches() -> Iterator[pa.RecordBatch]:
        left = rows
        for batch in file.iter_batches(
            batch_size=min(rows, 1024), columns=[name, f"{name}_modalities"], use_threads=False
        ):
            yield batch.slice(0, left)
            left -= len(batch)
            if left <= 0:
                return

    with open_parquet(output.leaf(HealpixPixel(*record.key))) as file:
        wanted = [file.schema_arrow.field(column) for column in (name, f"{name}_modalities")]
        return pa.Table.from_batches(batches(), pa.schema(wanted))
