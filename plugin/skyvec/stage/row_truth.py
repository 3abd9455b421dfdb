"""Proof that an output file holds the rows of its input: same number, ids and order, real vectors.

Every peer that writes embeddings has shipped rows that belonged to other objects; this is the gate
that no file passes unproven, when it is written and whenever it is verified later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import Leaf
from skyvec.stage.vector_truth import VectorTruth
from skyvec.stage.written_leaf import WrittenLeaf
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import DuplicateIdsError, RowTruthError

_REMEDY = "Nothing was published; report this with the file, it is a defect of skyvec"


@dataclass(frozen=True)
class RowTruth:
    """Keys of one input pixel, in order: what every output of it must begin with."""

    place: str
    keys: pa.Table
    """Spatial index and ids; more keys where they were asked for."""
    healpix_column: str
    id_column: str

    @classmethod
    def of(
        cls,
        release: HatsRelease,
        pixel: HealpixPixel,
        id_column: str,
        *,
        more: Sequence[str] = (),
    ) -> RowTruth:
        """Read the keys of a pixel and refuse ids that are not unique.

        Parameters
        ----------
        more
            Further columns that the output repeats unchanged, such as the position.

        Raises
        ------
        ContractError
            If the pixel cannot be read.
        DuplicateIdsError
            With the ids and their rows: a join on them would multiply rows.
        """
        names = [release.healpix_column, id_column, *more]
        with Leaf.open(release.files(pixel)) as leaf:
            batches = [batch.select(names) for _, batch in leaf.batches(names, rows=1 << 16)]
        schema = batches[0].schema if batches else _fields(release.schema, names)
        keys = pa.Table.from_batches(batches, schema=schema)
        place = str(release.leaf(pixel))
        _refuse_duplicates(keys.column(id_column), place, id_column)
        return cls(
            place=place, keys=keys, healpix_column=release.healpix_column, id_column=id_column
        )

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return len(self.keys)

    def verify(self, written: WrittenLeaf, columns: EmbeddingColumns | None) -> None:
        """Compare a written file with the input, row by row.

        Raises
        ------
        RowTruthError
            If a row is lost, doubled or moved, or a vector is not what its status says.
        """
        problems = list(self.differences(written.file))
        if columns and not problems:
            vectors = VectorTruth(columns)
            for batch in written.batches(vectors.needed):
                vectors.take(batch)
            problems = vectors.problems()
        if problems:
            raise self._error("; ".join(problems))

    def differences(self, output: pq.ParquetFile) -> Iterator[str]:
        """What the keys of a written file have that the input has not; none if they are equal."""
        names = self.keys.column_names
        if absent := [name for name in names if name not in output.schema_arrow.names]:
            yield f"no column {', '.join(map(repr, absent))}"
            return
        written = output.read(columns=names, use_threads=False)
        if len(written) != self.rows:
            yield f"{len(written)} rows written of {self.rows}"
            return
        for name in names:
            ours, truth = written.column(name), self.keys.column(name)
            if ours.type != truth.type:
                yield f"column {name!r} is {ours.type}, {truth.type} in the input"
                continue
            rows = np.flatnonzero(_unequal(ours, truth))
            if len(rows):
                first = int(rows[0])
                yield (
                    f"column {name!r} differs from the input in {len(rows)} rows (the first is "
                    f"row {first}: {ours[first]}, {truth[first]} in the input)"
                )

    def _error(self, what: str) -> RowTruthError:
        return RowTruthError(what, where=self.place, remedy=_REMEDY)


def vector_batches(output: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Rows of an output file in order; unlike pyarrow's own batches, never the file at once.

    Parameters
    ----------
    columns
        At most one of them a tensor.
    """
    schema = pq.read_schema(output)
    tensors = (c for c in columns if isinstance(schema.field(c).type, pa.FixedShapeTensorType))
    with WrittenLeaf(output, next(tensors, None)) as leaf:
        yield from leaf.batches(columns)


def _fields(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


def _unequal(ours: pa.ChunkedArray, truth: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Rows whose values are not the same; null is like null, and NaN like NaN."""
    if ours.equals(truth):
        return np.zeros(len(ours), np.bool_)
    other = pc.fill_null(pc.not_equal(ours, truth), fill_value=False)
    other = pc.or_(other, pc.xor(pc.is_null(ours), pc.is_null(truth)))
    if pa.types.is_floating(ours.type):
        both = pc.and_(pc.is_nan(ours), pc.is_nan(truth))
        other = pc.and_not(other, pc.fill_null(both, fill_value=False))
    return np.asarray(other.to_numpy(), np.bool_)


def _refuse_duplicates(ids: pa.ChunkedArray, place: str, id_column: str) -> None:
    known = ids.drop_null()
    if pc.count_distinct(known).as_py() == len(known):
        return
    counts = Counter(known.to_pylist())
    doubled = [value for value, count in counts.items() if count > 1]
    shown = ", ".join(str(value) for value in doubled[:3])
    rows = [i for i, value in enumerate(ids.to_pylist()) if value == doubled[0]]
    raise DuplicateIdsError(
        f"{len(doubled)} ids in column {id_column!r} occur more than once ({shown}; the first in "
        f"rows {', '.join(map(str, rows[:3]))})",
        where=place,
        remedy="Remove the duplicates, or name a unique column with --id-column",
    )
