"""Who was left out of one HATS pixel, or looks wrong in it, and why: a small file beside its data.

Absent data are nothing to mend, and small blemishes are usual on the sky: neither is listed. What
is listed is what `BAD_DATA` names, whether or not the rest of the row sufficed for a vector, and
every object that a source had to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import open_parquet
from skyvec.releases.ids import MISSING, canonical_ids
from skyvec.releases.source import Quarantined
from skyvec.stage.output import QUARANTINE, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.quality_flags import FATAL, Flag, reasons
from skyvec_schemas.survey_columns import Survey

REMEDIES: Mapping[Flag, str] = MappingProxyType(
    {
        Flag.IMAGE_UNUSABLE: "cut the image out again, or null it to embed the rest",
        Flag.IMAGE_WRONG_BANDS: "name the bands as the survey does, or null the image",
        Flag.IMAGE_MALFORMED: "write planes of one shape, or null the image",
        Flag.SPECTRUM_UNUSABLE: "look at mask and ivar of the spectrum, or null it",
        Flag.SPECTRUM_MALFORMED: "write parts of one length and wavelengths that ascend in "
        "Angstrom, or null the spectrum",
        Flag.ID_MISSING: "give the row an id",
        Flag.POSITION_INVALID: "give the row a position in degrees",
        Flag.SOURCE_DUPLICATE: "keep one object of this id in the source",
    }
)
"""What bad data need to be used; nulls count as missing and never stop a row."""

BAD_DATA = Flag(sum(REMEDIES))
"""Reasons that somebody should look at: what is there is broken, not absent."""
_BLEMISHES = (
    Flag.IMAGE_PADDED | Flag.IMAGE_BAD_PIXELS | Flag.IMAGE_TOKENS_DROPPED | Flag.SPECTRUM_BAD_SAMPLES
)  # fmt: skip
_ALL_BLEMISHES = "look at the masks: what is there left no token"
_OBJECT = "mend it in the source; nothing to do if it is left out on purpose"


def is_bad(flags: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Rows (n,) to be listed: bad data, or something was observed and nothing of it was usable.

    Of rows without a vector that leaves out those that have no data at all: there is nothing to do.
    """
    spoilt = ((flags & Flag.NO_INPUT) != 0) & ((flags & _BLEMISHES) != 0)
    return np.asarray(((flags & BAD_DATA) != 0) | spoilt)


class QuarantineLog:
    """Collects what is wrong in one pixel, batch by batch.

    Parameters
    ----------
    pixel
        Whose rows and objects these are.
    keys
        Fields of spatial index, id, right ascension and declination, as the catalog has them.
    leaf
        The catalog's file of the pixel, for people.
    healpix_order
        Of the spatial index.
    """

    def __init__(
        self,
        pixel: HealpixPixel,
        keys: Iterable[pa.Field],
        *,
        leaf: str,
        healpix_order: int = SPATIAL_INDEX_ORDER,
    ) -> None:
        self._given = tuple(keys)
        self.pixel = pixel
        self.leaf = leaf
        self.first_cell = pixel.pixel << 2 * (healpix_order - pixel.order)
        self.failed_rows = 0
        """Rows without a vector."""
        self.embedded_rows = 0
        """Rows with a vector, from what else they have."""
        self.objects = 0
        """Objects that a source refused."""
        self._parts: list[pa.RecordBatch] = []

    @classmethod
    def of(cls, release: HatsRelease, pixel: HealpixPixel, survey: Survey) -> QuarantineLog:
        """An empty log for a pixel of a catalog."""
        names = (release.healpix_column, survey.id_column, survey.ra_column, survey.dec_column)
        order = release.catalog.catalog_info.healpix_order
        return cls(
            pixel,
            [release.schema.field(name) for name in names],
            leaf=str(release.leaf(pixel)),
            healpix_order=SPATIAL_INDEX_ORDER if order is None else order,
        )

    @cached_property
    def keys(self) -> list[pa.Field]:
        """An object of a source has none of them, so they may all be null."""
        return [pa.field(key.name, key.type) for key in self._given]

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the list; most pixels need none."""
        return pa.schema([*self.keys, *_FIELDS])

    @property
    def failed(self) -> int:
        """Rows without a vector, and objects: what a record counts as quarantined."""
        return self.failed_rows + self.objects

    def add_rows(
        self,
        batch: pa.RecordBatch,
        flags: NDArray[np.int32],
        *,
        start: int,
        matched: Mapping[str, pa.Array] | None = None,
    ) -> None:
        """List those rows of a batch that have bad data.

        Parameters
        ----------
        batch
            With the key columns; others are not looked at.
        flags
            Bits of `Flag`, one word for each row.
        start
            Row of the pixel that the batch begins with.
        matched
            Source -> id of the object that each row of the pixel was joined with, null for none.
        """
        rows = np.flatnonzero(is_bad(flags))
        if not len(rows):
            return
        words = flags[rows]
        embedded = (words & FATAL) == 0
        self.embedded_rows += int(embedded.sum())
        self.failed_rows += int((~embedded).sum())
        keys = [batch.column(key.name).take(pa.array(rows)) for key in self.keys]
        names = {name: ids.take(pa.array(rows + start)) for name, ids in (matched or {}).items()}
        self._append(
            len(rows),
            **dict(zip(self.schema.names, keys, strict=False)),
            flags=words,
            reasons=_texts(words, _reasons),
            remedy=_texts(words, _remedy),
            source_object_id=pa.nulls(len(rows), pa.string()),
            source_file=[self.leaf] * len(rows),
            source_row=rows + start,
            detail=_joined_with(names, len(rows)),
            embedded=embedded,
        )

    def add_objects(self, source: str, quarantined: Iterable[Quarantined]) -> None:
        """List every object of a source that could not be used.

        Nobody knows where on the sky it is: its position is null, and its spatial index is the
        first cell of the pixel that met it.
        """
        found = list(quarantined)
        if not found:
            return
        self.objects += len(found)
        self._append(
            len(found),
            **{self.keys[0].name: [self.first_cell] * len(found)},
            flags=np.zeros(len(found), np.int32),
            reasons=[each.reason for each in found],
            remedy=[_OBJECT] * len(found),
            source=[source] * len(found),
            source_object_id=[
                None if each.object_id == MISSING else each.object_id for each in found
            ],
            source_file=[each.file for each in found],
            source_row=[int(each.row) for each in found],
            embedded=np.zeros(len(found), np.bool_),
        )

    def write(self, output: Output) -> int:
        """Write the list in one step, ordered by spatial index; returns its lines.

        Without any, no file is written, and one of an earlier try is removed. The bytes do not
        depend on how the rows came in batches.
        """
        place = quarantine_path(output, self.pixel)
        if not self._parts:
            place.unlink(missing_ok=True)
            return 0
        table = pa.Table.from_batches(self._parts, self.schema).sort_by(self.keys[0].name)
        with output.staged(self.pixel) as local:
            pq.write_table(table, local, compression="zstd")
            output.put(local, place)
        return len(table)

    def _append(self, count: int, **columns: object) -> None:
        arrays = [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(count, field.type)
            for field in self.schema
        ]
        self._parts.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))


_FIELDS = (
    pa.field("flags", pa.int32()),
    pa.field("reasons", pa.string()),
    pa.field("remedy", pa.string()),
    pa.field("source", pa.string()),
    pa.field("source_object_id", pa.string()),
    pa.field("source_file", pa.string()),
    pa.field("source_row", pa.int64()),
    pa.field("detail", pa.string()),
    pa.field("embedded", pa.bool_()),
)


def quarantine_path(output: Output, pixel: HealpixPixel) -> Path:
    """Where the list of a pixel lies."""
    return output.root / QUARANTINE / f"Norder={pixel.order}_Npix={pixel.pixel}.parquet"


def lists_anything(record: QuantumRecord) -> bool:
    """Whether a pixel with this record has a list."""
    return record.quarantined > 0 or any(
        record.flags.get(str(flag.name).lower(), 0) for flag in REMEDIES
    )


def read_quarantine(
    output: Output, record: QuantumRecord, *, columns: tuple[str, ...] | None = None
) -> pa.Table | None:
    """The list of a finished pixel that has one; None unless it holds what the record counts.

    Of ``columns``, which are all by default, ``embedded`` must be one.
    """
    try:
        with open_parquet(quarantine_path(output, HealpixPixel(*record.key))) as file:
            lines = file.read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException, SkyvecError):
        return None
    failed = len(lines) - (pc.sum(lines.column("embedded")).as_py() or 0)
    return lines if len(lines) and failed == record.quarantined else None


def quarantine_is_whole(output: Output, record: QuantumRecord) -> bool:
    """Whether the list of a finished pixel is still there, if it has one."""
    if not lists_anything(record):
        return True
    return read_quarantine(output, record, columns=("embedded",)) is not None


def take_quarantine(earlier: Output, output: Output, record: QuantumRecord) -> bool:
    """Copy the list of a pixel whose leaf is taken over; False if it is not there as counted."""
    pixel = HealpixPixel(*record.key)
    place = quarantine_path(output, pixel)
    if not lists_anything(record):
        place.unlink(missing_ok=True)
        return True
    if not quarantine_is_whole(earlier, record):
        return False
    with output.staged(pixel) as local:
        local.write_bytes(quarantine_path(earlier, pixel).read_bytes())
        output.put(local, place)
    return True


@lru_cache(maxsize=256)
def _reasons(word: int) -> str:
    return ", ".join(reasons(word))


@lru_cache(maxsize=256)
def _remedy(word: int) -> str:
    found = [text for flag, text in REMEDIES.items() if word & flag]
    return "; ".join(found) or _ALL_BLEMISHES


def _texts(words: NDArray[np.int32], text: Callable[[int], str]) -> list[str]:
    return [text(word) for word in words.tolist()]


def _joined_with(matched: Mapping[str, pa.Array], count: int) -> list[str | None]:
    """Which objects of sources each row was given, for people."""
    columns = {name: canonical_ids(ids) for name, ids in matched.items()}
    found = (
        [f"{name} {ids[row]}" for name, ids in columns.items() if ids[row] != MISSING]
        for row in range(count)
    )
    return [f"joined with {', '.join(each)}" if each else None for each in found]


def finished_and_whole(output: Output, record: QuantumRecord) -> bool:
    """Whether nothing is left to do for a pixel: its leaf and its list are as its record says."""
    return record.finished and output.is_whole(record) and quarantine_is_whole(output, record)
