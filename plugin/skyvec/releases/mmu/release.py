"""A Multimodal Universe release in HDF5: folders ``healpix=P`` of order 4 with files of columns."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import radec2pix
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from numpy.typing import NDArray

from skyvec.releases.ids import canonical_ids
from skyvec.releases.mmu.file import MmuFile, Stamp
from skyvec.releases.mmu.folders import in_folder, what_went_wrong
from skyvec.releases.mmu.layout import HEALPIX, ORDER, PIXELS, SUFFIXES, pick
from skyvec.releases.mmu.observing import Chosen, Labels, parts_of
from skyvec.releases.sky import meet_ranges, near_pixel, pixels_around, ranges_around
from skyvec.releases.source import Quarantined, Reading, SourceObjects
from skyvec_core.observations import Observed
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import Survey

_FOLDER = re.compile(rf"{HEALPIX}=(\d+)")
_END_BYTES = 1 << 16
"""Bytes at the start and the end of a file whose digest stands for the whole of it."""
Degrees = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MmuRelease:
    """One survey of a release; a `Source`.

    A row is found by the folder that it lies in. Single rows whose position is not in their
    folder's pixel are therefore quarantined; if they are more than 1%, the file is refused with
    what went wrong (RING ordering, another NSIDE, ra and dec swapped, radians). Ids that occur
    twice are handed on as they are, for the join to judge. Changing a file between `objects` and
    the end of `read` is an error.
    """

    survey: Survey
    root: Path
    files: tuple[Path, ...]
    """Every file with objects; `SourceObjects.file` points into it."""
    folders: Mapping[int, tuple[int, ...]]
    """Order-4 pixel -> its files."""
    window: int | None = 96
    """Only the centre of a stamp with so many pixels on a side is read; None for the whole."""
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Digests that a manifest vouches for, by path relative to `root`."""
    _seen: dict[int, Stamp] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        survey: Survey,
        *,
        window: int | None = 96,
        sha256: Mapping[str, str] | None = None,
    ) -> MmuRelease:
        """Find the files of a release; none is opened yet.

        Parameters
        ----------
        path
            The folder that holds ``healpix=P``, or the one above it. Digits may be padded with
            zeros, and a folder may hold several ``.hdf5`` or ``.h5`` files.
        window
            Side of the centre of a stamp that is read, in pixels; None reads the whole.
        sha256
            Digests of files by relative path, e.g. from a release manifest.

        Raises
        ------
        ConfigurationError
            If there is no such folder, or it has no such folders.
        ContractError
            If a folder's number is none of NSIDE 16, or a file is a link to outside of ``path``.
        """
        root = Path(path)
        found = [*root.glob(f"{HEALPIX}=*"), *root.glob(f"[!.]*/{HEALPIX}=*")]
        folders = sorted((_pixel_of(place), place) for place in found if place.is_dir())
        if not folders:
            raise ConfigurationError(
                "no healpix=P folders" if root.exists() else "there is no such folder",
                where=str(root),
                remedy="Give the folder of one survey that holds healpix=0 ... healpix=3071",
            )
        files: list[Path] = []
        of_pixel: dict[int, tuple[int, ...]] = defaultdict(tuple)
        for pixel, folder in folders:
            for file in sorted(folder.iterdir()):
                if file.suffix in SUFFIXES and not file.name.startswith((".", "_")):
                    _require_inside(root, file)
                    of_pixel[pixel] += (len(files),)
                    files.append(file)
        return cls(
            survey=survey,
            root=root,
            files=tuple(files),
            folders=dict(of_pixel),
            window=window,
            sha256=dict(sha256 or {}),
        )

    def name(self, file: int) -> str:
        """A file's path relative to the root."""
        return self.files[file].relative_to(self.root).as_posix()

    def _around(self, pixel: HealpixPixel, margin_arcsec: float) -> list[tuple[int, int]]:
        """(folder, file) of all files that may hold objects of a pixel and its margin."""
        folders = np.array(sorted(self.folders), np.int64)
        span = 4 ** (SPATIAL_INDEX_ORDER - ORDER)
        cells = np.stack([folders, folders + 1], axis=1) * span
        near = meet_ranges(cells, ranges_around(pixel, margin_arcsec=margin_arcsec))
        return [(place, file) for place in folders[near].tolist() for file in self.folders[place]]

    def objects(self, pixel: HealpixPixel, *, margin_arcsec: float) -> SourceObjects:
        """See `Source.objects`.

        Rows without a usable position or id are quarantined, by every pixel that overlaps their
        folder, since nobody knows which they belong to.
        """
        own = set(pixels_around(pixel, order=ORDER, margin_arcsec=0))
        located = []
        for folder, file in self._around(pixel, margin_arcsec):
            with MmuFile(self.files[file]) as opened:
                found = self._locate(opened, file, folder, pixel, margin_arcsec)
                opened.check_unchanged(opened.stamp)
                self._seen[file] = opened.stamp
            located.append(found if folder in own else replace(found, quarantined=()))
        return _together(located, self.survey)

    def _locate(
        self, opened: MmuFile, file: int, folder: int, pixel: HealpixPixel, margin_arcsec: float
    ) -> SourceObjects:
        """Objects of one file in a pixel and its margin."""
        id_name = opened.id_name(self.survey)
        raw_ids = opened.column(id_name)
        count = len(raw_ids)
        ra, dec = (
            self._degrees(opened, column, count)
            for column in (self.survey.ra_column, self.survey.dec_column)
        )
        inside = in_folder(ra, dec, folder)
        if wrong := what_went_wrong(ra, dec, inside, folder):
            raise opened.refused(
                wrong,
                dataset=self.survey.ra_column,
                remedy="Sort the rows into nested order-4 pixels of positions in degrees",
            )
        near = np.zeros(count, np.bool_)
        near[inside] = near_pixel(ra[inside], dec[inside], pixel, margin_arcsec=margin_arcsec)
        rows = np.flatnonzero(near)
        ids = _ids(opened, id_name, raw_ids[rows])
        nameless = ids == ""
        reasons = {int(row): "has no id" for row in rows[nameless]} | {
            int(row): _why(ra[row], dec[row]) for row in np.flatnonzero(~inside)
        }
        quarantined = tuple(
            Quarantined(
                file=self.name(file),
                row=row,
                object_id=str(_ids(opened, id_name, raw_ids[row : row + 1])[0]),
                reason=reasons[row],
            )
            for row in sorted(reasons)
        )
        rows = rows[~nameless]
        motions = (self.survey.pm_ra_column, self.survey.pm_dec_column)
        pm_ra, pm_dec = (_optional(opened, column, rows, count) for column in motions)
        return SourceObjects(
            ids=ids[~nameless],
            ra=ra[rows] % 360,
            dec=dec[rows],
            file=np.full(len(rows), file, np.int32),
            row=rows.astype(np.int64),
            pm_ra=pm_ra,
            pm_dec=pm_dec,
            quarantined=quarantined,
        )

    def _degrees(self, opened: MmuFile, column: str, count: int) -> Degrees:
        name = opened.named((column,), remedy="Every object needs a position in degrees")
        values = opened.column(name, count)
        if values.dtype.kind not in "fiu" or values.ndim != 1:
            raise opened.refused(
                f"is {values.dtype} {values.shape[1:]}, not one number for each row",
                dataset=name,
                remedy="Write positions in degrees as floats",
            )
        return values.astype(np.float64)

    def read(
        self, objects: SourceObjects, wanted: NDArray[np.int64], *, rows: int
    ) -> Iterator[Reading]:
        """See `Source.read`; in the order of files and rows, each reading from one file."""
        wanted = np.asarray(wanted, np.int64)
        order = np.lexsort((objects.row[wanted], objects.file[wanted]))
        files = objects.file[wanted][order]
        for file in np.unique(files).tolist():
            places = order[files == file]
            yield from self._read(file, places, objects.row[wanted[places]], rows)

    def _read(
        self, file: int, places: NDArray[np.int64], rows: NDArray[np.int64], at_once: int
    ) -> Iterator[Reading]:
        with MmuFile(self.files[file]) as opened:
            since = self._seen.get(file, opened.stamp)
            opened.check_unchanged(since)
            count = int(opened.dataset(opened.id_name(self.survey)).size)
            chosen = Chosen(file=opened, rows=rows, count=count)
            parts = parts_of(self.survey, chosen, window=self.window)
            labels = Labels(self.survey, chosen)
            for start in range(0, len(rows), at_once):
                stop = min(start + at_once, len(rows))
                observations: dict[str, Observed] = {}
                flags = np.zeros(stop - start, np.int32)
                for part in parts:
                    observed, doubts = part.observe(start, stop)
                    observations |= observed
                    flags |= doubts
                taught = labels.take(start, stop)
                opened.check_unchanged(since)
                yield Reading(
                    index=places[start:stop], observations=observations, flags=flags, labels=taught
                )

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """Per file its size and digest: that of the manifest, else of its first and last 64 kB.

        Copies have the same identity, since times do not count.
        """
        return {self.name(file): self._identity(file) for _, file in
                self._around(pixel, margin_arcsec)}  # fmt: skip

    def _identity(self, file: int) -> Mapping[str, object]:
        with MmuFile(self.files[file]) as opened:
            size = opened.stamp.size
            if vouched := self.sha256.get(self.name(file)):
                return {"bytes": size, "sha256": vouched}
            ends = os.pread(opened.descriptor, _END_BYTES, 0)
            ends += os.pread(opened.descriptor, _END_BYTES, max(0, size - _END_BYTES))
            rows = opened.dataset(opened.id_name(self.survey)).size
        return {"bytes": size, "rows": int(rows), "ends": hashlib.sha256(ends).hexdigest()}


def _pixel_of(folder: Path) -> int:
    match = _FOLDER.fullmatch(folder.name)
    if not match or int(match[1]) >= PIXELS:
        raise ContractError(
            f"is no pixel of NSIDE 16 (0 to {PIXELS - 1})",
            where=str(folder),
            remedy="Number the folders healpix=P by nested order-4 pixels",
        )
    return int(match[1])


def _require_inside(root: Path, file: Path) -> None:
    if not file.resolve().is_relative_to(root.resolve()):
        raise ContractError(
            f"is a link to {file.resolve()}, outside of the release",
            where=str(file),
            remedy="Copy the file in, or give the folder that it lies in",
        )


def _ids(opened: MmuFile, name: str, values: NDArray[np.generic]) -> NDArray[np.str_]:
    try:
        return canonical_ids(values)
    except TypeError as problem:
        raise opened.refused(
            str(problem), dataset=name, remedy="Write ids as 64-bit integers or text"
        ) from problem


def _why(ra: float, dec: float) -> str:
    if not np.isfinite(ra) or not 0 <= ra <= 360:
        return f"ra is {ra:.10g}"
    if not np.isfinite(dec) or abs(dec) > 90:
        return f"dec is {dec:.10g}"
    here = int(radec2pix(ORDER, np.array([ra]), np.array([dec]))[0])
    return f"ra {ra:.6f}, dec {dec:.6f} lies in healpix={here}, not in its folder"


def _optional(
    opened: MmuFile, column: str | None, rows: NDArray[np.int64], count: int
) -> Degrees | None:
    name = pick((column,), opened.names) if column else None
    return opened.column(name, count)[rows].astype(np.float64) if name else None


def _together(located: list[SourceObjects], survey: Survey) -> SourceObjects:
    """Objects of all files; a motion is NaN where a file does not have it."""
    empty = SourceObjects(
        ids=np.empty(0, np.str_),
        ra=np.empty(0),
        dec=np.empty(0),
        file=np.empty(0, np.int32),
        row=np.empty(0, np.int64),
    )
    parts = [empty, *located]

    def motion(column: str | None, name: str) -> Degrees | None:
        if column is None:
            return None
        found = [getattr(part, name) for part in parts]
        return np.concatenate([np.full(len(part), np.nan) if values is None else values
                               for part, values in zip(parts, found, strict=True)])  # fmt: skip

    return SourceObjects(
        ids=np.concatenate([part.ids for part in parts]),
        ra=np.concatenate([part.ra for part in parts]),
        dec=np.concatenate([part.dec for part in parts]),
        file=np.concatenate([part.file for part in parts]),
        row=np.concatenate([part.row for part in parts]),
        pm_ra=motion(survey.pm_ra_column, "pm_ra"),
        pm_dec=motion(survey.pm_dec_column, "pm_dec"),
        quarantined=tuple(q for part in parts for q in part.quarantined),
    )
