"""Vectors of an earlier extension, taken over where id and tokens are the same.

A model sees nothing but tokens: a row of the same id whose tokens have the same digest, under the
same model, precision and code, has the same vector, so a new release pays for changed rows only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.remote import open_parquet
from skyvec.stage.leaf_writer import file_digest
from skyvec.stage.output import Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.record_table import Key, overlap
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import Provenance
from skyvec_schemas.quality_flags import Status
from skyvec_schemas.vectors import tensor_values

_HELD_GROUPS = 4
"""Row groups whose vectors are held decoded; both releases have nearly the same order."""


class EarlierExtension:
    """An extension that a run may take vectors, or whole files, from."""

    def __init__(self, folder: str) -> None:
        self.output = Output(folder)
        provenance = self.output.earlier()
        if provenance is None:
            raise ConfigurationError(
                "was not made by skyvec",
                where=folder,
                remedy="Name the properties file or the folder of an earlier extension",
            )
        self.provenance: Provenance = provenance
        self.name = self.output.root.name

    def same_leaf(self, pixel: HealpixPixel, fingerprint: str) -> QuantumRecord | None:
        """The record of a pixel that was made from the same input by the same run settings."""
        record = self._near(pixel).get((pixel.order, pixel.pixel))
        if record is None or not record.finished or record.fingerprint != fingerprint:
            return None
        return record if self.output.is_whole(record) else None

    def take_leaf(self, record: QuantumRecord, to: Path) -> bool:
        """Link or copy a leaf of `same_leaf`; False if its bytes are not those once written."""
        leaf = self.output.leaf(HealpixPixel(*record.key))
        if self.output.remote:
            self.output.root.fs.get_file(leaf.path, str(to))  # type: ignore[attr-defined]
        else:
            try:
                os.link(leaf, to)
            except OSError:  # another file system
                shutil.copyfile(leaf, to)
        return bool(record.digest) and file_digest(to) == record.digest

    def vectors(self, pixel: HealpixPixel, columns: EmbeddingColumns) -> EarlierVectors:
        """What it has for the rows of a pixel, however its own pixels are cut."""
        near = self._near(pixel)
        done = [near[key] for key in sorted(near) if near[key].outcome == "done"]
        return EarlierVectors(self, done, columns)

    def _near(self, pixel: HealpixPixel) -> dict[Key, QuantumRecord]:
        fresh = {key: record for key, record in self._fresh.items() if overlap(key, pixel)}
        return {**self.output.gathered(pixel), **fresh}

    @cached_property
    def _fresh(self) -> dict[Key, QuantumRecord]:
        """What a run that was killed had not gathered; none otherwise."""
        return {record.key: record for record in self.output.fresh()}


class EarlierVectors:
    """Vectors of some leaves, found by id and content."""

    def __init__(
        self,
        extension: EarlierExtension,
        records: Sequence[QuantumRecord],
        columns: EmbeddingColumns,
    ) -> None:
        self._vector = extension.name
        self._files: list[pq.ParquetFile] = []
        ids: list[pa.ChunkedArray] = []
        contents, files, rows = [], [], []
        for record in records:
            file = _unharmed(extension, record, columns)
            if file is None:
                continue
            id_column = file.schema_arrow.names[1]
            names = (id_column, f"{self._vector}_status", f"{self._vector}_content")
            table = file.read(columns=list(names))
            usable = np.flatnonzero(table.column(names[1]).to_numpy() != str(Status.FAILED))
            ids.append(table.column(id_column).take(usable))
            contents.append(table.column(names[2]).to_numpy()[usable])
            files.append(np.full(len(usable), len(self._files)))
            rows.append(usable)
            self._files.append(file)
        self._ids = pa.chunked_array([c for each in ids for c in each.chunks]) if ids else None
        self._contents = np.concatenate(contents) if ids else np.zeros(0, np.int64)
        self._places = np.stack([np.concatenate(files), np.concatenate(rows)], 1) if ids else None
        self._group = lru_cache(maxsize=_HELD_GROUPS)(self._read_group)

    def find(
        self, ids: pa.Array, contents: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Rows whose vector is known, and those vectors, as stored."""
        none = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        if self._ids is None or self._places is None or self._ids.type != ids.type:
            return none
        at = pc.index_in(ids, value_set=self._ids).fill_null(-1).to_numpy(zero_copy_only=False)
        there = (at >= 0) & ids.is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(there & (self._contents[at] == contents))
        if not len(rows):
            return none
        vectors = [self._vector_at(file, row) for file, row in self._places[at[rows]].tolist()]
        return rows, np.stack(vectors)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _vector_at(self, file: int, row: int) -> NDArray[np.floating]:
        metadata = self._files[file].metadata
        group = 0
        while row >= metadata.row_group(group).num_rows:
            row -= metadata.row_group(group).num_rows
            group += 1
        vector: NDArray[np.floating] = self._group(file, group)[row]
        return vector

    def _read_group(self, file: int, group: int) -> NDArray[np.floating]:
        table = self._files[file].read_row_group(group, columns=[self._vector])
        return tensor_values(table.column(0), missing=np.nan)


@lru_cache(maxsize=1)
def earlier_extension(folder: str, run_id: str) -> EarlierExtension:
    """Opened once in each process and run."""
    del run_id
    return EarlierExtension(folder)


def _unharmed(
    extension: EarlierExtension, record: QuantumRecord, columns: EmbeddingColumns
) -> pq.ParquetFile | None:
    """A leaf with vectors of our type whose bytes are those once written; else its rows are made."""
    leaf = extension.output.leaf(HealpixPixel(*record.key))
    if not extension.output.is_whole(record) or not record.digest:
        return None
    if not extension.output.remote and file_digest(leaf) != record.digest:
        return None
    file = open_parquet(leaf)
    return (
        file if file.schema_arrow.field(extension.name).type == columns.fields()[0].type else None
    )


def taken_over(record: QuantumRecord, *, started: str, host: str, worker: str) -> QuantumRecord:
    """The record of a leaf that came from an earlier extension as it was."""
    return replace(
        record, reused_rows=record.rows, seconds={}, wall_seconds=0.0, attempts=1, host=host,
        worker=worker, started=started,
    )  # fmt: skip
