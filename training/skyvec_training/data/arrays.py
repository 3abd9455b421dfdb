"""Arrays that are written row by row, once, and memory-mapped afterwards.

A folder holds one raw file for each array and, written last, ``arrays.json`` with their shapes and
whatever else the reader must know; without it the folder does not count as written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError

MANIFEST = "arrays.json"

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Array name -> dtype and shape of one row."""


class ArrayWriter:
    """Appends rows to several arrays; use as a context manager, and `commit` when all are there."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        self.folder, self.layout, self.rows = folder, layout, 0
        self._files = {name: (folder / f"{name}.raw").open("wb") for name in layout}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def append(self, **arrays: NDArray[Any]) -> None:
        """Add the same number of rows to every array."""
        counts = {len(values) for values in arrays.values()}
        if arrays.keys() != self.layout.keys() or len(counts) != 1:
            raise ValueError(f"give equally many rows of {', '.join(self.layout)}")
        for name, values in arrays.items():
            dtype, shape = self.layout[name]
            if values.shape[1:] != shape:
                raise ValueError(f"rows of {name} are {values.shape[1:]}, expected {shape}")
            np.ascontiguousarray(values, dtype).tofile(self._files[name])
        self.rows += counts.pop()

    def commit(self, **facts: object) -> None:
        """Declare the arrays complete."""
        for file in self._files.values():
            file.flush()
        arrays = {
            name: [dtype, [self.rows, *shape]] for name, (dtype, shape) in self.layout.items()
        }
        (self.folder / MANIFEST).write_text(json.dumps({"arrays": arrays, "facts": facts}))


def is_written(folder: Path) -> bool:
    """Whether the folder holds complete arrays."""
    return (folder / MANIFEST).is_file()


def open_arrays(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Memory-mapped arrays by name, and the facts of `ArrayWriter.commit`.

    Raises
    ------
    ConfigurationError
        If the folder is not complete, or holds no rows.
    """
    if not is_written(folder):
        raise ConfigurationError(
            f"there is no {MANIFEST}", where=str(folder), remedy="Unpack the catalog again"
        )
    manifest = json.loads((folder / MANIFEST).read_text())
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in manifest["arrays"].items():
        if shape[0] == 0:
            raise ConfigurationError(
                "no object was usable", where=str(folder), remedy="Train on another catalog"
            )
        arrays[name] = np.memmap(folder / f"{name}.raw", dtype, mode="r", shape=tuple(shape))
    return arrays, manifest["facts"]
