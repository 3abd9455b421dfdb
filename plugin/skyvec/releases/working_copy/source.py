"""A working copy of a release: the codec's window of every cutout, at the speed of the disk.

`skyvec.releases.working_copy.repack` makes it. It is made for one window and is thrown away and made again; the
release stays the only truth. One file for each HEALPix pixel of order 4, see
`skyvec.releases.working_copy.file`, and ``working_copy.json``, which lists them.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.mmu.layout import ORDER
from skyvec.releases.sky import near_pixel, pixels_around
from skyvec.releases.source import Quarantined, Reading, SourceObjects
from skyvec.releases.versions.manifest import flush
from skyvec.releases.working_copy.file import CopyFile
from skyvec.surveys import leave_out, named_survey
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import Survey

MARKER = "working_copy.json"
VERSION = 1
_COLUMNS = ("object_id", "ra", "dec", "pm_ra", "pm_dec")
_REMEDY = "Run `skyvec repack` again; finished pixels are kept"


@dataclass(frozen=True, kw_only=True, slots=True)
class CopiedPixel:
    """What a working copy holds of one pixel."""

    rows: int
    bytes: int
    """Size of the file."""
    source: str
    """Digest of what it was made from and how."""
    rounding: float
    """Largest error of a good pixel, in the unit of the flux."""
    rounding_sigma: float
    """The same in units of the noise of the cutout's band."""
    scaled: int
    """Cutouts that needed a scale, since float16 ends at 65504."""
    quarantined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyMarker:
    """``working_copy.json``."""

    survey: str
    token_keys: tuple[str, ...]
    """What is observed; a survey may have been narrowed."""
    window: int
    """Side of the cutouts in pixels."""
    dtype: str
    """Of the flux of cutouts; all else is kept as it was."""
    source: Mapping[str, str]
    """Release and digest of its manifest, as far as known, and folder."""
    pixels: Mapping[int, CopiedPixel] = field(default_factory=dict)
    """Pixel of order 4 -> what is there."""
    complete: bool = False
    builder: str = ""
    version: int = VERSION

    def choices(self) -> dict[str, object]:
        """What must be equal for two runs to make the same files."""
        names = ("survey", "token_keys", "window", "dtype", "source", "version")
        facts = asdict(self)
        return {name: facts[name] for name in names}

    def save(self, folder: Path) -> None:
        """Write the marker in one step."""
        aside = folder / f".{MARKER}.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        flush(aside)
        os.replace(aside, folder / MARKER)  # noqa: PTH105 - atomic on every platform
        flush(folder)

    @classmethod
    def load(cls, folder: Path) -> CopyMarker:
        """Read `save`.

        Raises
        ------
        ConfigurationError
            If the folder holds no working copy.
        ContractError
            If the marker is damaged or of another version.
        """
        place = folder / MARKER
        if not place.is_file():
            raise ConfigurationError(
                f"no {MARKER} there", where=str(folder), remedy="Make one with `skyvec repack`"
            )
        try:
            facts = json.loads(place.read_text())
            version = facts["version"]
            facts["token_keys"] = tuple(facts["token_keys"])
            facts["pixels"] = {int(p): CopiedPixel(**one) for p, one in facts["pixels"].items()}
            marker = cls(**facts)
        except (ValueError, KeyError, TypeError) as problem:
            raise ContractError(
                "damaged", where=str(place), remedy="Remove the working copy and repack again"
            ) from problem
        if version != VERSION:
            raise ContractError(
                f"version {version}, this skyvec reads {VERSION}",
                where=str(place),
                remedy="Repack with this skyvec",
            )
        return marker


def is_working_copy(path: Path) -> bool:
    """Whether a folder holds a working copy."""
    return (path / MARKER).is_file()


def copy_path(folder: Path, pixel: int) -> Path:
    """File of one pixel."""
    return folder / f"healpix={pixel}.hdf5"


@dataclass(frozen=True, kw_only=True)
class WorkingCopy:
    """A `skyvec.releases.source.Source` over a working copy."""

    path: Path
    marker: CopyMarker
    survey: Survey
    """As in the release, less what it did not hold."""
    _seen: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """Files whose objects were listed, as they were then."""

    @classmethod
    def open(cls, path: str | Path, survey: str | Survey | None = None) -> WorkingCopy:
        """Open a finished working copy.

        Parameters
        ----------
        survey
            Where the copy is of a survey that skyvec does not know by name, or not all of its
            inputs are wanted.

        Raises
        ------
        ConfigurationError
            If there is none, or it was not finished.
        """
        folder = Path(path)
        marker = CopyMarker.load(folder)
        if not marker.complete:
            raise ConfigurationError(
                "the working copy is unfinished", where=str(folder), remedy=_REMEDY
            )
        whole = named_survey(survey or marker.survey)
        held = {column for column, key in whole.inputs if key in marker.token_keys}
        lacking = {column for column, _ in whole.inputs} - held
        narrowed = leave_out(whole, lacking, where=str(folder))
        return cls(path=folder, marker=marker, survey=narrowed)

    @property
    def window(self) -> int:
        """Side of the cutouts in pixels."""
        return self.marker.window

    @cached_property
    def pixels(self) -> list[HealpixPixel]:
        """Pixels with a file, in ascending order."""
        return [HealpixPixel(ORDER, pixel) for pixel in sorted(self.marker.pixels)]

    def objects(self, pixel: HealpixPixel, *, margin_arcsec: float) -> SourceObjects:
        """Ids and positions in a pixel and around it; see `Source.objects`."""
        parts: list[dict[str, NDArray[Any]]] = []
        quarantined: list[Quarantined] = []
        for place in self._files(pixel, margin_arcsec):
            with self._open(place) as file:
                columns = {n: c for n in _COLUMNS if (c := file.column(n)) is not None}
                quarantined += [Quarantined(**one) for one in file.facts["quarantined"]]
            ra, dec = columns["ra"], columns["dec"]
            near = np.flatnonzero(near_pixel(ra, dec, pixel, margin_arcsec=margin_arcsec))
            part = {name: column[near] for name, column in columns.items()}
            part["ids"] = np.char.decode(part.pop("object_id"), "utf-8")
            part["file"] = np.full(len(near), place, np.int32)
            part["row"] = near
            parts.append(part)
        return SourceObjects(**_joined(parts), quarantined=tuple(quarantined))

    def read(
        self, objects: SourceObjects, wanted: NDArray[np.int64], *, rows: int
    ) -> Iterator[Reading]:
        """Observations of the wanted objects, in file order; see `Source.read`."""
        files, places = objects.file[wanted], objects.row[wanted]
        unasked = set(self.marker.token_keys) - {key for _, key in self.survey.inputs}
        order = np.lexsort((places, files))
        for pixel in np.unique(files).tolist():
            here = order[files[order] == pixel]
            with self._open(pixel) as file:
                flags = file.flags
                for start in range(0, len(here), rows):
                    index = here[start : start + rows]
                    chosen = places[index]
                    yield Reading(
                        index=index,
                        observations=file.observations(chosen, without=unasked),
                        flags=flags[chosen],
                        labels=file.labels(chosen),
                    )

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """What the objects of this pixel come from; see `Source.identity`."""
        return {
            "working_copy": self.marker.choices(),
            "files": {
                place: [
                    self.marker.pixels[place].source,
                    copy_path(self.path, place).stat().st_size,
                ]
                for place in self._files(pixel, margin_arcsec)
            },
        }

    def _files(self, pixel: HealpixPixel, margin_arcsec: float) -> list[int]:
        around = pixels_around(pixel, order=ORDER, margin_arcsec=margin_arcsec)
        found = [place for place in around if place in self.marker.pixels]
        for place in found:
            path = copy_path(self.path, place)
            if not path.is_file() or path.stat().st_size != self.marker.pixels[place].bytes:
                raise ContractError(
                    "is missing or not the file that was written", where=str(path), remedy=_REMEDY
                )
        return found

    def _open(self, pixel: int) -> CopyFile:
        path = copy_path(self.path, pixel)
        try:
            status = path.stat()
        except OSError as problem:
            raise ContractError("is missing", where=str(path), remedy=_REMEDY) from problem
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._seen.setdefault(pixel, state) != state:
            raise ContractError(
                "changed since its objects were listed",
                where=str(path),
                remedy="Do not repack while a run reads the copy; run again",
            )
        return CopyFile(path)


def _joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    empty: dict[str, NDArray[Any]] = {
        "ids": np.empty(0, np.str_),
        "ra": np.empty(0),
        "dec": np.empty(0),
        "file": np.empty(0, np.int32),
        "row": np.empty(0, np.int64),
    }
    names = {name for part in parts for name in part} or set(empty)
    return {
        name: np.concatenate([part.get(name, np.full(len(part["ra"]), np.nan)) for part in parts])
        if parts
        else empty[name]
        for name in names
    }


def digest_of(facts: Mapping[str, object]) -> str:
    """Digest of facts, the same for equal ones."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
