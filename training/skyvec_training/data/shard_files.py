"""What a folder of compiled shards is made of: files, records, manifest.

    OUT/manifest.json                   written last: without it, the folder is not a corpus
    OUT/shards/<data set>-<number>/     appears at once and whole
        codes.i16      all tokens of all objects, one after the other
        offsets.i64    where each object's tokens begin, and the end of the last
        presence.u64   bit i: the object has domain i of `skyvec_core.modalities.MODALITIES`
        lone.u64       bit i: it has exactly one token of that domain
        keys.u64       hash of its id
        healpix.i64    its HEALPix pixel at order 29; -1 where the catalog does not say
        objects.parquet   its id, and the order and pixel of the leaf that it came from
        shard.json     the record of the shard

An object's tokens are those of its domains in registry order. A grid is stored whole, -1 in the
places where nothing was observed; a sequence without its padding.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 1
"""Counts changes of what the files hold."""
MANIFEST, RECORD, OBJECTS, SHARDS = "manifest.json", "shard.json", "objects.parquet", "shards"
ARRAYS: Mapping[str, np.dtype[Any]] = {
    "codes.i16": np.dtype("<i2"),
    "offsets.i64": np.dtype("<i8"),
    "presence.u64": np.dtype("<u8"),
    "lone.u64": np.dtype("<u8"),
    "keys.u64": np.dtype("<u8"),
    "healpix.i64": np.dtype("<i8"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafRecord:
    """One Parquet leaf that a shard was made of."""

    path: str
    """Within the catalog."""
    order: int
    pixel: int
    rows: int
    footer: str
    """SHA-256 of its Parquet footer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """Size and digest of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """One shard."""

    folder: str
    """Within the corpus."""
    rows: int
    tokens: int
    too_few: int
    """Objects with fewer than two tokens, which were left out."""
    domains: tuple[str, ...]
    """Token keys whose columns were read."""
    leaves: tuple[LeafRecord, ...]
    files: Mapping[str, FileRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRecord:
    """One token catalog."""

    name: str
    fingerprints: tuple[str, ...]
    """Of the token extension's provenance; empty if its leaves have none."""
    rows: int
    tokens: int
    too_few: int
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardManifest:
    """What a folder of shards holds and what it was made from."""

    layout: int
    plan: str
    """Digest of the sources and choices; equal plans make equal shards."""
    domains: Mapping[str, tuple[int, int]]
    """Token key -> tokens and codes of the domain."""
    codecs: Mapping[str, str]
    """Token key -> digest of the codec that made the tokens; ``unknown`` without a record."""
    datasets: tuple[DatasetRecord, ...]

    @property
    def rows(self) -> int:
        """Objects in all."""
        return sum(dataset.rows for dataset in self.datasets)

    @property
    def too_few(self) -> int:
        """Objects with fewer than two tokens, which were left out."""
        return sum(dataset.too_few for dataset in self.datasets)

    def to_json(self) -> str:
        """As text; a shard's leaves stand in its own record."""
        facts = asdict(self)
        for dataset in facts["datasets"]:
            for shard in dataset["shards"]:
                del shard["leaves"]
        return json.dumps(facts, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ShardManifest:
        """Read `to_json`."""
        facts = json.loads(text)
        facts["domains"] = {key: tuple(sizes) for key, sizes in facts["domains"].items()}
        facts["datasets"] = tuple(
            DatasetRecord(
                **{
                    **dataset,
                    "fingerprints": tuple(dataset["fingerprints"]),
                    "shards": tuple(shard_record(shard) for shard in dataset["shards"]),
                }
            )
            for dataset in facts["datasets"]
        )
        return cls(**facts)


def shard_record(facts: Mapping[str, Any]) -> ShardRecord:
    """A shard's record from JSON."""
    return ShardRecord(
        **{
            **facts,
            "domains": tuple(facts["domains"]),
            "leaves": tuple(LeafRecord(**leaf) for leaf in facts.get("leaves", ())),
            "files": {name: FileRecord(**file) for name, file in facts["files"].items()},
        }
    )


def file_record(path: Path) -> FileRecord:
    """Size and digest of a file as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


def open_array(folder: Path, name: str) -> NDArray[Any]:
    """Memory-mapped array of a shard."""
    path = folder / name
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, ARRAYS[name])
    return np.memmap(path, ARRAYS[name], mode="r").view(np.ndarray)


def write_synced(path: Path, text: str) -> None:
    """Write a file so that it appears at once and whole."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text)
    sync(aside)
    aside.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
