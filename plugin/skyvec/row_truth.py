"""Proof that an output file holds the rows of its input: same number, ids and order, real vectors.

Every peer that writes embeddings has shipped rows that belonged to other objects; this is the gate
that no file passes unproven.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.releases.hats.catalog import HatsRelease
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import ContractError, DuplicateIdsError, RowTruthError
from skyvec_schemas.quality_flags import Status
from skyvec_schemas.vectors import tensor_values

_REMEDY = "Nothing was published; report this with the file, it is a defect of skyvec"


@dataclass(frozen=True)
class RowTruth:
    """Ids and spatial indices of one input pixel, in order."""

    place: str
    healpix: pa.ChunkedArray
    healpix_column: str
    ids: pa.ChunkedArray
    id_column: str

    @classmethod
    def of(cls, release: HatsRelease, pixel: HealpixPixel, id_column: str) -> RowTruth:
        """Read the keys of a pixel and refuse ids that are not unique.

        Raises
        ------
        DuplicateIdsError
            With the ids and their rows: a join on them would multiply rows.
        """
        leaf = release.leaf(pixel)
        try:
            with release.open_leaf(pixel) as opened:
                keys = opened.read(columns=[release.healpix_column, id_column])
        except (OSError, pa.ArrowInvalid) as problem:
            raise ContractError(
                f"cannot be read ({str(problem).splitlines()[0]})",
                where=str(leaf),
                remedy="Import or copy this pixel again",
            ) from problem
        ids = keys.column(id_column)
        _refuse_duplicates(ids, leaf, id_column)
        return cls(
            place=str(leaf),
            healpix=keys.column(release.healpix_column),
            healpix_column=release.healpix_column,
            ids=ids,
            id_column=id_column,
        )

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return len(self.ids)

    def verify(self, output: Path, columns: EmbeddingColumns | None) -> None:
        """Compare a written file with the input, row by row.

        Raises
        ------
        RowTruthError
            If a row is lost, doubled or moved, or a vector is not what its status says.
        """
        with pq.ParquetFile(output) as file:
            keys = file.read(columns=[self.healpix_column, self.id_column])
            if len(keys) != self.rows:
                raise self._error(f"{len(keys)} rows written of {self.rows}")
            for name, truth in ((self.id_column, self.ids), (self.healpix_column, self.healpix)):
                if not keys.column(name).equals(truth):
                    raise self._error(f"column {name!r} differs from the input")
            if columns:
                names = list(columns.names[:2])
                written = file.read(columns=[columns.name, columns.names[1]]).select(names)
                self._verify_vectors(written)

    def _verify_vectors(self, written: pa.Table) -> None:
        column, status = written.column(0), written.column(1)
        failed = pc.equal(status, str(Status.FAILED)).to_numpy()
        null = column.is_null().to_numpy()
        if (failed != null).any():
            raise self._error(f"{int((failed != null).sum())} vectors do not match their status")
        vectors = tensor_values(column, missing=np.nan)[~failed]
        if not np.isfinite(vectors).all():
            raise self._error("a vector has a value that is not finite")
        if len(vectors) and not (vectors.max(axis=1) > vectors.min(axis=1)).all():
            raise self._error("a vector is constant")
        if len(vectors) > 2 and (vectors == vectors[0]).all():
            raise self._error("all vectors are one and the same")

    def _error(self, what: str) -> RowTruthError:
        return RowTruthError(what, where=self.place, remedy=_REMEDY)


def _refuse_duplicates(ids: pa.ChunkedArray, leaf: Path, id_column: str) -> None:
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
        where=str(leaf),
        remedy="Remove the duplicates, or name a unique column with --id-column",
    )
