"""Segmentation maps of a survey, unpacked once into memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.observations import fit_to_grid
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import Survey
from skyvec_training.data import parts
from skyvec_training.data.arrays import ArrayWriter, open_arrays

# Shape letters: B object, H W map pixels.

ROWS_PER_READ = 1024
"""Rows in memory at once while unpacking."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapStore:
    """Maps of all objects of a survey, memory-mapped."""

    map_BHW: NDArray[np.float16]
    """Values in [0, 1]; NaN where nothing was measured."""
    ids: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Maps (B, H, W) of some objects."""
        return torch.from_numpy(self.map_BHW[rows].astype(np.float32))


def open_store(folder: Path) -> MapStore:
    """Open arrays written by `unpack`."""
    arrays, _ = open_arrays(folder)
    return MapStore(map_BHW=arrays["map"], ids=arrays["ids"])


def unpack(source: Path, survey: Survey, column: str, folder: Path, *, size: int = 96) -> MapStore:
    """Write the maps of a survey as arrays into ``folder``, cropped or padded to ``size``.

    Raises
    ------
    MissingColumnError
        If a file lacks the column.
    ContractError
        If it holds no maps, or values outside [0, 1].
    """
    with ArrayWriter(folder, {"map": ("<f2", (size, size)), "ids": ("S32", ())}) as writer:
        for part in parts.parts_of(source):
            for ids, found in _batches(part, survey.id_column, column):
                writer.append(
                    map=np.stack([_fitted(m, size, f"{part}, column {column!r}") for m in found]),
                    ids=parts.ids_of(ids),
                )
        writer.commit()
    return open_store(folder)


def _fitted(values: NDArray[Any] | None, size: int, where: str) -> NDArray[np.float32]:
    """One map on the codec's grid; whole numbers are labels of objects, of which 0 is none."""
    if values is None:
        return np.full((size, size), np.nan, np.float32)
    if values.ndim != 2:
        raise ContractError(
            f"a map has {values.ndim} axes where (rows, columns) are needed",
            where=where,
            remedy="Name a column with one map for each object",
        )
    plane = values if values.dtype.kind == "f" else values != 0
    plane = plane.astype(np.float32)
    measured = np.isfinite(plane)
    if ((plane < 0) | (plane > 1))[measured].any():
        raise ContractError(
            f"values lie in {np.nanmin(plane):g}..{np.nanmax(plane):g}, not in 0..1",
            where=where,
            remedy="Give probabilities, or labels as whole numbers",
        )
    placed, kept = fit_to_grid(torch.from_numpy(plane), torch.from_numpy(measured), size=size)
    return torch.where(kept, placed, torch.nan).numpy()


def _batches(
    part: Path, id_column: str, column: str
) -> Iterator[tuple[NDArray[Any], list[NDArray[Any] | None]]]:
    parts.require(part, [id_column, column], remedy="Name the column of maps in the recipe")
    if parts.is_hdf5(part):
        for batch in parts.hdf5_batches(part, [id_column, column], ROWS_PER_READ):
            yield batch[id_column], list(batch[column])
        return
    for batch in pq.ParquetFile(part).iter_batches(ROWS_PER_READ, columns=[id_column, column]):
        ids = batch[id_column].to_numpy(zero_copy_only=False)
        yield ids, [_array(row) for row in batch[column]]


def _array(row: pa.ListScalar) -> NDArray[Any] | None:
    values = row.as_py()
    return None if values is None else np.array(values)
