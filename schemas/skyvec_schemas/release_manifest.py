"""A release as an immutable version: what its manifest says and how it lies on disk.

    <store>/current.json              which release is in use; the only file that is ever replaced
    <store>/<release>/release.json    `ReleaseManifest`: small, with the digests of three tables
                      files.parquet      `FILES`: one row for each file
                      objects.parquet    `OBJECTS`: one row for each object, so that two releases
                                         are compared without their pixels
                      withdrawn.parquet  `WITHDRAWN`: objects that are no longer part of it

A changed object is one whose row digest differs. The digest covers the values of every column but
id and position, which are compared as such, and `BOOKKEEPING`. It does not depend on how a file
is laid out: chunks, row groups, compression, byte order, the order of rows and columns, the width
of a text field, filling at the end of spectra.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa

from skyvec_schemas.errors import ContractError

Layout = Literal["mmu-hdf5", "hats"]

VERSION = 1
"""Of the manifest; a reader refuses any other."""
ROW_DIGEST = "sha256-128/1"
"""How rows are digested; only equal ones can be compared."""
DIGEST_BYTES = 16
BOOKKEEPING = frozenset({"healpix", "_healpix_29", "norder", "dir", "npix", "gid"})
"""Columns, in lower case, that say where a row lies and not what was observed. ``gid`` counts the
rows of one file of the Legacy Survey, so that one new object would change all others."""

MANIFEST, CURRENT = "release.json", "current.json"
FILES_TABLE, OBJECTS_TABLE, WITHDRAWN_TABLE = (
    "files.parquet",
    "objects.parquet",
    "withdrawn.parquet",
)

FILES = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("rows", pa.int64()),
        pa.field("order", pa.int32()),
        pa.field("npix", pa.int64()),
        pa.field("schema", pa.string()),
        pa.field("healpix_min", pa.int64()),
        pa.field("healpix_max", pa.int64()),
        pa.field("reused_from", pa.string()),
        pa.field("held_by", pa.string()),
    ]
)
"""Columns as in `ReleaseFile`."""

OBJECTS = pa.schema(
    [
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("_healpix_29", pa.int64(), nullable=False),
        pa.field("ra", pa.float64()),
        pa.field("dec", pa.float64()),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
    ]
)
"""``object_id`` as canonical text; ``_healpix_29`` is -1 where the position is not on the sky;
``shard`` counts the rows of ``files.parquet``."""

WITHDRAWN = pa.schema(
    [
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("since", pa.string(), nullable=False),
    ]
)
"""Tombstones; ``since`` is the release that withdrew the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseFile:
    """One file of a release: a shard with objects, or a companion such as metadata."""

    path: str
    """Relative to the root of the release that holds the file, with forward slashes."""
    sha256: str
    bytes: int
    rows: int | None = None
    """Objects in the file, tombstoned ones included; None for a companion."""
    order: int | None = None
    """HEALPix order of the file's pixel."""
    npix: int | None = None
    """Its nested index."""
    schema: str | None = None
    """Digest of column names, types and shapes."""
    healpix_min: int | None = None
    """Smallest ``_healpix_29``; None where no object has a position."""
    healpix_max: int | None = None
    reused_from: str | None = None
    """First release with a file of these very bytes."""
    held_by: str | None = None
    """Release of the same store under whose root the file lies; None for its own root."""

    @property
    def is_shard(self) -> bool:
        """Whether it holds objects."""
        return self.rows is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseManifest:
    """What a release is, in one small record that vouches for everything else by digest."""

    release: str
    survey: str
    upstream: str
    """Release of the survey that it was made from, for people."""
    layout: Layout
    schema: str
    """Digest over the schemas of its shards."""
    root: str
    """Folder of the files, relative to the manifest's own."""
    builder: str
    """Software and version."""
    created: str
    """UTC, ISO 8601."""
    parent: str | None
    """Release that it follows."""
    parent_digest: str | None
    counts: Mapping[str, int]
    tables: Mapping[str, str]
    """Table -> SHA-256 of its file."""
    row_digest: str = ROW_DIGEST
    version: int = VERSION

    def digest(self) -> str:
        """SHA-256 over all of it: the identity of the release."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Indented JSON with the digest."""
        return json.dumps({**asdict(self), "digest": self.digest()}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> ReleaseManifest:
        """Read `to_json`.

        Raises
        ------
        ContractError
            If it is not a manifest, of another version, or does not match its own digest.
        """
        remedy = "Restore the file from a copy; manifests are never edited"
        try:
            facts = json.loads(text)
            stated = facts.pop("digest")
            version = facts["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ContractError("not a release manifest", where=where, remedy=remedy) from problem
        if version != VERSION:
            raise ContractError(
                f"version {version} of the manifest, this skyvec reads {VERSION}",
                where=where,
                remedy="Use the skyvec that wrote it, or make the release again",
            )
        try:
            manifest = cls(**facts)
        except TypeError as problem:
            raise ContractError("not a release manifest", where=where, remedy=remedy) from problem
        if manifest.digest() != stated:
            raise ContractError("does not match its own digest", where=where, remedy=remedy)
        return manifest


def files_table(files: Iterable[ReleaseFile]) -> pa.Table:
    """Files -> table of schema `FILES`."""
    return pa.Table.from_pylist([asdict(file) for file in files], schema=FILES)


def files_of(table: pa.Table, *, where: str) -> tuple[ReleaseFile, ...]:
    """Read `files_table`.

    Raises
    ------
    ContractError
        If columns are missing, or a path leads out of its release.
    """
    names = [field.name for field in fields(ReleaseFile)]
    if absent := set(names) - set(table.column_names):
        raise ContractError(
            f"no column {', '.join(sorted(absent))}",
            where=where,
            remedy="Restore the file from a copy",
        )
    files = tuple(ReleaseFile(**row) for row in table.select(names).to_pylist())
    for file in files:
        place = PurePosixPath(file.path)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise ContractError(
                f"path {file.path!r} leads out of the release",
                where=where,
                remedy="Do not use this manifest; make the release again",
            )
    return files


def schema_digest(columns: Iterable[str]) -> str:
    """Digest of column descriptions, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(columns))).encode()).hexdigest()[:16]
