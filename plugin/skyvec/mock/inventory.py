"""What lies in the folder of a mock survey, counted in its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import pyarrow.parquet as pq

from skyvec.mock.releases import FOLDERS
from skyvec.mock.truth import TRUTH_FILE


@dataclass(frozen=True, kw_only=True)
class Written:
    """One catalog or release of a mock survey."""

    what: str
    place: Path
    objects: int
    files: int
    """Files that hold objects."""
    size: int
    """Of these files, bytes."""

    def line(self, out: Path) -> str:
        """One line for people; places relative to the folder of the survey."""
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        size = f"{self.size / 1e6:,.1f} MB" if self.size >= 1e5 else f"{self.size / 1e3:,.0f} kB"
        place = self.place.relative_to(out).as_posix()
        return f"{self.objects:,} objects, {files}, {size} in {place}"


def inventory(out: Path) -> list[Written]:
    """Count the objects and files of everything under ``out``, the collection first."""
    leaves = sorted(out.glob("*/dataset/**/Npix=*.parquet"))
    rows = sum(pq.read_metadata(leaf).num_rows for leaf in leaves)
    found = [_written("collection", leaves[0].parents[3] if leaves else out, rows, leaves)]
    for survey, folder in FOLDERS.items():
        files = sorted((out / "mmu" / folder).glob("healpix=*/*.hdf5"))
        if files:
            found.append(_written(survey, out / "mmu" / folder, sum(map(_objects, files)), files))
    truth = out / "truth" / TRUTH_FILE
    if truth.exists():
        found.append(_written("truth", truth, pq.read_metadata(truth).num_rows, [truth]))
    return found


def _objects(path: Path) -> int:
    with h5py.File(path, "r") as file:
        return len(file["ra"])


def _written(what: str, folder: Path, objects: int, files: Sequence[Path]) -> Written:
    size = sum(path.stat().st_size for path in files)
    return Written(what=what, place=folder, objects=objects, files=len(files), size=size)
