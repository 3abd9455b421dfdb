"""The objects of an extension that have a vector: who they are, and where their rows lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.products import tensor_of
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.filters import id_as
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.pages import Block
from skyvec_schemas.errors import ConfigurationError, ContractError, SkyvecError


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """Objects, HEALPix pixel by pixel, in the order of their rows."""

    ids: pa.Array
    ra: NDArray[np.float64]
    """Degrees."""
    dec: NDArray[np.float64]
    """Degrees."""
    place: NDArray[np.int32]
    """Of each object's pixel among the pixels of the extension."""
    row: NDArray[np.int64]
    """In the extension's file of that pixel."""
    absent: int
    """Rows of the extension that have no vector."""

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, which: int) -> str:
        """Id of an object as text: numbers of a browser end at 2^53."""
        return str(self.ids[which].as_py())

    def find(self, ids: pa.Array, *, place: int | None = None) -> NDArray[np.int64]:
        """Where these ids stand, in their order; -1 for those that are not there.

        Parameters
        ----------
        place
            Of the only pixel in which to look.
        """
        first, own = 0, self.ids
        if place is not None:
            first, last = np.searchsorted(self.place, [place, place + 1]).tolist()
            own = own.slice(first, last - first)
        # The few are hashed, the many looked up: a table of the many would be made anew each time.
        which = pc.index_in(own, value_set=ids)
        there = np.flatnonzero(which.is_valid().to_numpy(zero_copy_only=False))
        found = np.full(len(ids), -1, np.int64)
        found[which.take(pa.array(there)).to_numpy()] = first + there
        return found

    def find_one(self, name: str, *, place: int | None = None) -> int | None:
        """Where the object with this id, as text, stands; None if it is not there."""
        try:
            wanted = id_as(name, self.ids.type)
        except SkyvecError:
            return None
        found = int(self.find(pa.array([wanted.as_py()], wanted.type), place=place)[0])
        return found if found >= 0 else None

    def take(self, which: NDArray[np.int64]) -> Objects:
        """Some of them; ascending places keep their order by pixel."""
        return Objects(
            ids=self.ids.take(pa.array(which)), ra=self.ra[which], dec=self.dec[which],
            place=self.place[which], row=self.row[which], absent=self.absent,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitBlock:
    """Vectors that lie together in a file, as they are compared by angle."""

    first: int
    """Of them among all objects."""
    values: NDArray[np.float32]
    """(rows, dim), of length 1; vectors of length 0 stay so."""


def read_objects(vectors: VectorCatalog) -> Objects:
    """Every object with a vector; the vectors themselves are not read.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    info = vectors.release.catalog.catalog_info
    columns = [vectors.id_column, str(info.ra_column), str(info.dec_column)]
    ids, ra, dec, places, rows = [], [], [], [], []
    absent = 0
    for place, pixel in enumerate(vectors.release.pixels):
        path = vectors.release.leaf(pixel)
        with open_parquet(path) as file:
            table = file.read(columns=columns)
            null = np.concatenate(
                [np.zeros(0, np.bool_), *(b.null for b in _blocks(vectors, pixel, file))]
            )
        row = np.flatnonzero(~null)
        absent += int(null.sum())
        table = table.take(pa.array(row)) if null.any() else table
        ids.append(table.column(columns[0]).combine_chunks())
        ra.append(table.column(columns[1]).to_numpy().astype(np.float64))
        dec.append(table.column(columns[2]).to_numpy().astype(np.float64))
        places.append(np.full(len(row), place, np.int32))
        rows.append(row)
    if not sum(map(len, rows)):
        raise ConfigurationError(
            f"none of its {absent:,} rows has a vector",
            where=f"{vectors.primary}, extension {vectors.name}",
            remedy=f"Its column {vectors.name}_flags says why; mend the input and embed it again",
        )
    return Objects(
        ids=pa.concat_arrays(ids), ra=np.concatenate(ra), dec=np.concatenate(dec),
        place=np.concatenate(places), row=np.concatenate(rows), absent=absent,
    )  # fmt: skip


def unit_blocks(vectors: VectorCatalog) -> Iterator[UnitBlock]:
    """All vectors in the order of `read_objects`, in memory that does not grow with their number.

    Raises
    ------
    ContractError
        If one holds NaN or infinity.
    """
    first = 0
    for pixel in vectors.release.pixels:
        path = vectors.release.leaf(pixel)
        with open_parquet(path) as file:
            for block in _blocks(vectors, pixel, file):
                yield UnitBlock(first=first, values=_units(block.values, path))
                first += len(block.values)


def unit_vectors(vectors: VectorCatalog, which: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vectors (n, dim) of length 1 of some objects, at ascending places."""
    chosen = []
    for block in unit_blocks(vectors):
        start, stop = np.searchsorted(which, [block.first, block.first + len(block.values)])
        chosen.append(block.values[which[start:stop] - block.first])
    return np.concatenate(chosen)


def _blocks(vectors: VectorCatalog, pixel: HealpixPixel, file: pq.ParquetFile) -> Iterator[Block]:
    return open_vectors(vectors.release.leaf(pixel), vectors.name, file=file).blocks()


def _units(values: NDArray[np.floating], path: Path) -> NDArray[np.float32]:
    # torch's conversion of float16 is thirty times as fast as numpy's.
    wide = tensor_of(values).float().numpy()
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise ContractError(
            f"{int((~np.isfinite(length)).sum()):,} vectors hold NaN or infinity",
            where=str(path),
            remedy="`skyvec verify` lists what is damaged; embed this pixel again",
        )
    return np.asarray(wide / np.where(length > 0, length, 1), np.float32)
