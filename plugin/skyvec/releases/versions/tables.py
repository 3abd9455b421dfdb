"""Writes the manifest and the tables of a release: who is in it, from which file, with digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.releases.ids import canonical_ids
from skyvec.releases.versions.manifest import Release, sha256_of
from skyvec.releases.versions.shard_rows import ShardRows, read_shard
from skyvec.version import __version__
from skyvec_schemas.errors import ContractError, DuplicateIdsError
from skyvec_schemas.release_manifest import (
    FILES_TABLE,
    MANIFEST,
    OBJECTS,
    OBJECTS_TABLE,
    WITHDRAWN,
    WITHDRAWN_TABLE,
    ReleaseFile,
    ReleaseManifest,
    files_table,
    schema_digest,
)
from skyvec_schemas.survey_columns import Survey

_ROW_GROUP = 1 << 17
_NAMED = 3
"""Duplicates named in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A file of a release in the making."""

    file: ReleaseFile
    source: Path
    twin: int | None = None
    """Place of the parent's shard of equal bytes."""


def tombstones(
    before: Release | None, name: str, withdrawn: Mapping[str, str], readmit: Sequence[str]
) -> pa.Table:
    """Tombstones of the parent that hold on, and new ones; the first reason stays."""
    ended = set(_canonical(readmit))
    known = before.withdrawn.to_pylist() if before else []
    found = {row["object_id"]: row for row in known if row["object_id"] not in ended}
    for key, reason in zip(_canonical(list(withdrawn)), withdrawn.values(), strict=True):
        found.setdefault(key, {"object_id": key, "reason": reason, "since": name})
    return pa.Table.from_pylist([found[key] for key in sorted(found)], schema=WITHDRAWN)


def write_release(
    folder: Path,
    found: Sequence[Found],
    *,
    survey: Survey,
    before: Release | None,
    tombstones: pa.Table,
    allow_duplicates: bool,
    facts: Mapping[str, str],
) -> None:
    """Write the tables and the manifest of a release into an empty folder.

    Parameters
    ----------
    facts
        ``release``, ``upstream``, ``layout`` and ``root`` of the manifest.

    Raises
    ------
    DuplicateIdsError
        If an id occurs more than once, unless that is allowed.
    """
    files = [one.file for one in found]
    ids: list[NDArray[np.int64]] = []
    gone = tombstones.column("object_id").combine_chunks()
    place = folder / OBJECTS_TABLE
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(place, OBJECTS, compression="zstd") as writer:
        for batch in _batches(found, files, survey, before):
            writer.write_batch(batch, row_group_size=_ROW_GROUP)
            kept = batch.filter(pc.invert(pc.is_in(batch.column("object_id"), gone)))
            texts = kept.column("object_id").to_pylist()
            ids.append(np.fromiter(map(hash, texts), np.int64, len(texts)))
            counts.update(_counted(kept, files))
    counts["duplicates"] = _duplicates(
        place, ids, files, where=facts["root"], allowed=allow_duplicates
    )
    pq.write_table(files_table(files), folder / FILES_TABLE)
    pq.write_table(tombstones, folder / WITHDRAWN_TABLE)
    manifest = ReleaseManifest(
        **facts,  # type: ignore[arg-type]  # all of them are text
        survey=survey.name,
        schema=schema_digest(file.schema for file in files if file.schema),
        builder=f"skyvec {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=before.name if before else None,
        parent_digest=before.manifest.digest() if before else None,
        counts={
            "files": len(files),
            "shards": sum(file.is_shard for file in files),
            "reused_shards": sum(file.is_shard and file.reused_from is not None for file in files),
            "bytes": sum(file.bytes for file in files),
            **{
                name: counts[name]
                for name in ("objects", "duplicates", "without_position", "outside_pixel")
            },
            "withdrawn": len(tombstones),
        },
        tables={
            name: sha256_of(folder / name) for name in (FILES_TABLE, OBJECTS_TABLE, WITHDRAWN_TABLE)
        },
    )
    (folder / MANIFEST).write_text(manifest.to_json())


def _canonical(ids: Sequence[str]) -> list[str]:
    return canonical_ids(np.array(ids, dtype=object)).tolist() if len(ids) else []


def _batches(
    found: Sequence[Found], files: list[ReleaseFile], survey: Survey, before: Release | None
) -> Iterator[pa.RecordBatch]:
    """Objects of reused files from the parent's index, of others by reading; completes files."""
    if before:
        yield from _reused(found, files, before)
    for place, one in enumerate(found):
        if not one.file.is_shard or one.twin is not None:
            continue
        before_reading = one.source.stat().st_mtime_ns
        rows = read_shard(one.source, survey)
        state = one.source.stat()
        if (state.st_size, state.st_mtime_ns) != (one.file.bytes, before_reading):
            raise ContractError(
                "changed while the release was made",
                where=str(one.source),
                remedy="Wait until nobody writes to it and run again",
            )
        files[place] = _completed(one.file, rows)
        yield _batch(rows, place)


def _reused(
    found: Sequence[Found], files: list[ReleaseFile], before: Release
) -> Iterator[pa.RecordBatch]:
    new_place = np.full(len(before.files), -1, np.int32)
    for place, one in enumerate(found):
        if one.twin is not None:
            new_place[one.twin] = place
            old = before.files[one.twin]
            files[place] = replace(
                one.file,
                rows=old.rows,
                schema=old.schema,
                healpix_min=old.healpix_min,
                healpix_max=old.healpix_max,
            )
    if (new_place < 0).all():
        return
    column = OBJECTS.get_field_index("shard")
    for batch in before.object_batches():
        shard = new_place[batch.column("shard").to_numpy()]
        moved = batch.set_column(column, OBJECTS.field(column), pa.array(shard))
        yield moved.filter(pa.array(shard >= 0))


def _completed(file: ReleaseFile, rows: ShardRows) -> ReleaseFile:
    placed = rows.healpix[rows.healpix >= 0]
    return replace(
        file,
        rows=len(rows.ids),
        schema=rows.schema,
        healpix_min=int(placed.min()) if len(placed) else None,
        healpix_max=int(placed.max()) if len(placed) else None,
    )


def _batch(rows: ShardRows, place: int) -> pa.RecordBatch:
    count = len(rows.ids)
    digests = pa.Array.from_buffers(
        OBJECTS.field("digest").type, count, [None, pa.py_buffer(rows.digests.tobytes())]
    )
    arrays = [
        pa.array(rows.ids.tolist(), pa.string()),
        pa.array(rows.healpix),
        pa.array(rows.ra),
        pa.array(rows.dec),
        pa.array(np.full(count, place, np.int32)),
        pa.array(np.arange(count)),
        digests,
    ]
    return pa.record_batch(arrays, schema=OBJECTS)


def _counted(batch: pa.RecordBatch, files: Sequence[ReleaseFile]) -> dict[str, int]:
    healpix = batch.column("_healpix_29").to_numpy()
    shard = batch.column("shard").to_numpy()
    order = np.array([0 if file.order is None else file.order for file in files], np.int64)
    npix = np.array([-1 if file.npix is None else file.npix for file in files], np.int64)
    outside = (healpix >= 0) & (healpix >> 2 * (29 - order[shard]) != npix[shard])
    return {
        "objects": len(batch),
        "without_position": int((healpix < 0).sum()),
        "outside_pixel": int(outside.sum()),
    }


def _duplicates(
    index: Path,
    hashes: list[NDArray[np.int64]],
    files: Sequence[ReleaseFile],
    *,
    where: str,
    allowed: bool,
) -> int:
    """Rows beyond the first of their id; an error that names some unless they are allowed."""
    values, counts = np.unique(
        np.concatenate(hashes or [np.empty(0, np.int64)]), return_counts=True
    )
    if not (counts > 1).any():
        return 0
    suspects = set(values[counts > 1].tolist())
    places: dict[str, list[tuple[int, int, bytes]]] = {}
    with pq.ParquetFile(index) as table:
        for batch in table.iter_batches(columns=["object_id", "shard", "row", "digest"]):
            for one, shard, row, digest in zip(
                *(c.to_pylist() for c in batch.columns), strict=True
            ):
                if hash(one) in suspects:
                    places.setdefault(one, []).append((shard, row, digest))
    twice = {one: found for one, found in sorted(places.items()) if len(found) > 1}
    if allowed or not twice:
        return sum(len(found) - 1 for found in twice.values())
    alike = sum(len({digest for *_, digest in found}) == 1 for found in twice.values())
    named = "; ".join(
        f"{one!r} in " + " and ".join(f"{files[s].path} row {r}" for s, r, _ in found[:2])
        for one, found in list(twice.items())[:_NAMED]
    )
    hint = "was the build run twice? " if alike == len(twice) else ""
    raise DuplicateIdsError(
        f"{len(twice):,} ids occur more than once, {alike:,} of them with equal rows: {named}",
        where=where,
        remedy=hint + "Remove the copies, or allow duplicates, which are then counted and never "
        "joined by id",
    )
