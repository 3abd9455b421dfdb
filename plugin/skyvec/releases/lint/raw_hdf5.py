"""Raw samples of the Multimodal Universe's HDF5 files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.lint.raw_sample import (
    COUNTED_FILES,
    KEY_ROWS,
    RawFile,
    RawRelease,
    Rows,
    choose,
    extrapolate,
    is_small,
    logical_columns,
    spread,
)
from skyvec.releases.mmu.layout import HEALPIX, ORDER, SUFFIXES, id_name, image_name, pick
from skyvec_schemas.errors import ContractError, SkyvecError
from skyvec_schemas.survey_columns import Survey

_FOLDER = re.compile(rf"{HEALPIX}=(\d+)")


def sample_mmu(path: str, survey: Survey, *, rows: int = 64, files: int = 3) -> RawRelease:
    """Files spread over the ``healpix=P`` folders, and the size of all.

    Raises
    ------
    ContractError
        If there is no file, or none that can be read.
    """
    places = _files(Path(path))
    if not places:
        raise ContractError(
            "no .hdf5 or .h5 file in any healpix=P folder",
            where=path,
            remedy="Give the folder that holds the healpix=P folders",
        )
    sizes = [place.stat().st_size for place in places]
    counted: dict[int, int] = {}
    problems: list[SkyvecError] = []
    for at in spread(len(places), COUNTED_FILES):
        try:
            counted[at] = _row_count(places[at], survey)
        except SkyvecError as problem:
            problems.append(problem)
    if not counted:
        raise problems[0]
    sampled = []
    for at, share in choose(counted, rows=rows, files=files).items():
        try:
            sampled.append(sample_mmu_file(places[at], survey, rows=share))
        except SkyvecError as problem:
            problems.append(problem)
    return RawRelease(
        files=tuple(sampled),
        rows=extrapolate(sizes, counted),
        bytes=sum(sizes),
        file_count=len(places),
        exact=len(counted) == len(places),
        largest=max(counted.values()),
        problems=tuple(problems),
    )


def sample_mmu_file(path: Path, survey: Survey, *, rows: int) -> RawFile:
    """First rows of one file.

    Raises
    ------
    ContractError
        If it cannot be opened or decoded.
    """
    with _opened(path) as file:
        names = [n for n, item in file.items() if isinstance(item, h5py.Dataset) and item.ndim]
        stored = _stored_names(survey, names)
        try:
            keys = {
                logical: file[name][:KEY_ROWS]
                for logical, name in stored.items()
                if logical not in logical_columns(survey) and file[name].ndim == 1
            }
            arrays = {
                logical: _rows(file[name][: KEY_ROWS if is_small(logical) else rows])
                for logical, name in stored.items()
                if logical in logical_columns(survey)
            }
        except OSError as problem:
            raise _unreadable(path, problem) from problem
        lengths = {name: len(file[name]) for name in names}
    known = _FOLDER.search(path.parent.name)
    return RawFile(
        path=str(path),
        rows=lengths.get(stored.get("id", ""), max(lengths.values(), default=0)),
        columns=tuple(names),
        keys=keys,
        arrays=arrays,
        pixel=HealpixPixel(ORDER, int(known[1])) if known else None,
        lengths=lengths,
    )


def _files(root: Path) -> list[Path]:
    for level in ("", "*/", "*/*/"):
        found = [
            place
            for folder in root.glob(f"{level}{HEALPIX}=*")
            for place in folder.iterdir()
            if place.suffix in SUFFIXES and not place.name.startswith(".")
        ]
        if found:
            return sorted(found)
    return []


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> ContractError:
    what = str(problem).strip().splitlines()
    return ContractError(
        f"cannot be read as HDF5 ({what[0][:80] if what else type(problem).__name__})",
        where=str(path),
        remedy="Copy or download this file again",
    )


def _row_count(path: Path, survey: Survey) -> int:
    with _opened(path) as file:
        name = id_name(survey, file.keys()) or pick((survey.ra_column,), file.keys())
        with suppress(TypeError):  # a scalar: one object in a file of its own
            return len(file[name]) if name else 0
        return 1


def _stored_names(survey: Survey, names: Sequence[str]) -> dict[str, str]:
    """Logical name -> dataset, of those that are there."""
    wanted: dict[str, str | None] = {
        "id": id_name(survey, names),
        "ra": pick((survey.ra_column,), names),
        "dec": pick((survey.dec_column,), names),
        "healpix": HEALPIX if HEALPIX in names else None,
        **{
            scalar: scalar if scalar in names else None
            for scalar in (*(s.name for s in survey.scalars), *survey.labels)
        },
        **{
            logical: pick((column.replace(".", "_"),), names)
            for logical, column in logical_columns(survey).items()
        },
    }
    if survey.image:
        wanted["image.flux"] = image_name(survey, names)
    return {logical: name for logical, name in wanted.items() if name}


def _rows(values: NDArray[Any]) -> Rows:
    if values.dtype.kind == "S":
        values = np.strings.decode(values, "utf-8", "backslashreplace")
    return tuple(values)
