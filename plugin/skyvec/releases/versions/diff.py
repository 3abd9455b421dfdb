"""Two releases -> which objects were added, changed, moved or withdrawn, and in which pixels.

Only the indexes of the releases are read, and of those only the files that differ: objects in
files of equal bytes are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from rich.table import Table

from skyvec.releases.mmu.layout import ORDER
from skyvec.releases.sky import near_pixel, pixels_around, unit_vectors
from skyvec.releases.versions.manifest import Release
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.release_manifest import DIGEST_BYTES

KINDS = ("added", "changed", "moved", "withdrawn", "vanished")
"""What can become of an object; a moved one is else the same, a vanished one has no tombstone."""

DIFFERENCES = pa.schema(
    [
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),
        pa.field("_healpix_29", pa.int64(), nullable=False),
        pa.field("ra", pa.float64()),
        pa.field("dec", pa.float64()),
        pa.field("healpix_before", pa.int64()),
        pa.field("ra_before", pa.float64()),
        pa.field("dec_before", pa.float64()),
        pa.field("moved_arcsec", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""One row for each object that differs. Position: of the newer release, or of the older where the
object is gone; ``*_before`` is null for added objects. ``moved_arcsec`` is null unless the position
differs; ``reason`` is the tombstone's."""

_PIXELS = pa.schema(
    [("norder", pa.int32()), ("npix", pa.int64()), ("pixel", pa.string())]
    + [(kind, pa.int64()) for kind in KINDS]
)


@dataclass(frozen=True, kw_only=True)
class ReleaseDiff:
    """How a release differs from an earlier one."""

    older: str
    newer: str
    older_digest: str
    newer_digest: str
    objects: pa.Table
    """Differences, of schema `DIFFERENCES`, ordered by position."""
    unchanged: int
    """Objects that are equal in both."""
    same_schema: bool
    """Whether both have the same columns; if not, every object of a file with others differs."""
    pixels_before: frozenset[int]
    """Pixels of order 4 with objects in the older release."""
    pixels_after: frozenset[int]

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Objects by kind of change."""
        found = pc.value_counts(self.objects.column("change")).to_pylist()
        counted = {row["values"]: row["counts"] for row in found}
        return {kind: counted.get(kind, 0) for kind in KINDS}

    @property
    def changed_pixels(self) -> tuple[HealpixPixel, ...]:
        """Pixels of order 4 in which any object differs, in ascending order."""
        return self.pixels(ORDER)

    def pixels(self, order: int, *, margin_arcsec: float = 0) -> tuple[HealpixPixel, ...]:
        """Pixels of one order that hold, or held, an object that differs.

        Parameters
        ----------
        margin_arcsec
            Also pixels with such an object this near to their border: a join by position within
            that radius may come out otherwise there.
        """
        cells = np.concatenate(
            [self._column("_healpix_29", -1), self._column("healpix_before", -1)]
        ).astype(np.int64)
        ra = np.concatenate([self._column("ra", np.nan), self._column("ra_before", np.nan)])
        dec = np.concatenate([self._column("dec", np.nan), self._column("dec_before", np.nan)])
        placed = cells >= 0
        own, ra, dec = cells[placed] >> 2 * (29 - order), ra[placed], dec[placed]
        found = set(np.unique(own).tolist())
        if margin_arcsec > 0:
            for pixel in tuple(found):
                inside = own == pixel
                around = pixels_around(
                    HealpixPixel(order, pixel), order=order, margin_arcsec=margin_arcsec
                )
                found.update(
                    other
                    for other in around
                    if other not in found
                    and near_pixel(
                        ra[inside],
                        dec[inside],
                        HealpixPixel(order, other),
                        margin_arcsec=margin_arcsec,
                    ).any()
                )
        return tuple(HealpixPixel(order, pixel) for pixel in sorted(found))

    def pixel_table(self) -> pa.Table:
        """One row for each pixel of `changed_pixels`: added, changed or withdrawn, and counts."""
        change = np.array(self.objects.column("change").to_pylist(), dtype=object)
        after = self._column("_healpix_29", -1).astype(np.int64)
        before = self._column("healpix_before", -1).astype(np.int64)
        shift = 2 * (29 - ORDER)
        rows = []
        for pixel in self.changed_pixels:
            here = (after >> shift == pixel.pixel) | (before >> shift == pixel.pixel)
            state = (
                "added"
                if pixel.pixel not in self.pixels_before
                else "changed"
                if pixel.pixel in self.pixels_after
                else "withdrawn"
            )
            counts = {kind: int((change[here] == kind).sum()) for kind in KINDS}
            rows.append({"norder": ORDER, "npix": pixel.pixel, "pixel": state, **counts})
        return pa.Table.from_pylist(rows, schema=_PIXELS)

    def facts(self) -> dict[str, object]:
        """What differs, in numbers."""
        return {
            "older": {"release": self.older, "digest": self.older_digest},
            "newer": {"release": self.newer, "digest": self.newer_digest},
            "same_schema": self.same_schema,
            "unchanged": self.unchanged,
            **self.counts,
        }

    def table(self, *, shown: int = 20) -> Table:
        """For a terminal: the pixels with most differences first."""
        table = Table(box=None, pad_edge=False)
        table.add_column("pixel")
        for name in ("", *KINDS):
            table.add_column(name, justify="right" if name else "left")
        rows = sorted(self.pixel_table().to_pylist(), key=lambda r: -sum(r[k] for k in KINDS))
        for row in rows[:shown]:
            counts = (f"{row[kind]:,}" if row[kind] else "" for kind in KINDS)
            table.add_row(f"Norder={row['norder']} Npix={row['npix']}", row["pixel"], *counts)
        if len(rows) > shown:
            table.add_row(f"... {len(rows):,} pixels")
        table.add_row("all", "", *(f"{self.counts[kind]:,}" for kind in KINDS), style="bold")
        return table

    def save(self, place: Path) -> None:
        """Write the objects as Parquet (numbers in the schema metadata), or all of it as JSON."""
        if place.suffix == ".parquet":
            metadata = {"skyvec_release_diff": json.dumps(self.facts())}
            pq.write_table(self.objects.replace_schema_metadata(metadata), place)
        elif place.suffix == ".json":
            facts = {
                **self.facts(),
                "pixels": self.pixel_table().to_pylist(),
                "objects": self.objects.to_pylist(),
            }
            place.write_text(json.dumps(facts, indent=1) + "\n")
        else:
            raise ConfigurationError(
                f"{place.suffix or 'no suffix'} is not known",
                where=str(place),
                remedy="Name a file that ends in .parquet or .json",
            )

    def _column(self, name: str, missing: float) -> NDArray[np.float64] | NDArray[np.int64]:
        return pc.fill_null(self.objects.column(name), missing).to_numpy()


def diff_releases(older: Release, newer: Release) -> ReleaseDiff:
    """Compare two releases by their object indexes.

    An id that occurs more than once in a release counts as one object.

    Raises
    ------
    ConfigurationError
        If their rows cannot be compared: other layout, survey, or way to digest rows.
    """
    for what in ("survey", "layout", "row_digest"):
        ours, theirs = getattr(older.manifest, what), getattr(newer.manifest, what)
        if ours != theirs:
            raise ConfigurationError(
                f"{what.replace('_', ' ')} is {theirs}, that of {older.name} is {ours}",
                where=str(newer.folder),
                remedy="Compare releases of one survey and one layout",
            )
    left, right = _apart(older, newer), _apart(newer, older)
    both = left.join(right, "object_id", join_type="full outer", right_suffix="_after")
    found = _differences(both, newer.withdrawn)
    anew = pc.is_in(found.column("change"), pa.array(["added", "changed", "moved"]))
    counts = newer.manifest.counts
    return ReleaseDiff(
        older=older.name,
        newer=newer.name,
        older_digest=older.manifest.digest(),
        newer_digest=newer.manifest.digest(),
        objects=found,
        unchanged=counts["objects"] - counts["duplicates"] - (pc.sum(anew).as_py() or 0),
        same_schema=older.manifest.schema == newer.manifest.schema,
        pixels_before=_occupied(older),
        pixels_after=_occupied(newer),
    )


def _apart(release: Release, other: Release) -> pa.Table:
    """Objects that may differ: those of files that the other lacks, or under a tombstone of one."""
    theirs = {file.sha256 for file in other.files if file.is_shard}
    if release.manifest.counts["duplicates"] or other.manifest.counts["duplicates"]:
        theirs = set()  # the copies of an id may lie in different files
    shards = [
        place
        for place, file in enumerate(release.files)
        if file.is_shard and file.sha256 not in theirs
    ]
    gone = [set(r.withdrawn.column("object_id").to_pylist()) for r in (release, other)]
    columns = ["object_id", "_healpix_29", "ra", "dec", "digest"]
    table = release.objects(columns, shards=shards, ids=sorted(gone[0] ^ gone[1]))
    return _one_row_per_id(table) if release.manifest.counts["duplicates"] else table


def _one_row_per_id(table: pa.Table) -> pa.Table:
    """Rows of one id become one, whose digest is that of all of them in whatever order."""
    counts = pc.value_counts(table.column("object_id"))
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    chosen = pc.is_in(table.column("object_id"), several)
    copies: dict[str, list[dict[str, object]]] = {}
    for row in table.filter(chosen).to_pylist():
        copies.setdefault(row["object_id"], []).append(row)
    joined = []
    for rows in copies.values():
        rows.sort(key=lambda row: (row["digest"], repr(row["ra"]), repr(row["dec"])))
        texts = "".join(f"{row['digest']!r}{row['ra']!r}{row['dec']!r}" for row in rows)
        digest = hashlib.sha256(texts.encode()).digest()[:DIGEST_BYTES]
        joined.append({**rows[0], "digest": digest})
    return pa.concat_tables(
        [table.filter(pc.invert(chosen)), pa.Table.from_pylist(joined, schema=table.schema)]
    )


def _differences(both: pa.Table, tombstones: pa.Table) -> pa.Table:
    """Rows of an outer join of two releases -> table of schema `DIFFERENCES`."""
    was = both.column("_healpix_29").is_valid().to_numpy()
    now = both.column("_healpix_29_after").is_valid().to_numpy()
    place = {
        name: pc.fill_null(both.column(name), np.nan).to_numpy()
        for name in ("ra", "dec", "ra_after", "dec_after")
    }
    other = pc.not_equal(*(both.column(n).cast(pa.binary()) for n in ("digest", "digest_after")))
    changed = pc.fill_null(other, False).to_numpy()  # noqa: FBT003
    moved = was & now & ~(
        _equal(place["ra"], place["ra_after"]) & _equal(place["dec"], place["dec_after"])
    )  # fmt: skip
    buried = pc.index_in(both.column("object_id"), tombstones.column("object_id"))
    reasons = tombstones.column("reason").combine_chunks().take(buried.combine_chunks())
    withdrawn = was & ~now & buried.is_valid().to_numpy()
    kind = np.select([~was, withdrawn, ~now, changed, moved], [0, 3, 4, 1, 2], -1)
    arcsec = np.full(len(both), np.nan)
    arcsec[moved] = _arcsec({name: values[moved] for name, values in place.items()})
    columns = {
        "object_id": both.column("object_id"),
        "change": pa.array(np.array(["", *KINDS], dtype=object)[kind + 1], pa.string()),
        "_healpix_29": pc.coalesce(both.column("_healpix_29_after"), both.column("_healpix_29")),
        "ra": pa.array(np.where(now, place["ra_after"], place["ra"])),
        "dec": pa.array(np.where(now, place["dec_after"], place["dec"])),
        "healpix_before": both.column("_healpix_29"),
        "ra_before": both.column("ra"),
        "dec_before": both.column("dec"),
        "moved_arcsec": pa.array(arcsec, from_pandas=True),
        "reason": pc.if_else(pa.array(withdrawn), reasons, None),
    }
    table = pa.table([columns[name] for name in DIFFERENCES.names], schema=DIFFERENCES)
    found = table.filter(pa.array(kind >= 0))
    return found.sort_by([("_healpix_29", "ascending"), ("object_id", "ascending")])


def _equal(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))


def _arcsec(place: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    old = unit_vectors(place["ra"], place["dec"])
    new = unit_vectors(place["ra_after"], place["dec_after"])
    chord = np.linalg.norm(old - new, axis=1)
    return np.asarray(np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600)


def _occupied(release: Release) -> frozenset[int]:
    gone = release.withdrawn.column("object_id").combine_chunks()
    found: set[int] = set()
    for batch in release.object_batches(columns=["object_id", "_healpix_29"]):
        here = batch.filter(pc.invert(pc.is_in(batch.column("object_id"), gone)))
        cells = here.column("_healpix_29").to_numpy()
        found.update(np.unique(cells[cells >= 0] >> 2 * (29 - ORDER)).tolist())
    return frozenset(found)
