"""One shard, written aside, synced and renamed; memory is bounded by one read of its leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_core.modalities import MODALITIES
from skyvec_training.data.leaves import healpix_of
from skyvec_training.data.shard_files import (
    ARRAYS,
    LAYOUT_VERSION,
    OBJECTS,
    RECORD,
    SHARDS,
    LeafRecord,
    ShardRecord,
    file_record,
    shard_record,
    sync,
)
from skyvec_training.data.shard_rows import pack
from skyvec_training.data.split import keys_of_ids
from skyvec_training.data.token_leaves import TokenLeaf, TokenRows, read_leaf


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """A shard to be made."""

    dataset: str
    folder: Path
    keys: tuple[str, ...]
    leaves: tuple[TokenLeaf, ...]
    records: tuple[LeafRecord, ...]

    def identity(self) -> dict[str, object]:
        """What decides the bytes of the shard."""
        sizes = {k: (MODALITIES[k].num_tokens, MODALITIES[k].vocabulary) for k in self.keys}
        leaves = [asdict(record) for record in self.records]
        return {"layout": LAYOUT_VERSION, "folder": self.folder.name, "domains": sizes,
                "leaves": leaves}  # fmt: skip


def write_shard(job: ShardJob) -> ShardRecord:
    """Write a shard so that it appears at once and whole, or find it written."""
    known = _known(job)
    if known is not None:
        return known
    aside = job.folder.with_name(f"{job.folder.name}.tmp")
    for stale in (aside, job.folder):
        shutil.rmtree(stale, ignore_errors=True)
    aside.mkdir()
    rows, tokens, too_few = _write(job, aside)
    record = ShardRecord(
        folder=f"{SHARDS}/{job.folder.name}",
        rows=rows,
        tokens=tokens,
        too_few=too_few,
        domains=job.keys,
        leaves=job.records,
        files={name: file_record(aside / name) for name in (*ARRAYS, OBJECTS)},
    )
    stated = {"job": job.identity(), "record": asdict(record)}
    (aside / RECORD).write_text(json.dumps(stated, indent=1))
    for path in (*aside.iterdir(), aside):
        sync(path)
    aside.rename(job.folder)
    sync(job.folder.parent)
    return record


def _known(job: ShardJob) -> ShardRecord | None:
    place = job.folder / RECORD
    if not place.is_file():
        return None
    stated = json.loads(place.read_text())
    if stated["job"] != json.loads(json.dumps(job.identity())):
        return None
    record = shard_record(stated["record"])
    sizes = {name: (job.folder / name).stat().st_size for name in record.files
             if (job.folder / name).is_file()}  # fmt: skip
    return record if sizes == {n: f.bytes for n, f in record.files.items()} else None


def _write(job: ShardJob, folder: Path) -> tuple[int, int, int]:
    files = {name: (folder / name).open("wb") for name in ARRAYS}
    rows, tokens, too_few = 0, 0, 0
    objects: pq.ParquetWriter | None = None
    try:
        _append(files["offsets.i64"], np.zeros(1, np.int64))
        for leaf in job.leaves:
            order, pixel = healpix_of(leaf.path)
            for read in read_leaf(leaf, job.keys):
                packed = pack(read.codes, job.keys)
                _append(files["codes.i16"], packed.codes_n)
                _append(files["offsets.i64"], tokens + np.cumsum(packed.lengths_B))
                _append(files["presence.u64"], packed.presence_B)
                _append(files["lone.u64"], packed.lone_B)
                _append(files["healpix.i64"], read.healpix_B[packed.kept_B])
                table = _objects(read, packed.kept_B, order, pixel)
                _append(files["keys.u64"], keys_of_ids(table["object_id"].to_pylist()))
                objects = objects or pq.ParquetWriter(folder / OBJECTS, table.schema)
                objects.write_table(table)
                rows += len(table)
                tokens += len(packed.codes_n)
                too_few += len(read.healpix_B) - len(table)
    finally:
        for file in files.values():
            file.close()
        if objects:
            objects.close()
    if objects is None:
        pq.write_table(pa.table({}), folder / OBJECTS)
    return rows, tokens, too_few


def _objects(read: TokenRows, kept_B: NDArray[np.bool_], order: int, pixel: int) -> pa.Table:
    ids = read.ids.filter(pa.array(kept_B)).cast(pa.string())
    count = len(ids)
    return pa.table(
        {
            "object_id": ids,
            "order": pa.array(np.full(count, order, np.int8)),
            "pixel": pa.array(np.full(count, pixel, np.int64)),
        }
    )


def _append(file: BinaryIO, values: NDArray[np.generic]) -> None:
    file.write(np.ascontiguousarray(values, ARRAYS[Path(file.name).name]).data)
