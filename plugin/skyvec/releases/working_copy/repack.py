"""A release -> a working copy: cutouts cut to the codec's window, contiguous, float16 or float32.

Nothing that a codec reads is changed but the rounding of cutouts to float16, whose largest error
is measured; float32 copies give equal tokens. A pixel's file appears whole or not at all, and one
that was made from the same source in the same way is kept, so a stopped run is continued by the
same command.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index
from numpy.typing import NDArray

from skyvec.releases.mmu.layout import ORDER
from skyvec.releases.sky import near_pixel
from skyvec.releases.source import Source, SourceObjects
from skyvec.releases.versions.manifest import flush
from skyvec.releases.working_copy.file import CopyFile
from skyvec.releases.working_copy.source import (
    MARKER,
    CopiedPixel,
    CopyMarker,
    WorkingCopy,
    copy_path,
    digest_of,
    is_working_copy,
)
from skyvec.releases.working_copy.writer import CopyWriter
from skyvec.version import __version__
from skyvec_schemas.errors import ConfigurationError, ContractError, OutputExistsError

WINDOW = 96
"""Side of the cutouts that the codecs take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repacked:
    """What a run of `repack` did."""

    copy: WorkingCopy
    pixels: int
    kept: int
    """Pixels that were there already."""
    rows: int
    bytes: int
    rounding: float
    """Largest error of a good pixel of any cutout, in the unit of the flux."""
    rounding_sigma: float
    """The same in units of the noise of the cutout's band."""
    scaled: int
    """Cutouts beyond the range of float16, stored by a scale."""
    quarantined: int
    left_out: int
    """Objects left out because they are withdrawn."""


def repack(
    source: Source,
    out: str | Path,
    *,
    pixels: Iterable[HealpixPixel],
    dtype: Literal["float16", "float32"] = "float16",
    window: int = WINDOW,
    provenance: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    rows: int = 128,
    progress: Callable[[int], None] | None = None,
) -> Repacked:
    """Write a working copy of a source.

    Parameters
    ----------
    pixels
        Where the source has objects, of any order.
    window
        Side of the cutouts in pixels; cut as `skyvec_core.observations.fit_to_grid` does.
    provenance
        What the source is, e.g. the release and the digest of its manifest.
    without
        Ids to leave out, as withdrawn.
    rows
        Objects in memory at a time.
    progress
        Called with the number of objects of each pixel.

    Raises
    ------
    OutputExistsError
        If the folder holds something else, or a copy made in another way.
    ContractError
        If the source cannot be read; finished pixels stay.
    """
    if dtype not in {"float16", "float32"}:
        raise ConfigurationError(
            f"{dtype!r} is not known", where="repack", remedy="Choose float16 or float32"
        )
    folder = Path(out)
    marker = CopyMarker(
        survey=source.survey.name,
        token_keys=tuple(dict.fromkeys(key for _, key in source.survey.inputs)),
        window=window,
        dtype=dtype,
        source=dict(provenance or {}),
        builder=f"skyvec {__version__}",
    )
    _prepare(folder, marker)
    run = _Run(source, folder, marker, frozenset(without), rows)
    copied: dict[int, CopiedPixel] = {}
    kept = 0
    for pixel in _of_order(pixels):
        done = run.kept(pixel)
        kept += done is not None
        if part := done or run.copy(pixel):
            copied[pixel.pixel] = part
            if progress:
                progress(part.rows)
    replace(marker, pixels=copied, complete=True).save(folder)
    parts = list(copied.values())
    return Repacked(
        copy=WorkingCopy.open(folder, source.survey),
        pixels=len(copied),
        kept=kept,
        rows=sum(part.rows for part in parts),
        bytes=sum(part.bytes for part in parts),
        rounding=max((part.rounding for part in parts), default=0.0),
        rounding_sigma=max((part.rounding_sigma for part in parts), default=0.0),
        scaled=sum(part.scaled for part in parts),
        quarantined=sum(part.quarantined for part in parts),
        left_out=run.left_out,
    )


@dataclass(slots=True)
class _Run:
    source: Source
    folder: Path
    marker: CopyMarker
    without: frozenset[str]
    rows: int
    left_out: int = 0

    def kept(self, pixel: HealpixPixel) -> CopiedPixel | None:
        """What is there of a pixel, if it was made from what the source holds now."""
        path = copy_path(self.folder, pixel.pixel)
        if not path.is_file():
            return None
        try:
            with CopyFile(path) as file:
                facts, count = file.facts, len(file)
        except ContractError:
            return None
        if facts["source"] != self._made_from(pixel):
            return None
        self.left_out += facts["left_out"]
        return _copied(path, facts, count)

    def copy(self, pixel: HealpixPixel) -> CopiedPixel | None:
        """Copy one pixel; one without any rows gets no file."""
        made_from = self._made_from(pixel)
        objects = self.source.objects(pixel, margin_arcsec=0)
        inside = np.flatnonzero(near_pixel(objects.ra, objects.dec, pixel, margin_arcsec=0))
        chosen = np.array([objects.ids[i] not in self.without for i in inside], np.bool_)
        wanted = inside[chosen]
        self.left_out += len(inside) - len(wanted)
        path = copy_path(self.folder, pixel.pixel)
        if not len(wanted) and not objects.quarantined:
            path.unlink(missing_ok=True)
            return None
        healpix = compute_spatial_index(objects.ra[wanted], objects.dec[wanted])
        order = np.argsort(healpix, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        facts = {
            "source": made_from,
            "identity": json.loads(json.dumps(self._identity(pixel), default=str)),
            "quarantined": [asdict(one) for one in objects.quarantined],
            "left_out": len(inside) - len(wanted),
            "provenance": dict(self.marker.source),
        }
        try:
            with CopyWriter(
                aside,
                _columns(objects, wanted[order], healpix[order]),
                window=self.marker.window,
                dtype=self.marker.dtype,
            ) as writer:
                for reading in self.source.read(objects, wanted, rows=self.rows):
                    writer.write(
                        place[reading.index],
                        reading.observations,
                        reading.labels,
                        reading.flags,
                    )
                facts |= writer.finish(facts)
            aside.replace(path)
            flush(self.folder)
        finally:
            aside.unlink(missing_ok=True)
        return _copied(path, facts, len(wanted))

    def _identity(self, pixel: HealpixPixel) -> Mapping[str, object]:
        return self.source.identity(pixel, margin_arcsec=0)

    def _made_from(self, pixel: HealpixPixel) -> str:
        return digest_of(
            {
                "identity": self._identity(pixel),
                "choices": self.marker.choices(),
                "without": sorted(self.without),
            }
        )


def _columns(
    objects: SourceObjects, rows: NDArray[np.int64], healpix: NDArray[np.int64]
) -> dict[str, NDArray[np.generic]]:
    columns = {
        "object_id": np.char.encode(objects.ids[rows], "utf-8"),
        "ra": objects.ra[rows],
        "dec": objects.dec[rows],
        "_healpix_29": healpix,
    }
    for name, motion in (("pm_ra", objects.pm_ra), ("pm_dec", objects.pm_dec)):
        if motion is not None:
            columns[name] = motion[rows]
    if not columns["object_id"].dtype.itemsize:
        columns["object_id"] = columns["object_id"].astype("S1")  # HDF5 has no empty text type
    return columns


def _copied(path: Path, facts: Mapping[str, object], rows: int) -> CopiedPixel:
    numbers = {name: facts[name] for name in ("source", "rounding", "rounding_sigma", "scaled")}
    return CopiedPixel(
        rows=rows,
        bytes=path.stat().st_size,
        quarantined=len(facts["quarantined"]),  # type: ignore[arg-type]  # a list
        **numbers,  # type: ignore[arg-type]  # as they were written
    )


def _of_order(pixels: Iterable[HealpixPixel]) -> list[HealpixPixel]:
    """The pixels of order 4 that these lie in or consist of."""
    found: set[int] = set()
    for pixel in pixels:
        shift = 2 * (ORDER - pixel.order)
        if shift <= 0:
            found.add(pixel.pixel >> -shift)
        else:
            found.update(range(pixel.pixel << shift, (pixel.pixel + 1) << shift))
    return [HealpixPixel(ORDER, pixel) for pixel in sorted(found)]


def _prepare(folder: Path, marker: CopyMarker) -> None:
    """Make the folder, or check that it is of the same making; mark it unfinished."""
    if folder.exists() and not is_working_copy(folder) and any(folder.iterdir()):
        raise OutputExistsError(
            "something else is there", where=str(folder), remedy="Choose another folder"
        )
    if is_working_copy(folder):
        ours, theirs = marker.choices(), CopyMarker.load(folder).choices()
        if different := [name for name in ours if ours[name] != theirs[name]]:
            name = different[0]
            raise OutputExistsError(
                f"the working copy there has {name} {theirs[name]}, this run {ours[name]}",
                where=str(folder / MARKER),
                remedy="Choose another folder, or remove that copy",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.save(folder)
    except OSError as problem:
        raise ConfigurationError(
            f"cannot be written ({problem.strerror})",
            where=str(folder),
            remedy="Choose a folder on a disk that you may write to",
        ) from problem
