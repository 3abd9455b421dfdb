"""Releases of a store: opening, locating files, verifying, and which one is current.

Everything about a release is in its own folder of the store, which appears whole and is never
touched again; see `skyvec_schemas.release_manifest` for what lies in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.release_manifest import (
    CURRENT,
    FILES_TABLE,
    MANIFEST,
    OBJECTS_TABLE,
    WITHDRAWN_TABLE,
    ReleaseFile,
    ReleaseManifest,
    files_of,
)

_BLOCK = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Release:
    """An immutable version of a survey's files."""

    folder: Path
    """Of the manifest and its tables, inside the store."""
    manifest: ReleaseManifest

    @classmethod
    def open(cls, path: str | Path) -> Release:
        """Open a release by its folder or ``release.json``; a store gives its current release.

        Raises
        ------
        ConfigurationError
            If there is no release.
        ContractError
            If the manifest was altered.
        """
        folder = Path(path)
        if folder.name == MANIFEST:
            folder = folder.parent
        if (folder / CURRENT).is_file() and not (folder / MANIFEST).is_file():
            folder = folder / current_release(folder)
        place = folder / MANIFEST
        if not place.is_file():
            raise ConfigurationError(
                f"no {MANIFEST} there",
                where=str(path),
                remedy="Give the folder that `skyvec release make` wrote, or make a release first",
            )
        return cls(
            folder=folder, manifest=ReleaseManifest.from_json(place.read_text(), where=str(place))
        )

    @property
    def name(self) -> str:
        """Name of the release, which is that of its folder."""
        return self.manifest.release

    @property
    def root(self) -> Path:
        """Folder of its own files."""
        return Path(os.path.normpath(self.folder / self.manifest.root))

    @cached_property
    def files(self) -> tuple[ReleaseFile, ...]:
        """Every file, shards and companions."""
        place = self._table(FILES_TABLE)
        return files_of(pq.read_table(place), where=str(place))

    @cached_property
    def withdrawn(self) -> pa.Table:
        """Tombstones, of schema `skyvec_schemas.release_manifest.WITHDRAWN`."""
        return pq.read_table(self._table(WITHDRAWN_TABLE))

    def path_of(self, file: ReleaseFile) -> Path:
        """Where a file lies; one held by another release of the store lies there."""
        if file.held_by is None:
            return self.root / file.path
        return Release.open(self.folder.parent / file.held_by).root / file.path

    def objects(
        self,
        columns: list[str] | None = None,
        *,
        shards: Sequence[int] | None = None,
        ids: Sequence[str] = (),
    ) -> pa.Table:
        """Objects that are part of the release, without withdrawn ones.

        Parameters
        ----------
        columns
            Of `skyvec_schemas.release_manifest.OBJECTS`; all by default.
        shards
            Places in `files`; all by default.
        ids
            Also these objects, wherever they are.
        """
        place = self._table(OBJECTS_TABLE)
        gone = self.withdrawn.column("object_id").combine_chunks()
        chosen = ~pc.field("object_id").isin(gone)
        if shards is not None:
            chosen &= pc.field("shard").isin(shards) | pc.field("object_id").isin(
                pa.array(ids, pa.string())
            )
        return pq.read_table(place, columns=columns, filters=chosen)

    def object_batches(
        self, rows: int = 1 << 17, *, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Objects of all files, withdrawn ones included, a batch at a time."""
        with pq.ParquetFile(self._table(OBJECTS_TABLE)) as table:
            yield from table.iter_batches(rows, columns=columns)

    def _table(self, name: str) -> Path:
        place = self.folder / name
        stated = self.manifest.tables.get(name)
        if (place, stated) not in _CHECKED:
            if not place.is_file() or sha256_of(place) != stated:
                raise ContractError(
                    "is missing or not the file that the manifest vouches for",
                    where=str(place),
                    remedy="Restore the folder of this release from a copy",
                )
            _CHECKED.add((place, stated))
        return place


_CHECKED: set[tuple[Path, str | None]] = set()
"""Tables that matched their manifest in this process, which is not looked at again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What became of the files of a release and of its tables; paths as in the manifest."""

    release: str
    checked: int
    """Files whose bytes were digested again; all others had their size compared."""
    files: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    """Other size or other digest."""
    extra: tuple[str, ...]
    """Under the release's root, but not part of it."""

    @property
    def ok(self) -> bool:
        """Whether every file is what it was, and no other is there."""
        return not (self.missing or self.changed or self.extra)


def verify_release(
    release: Release,
    *,
    sample: float = 1.0,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Digest the files of a release again; name each that is missing, changed or extra.

    Parameters
    ----------
    sample
        Share of the files to digest, chosen at random; presence and size are checked for all.
    seed
        Of the choice.
    progress
        Called with 1 after each file.
    """
    if not 0 <= sample <= 1:
        raise ConfigurationError(
            f"a sample of {sample}", where="verify", remedy="Give a share from 0 to 1"
        )
    tables = {name: release.folder / name for name in release.manifest.tables}
    missing = [name for name, place in tables.items() if not place.is_file()]
    changed = [
        name
        for name, place in tables.items()
        if name not in missing and sha256_of(place) != release.manifest.tables[name]
    ]
    chosen = set(
        random.Random(seed).sample(range(len(release.files)), round(sample * len(release.files)))  # noqa: S311 - not a secret
    )
    for place, file in enumerate(release.files):
        path = release.path_of(file)
        if not path.is_file():
            missing.append(file.path)
        elif path.stat().st_size != file.bytes or (
            place in chosen and sha256_of(path) != file.sha256
        ):
            changed.append(file.path)
        if progress:
            progress(1)
    own = {file.path for file in release.files if file.held_by is None}
    found = set(files_below(release.root)) if release.root.is_dir() and own else set()
    return Verification(
        release=release.name,
        checked=len(chosen),
        files=len(release.files),
        missing=tuple(missing),
        changed=tuple(changed),
        extra=tuple(sorted(found - own)),
    )


def current_release(store: Path) -> str:
    """Name of the release that a store's pointer names."""
    place = store / CURRENT
    try:
        name = str(json.loads(place.read_text())["release"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ContractError(
            "does not name a release",
            where=str(place),
            remedy="Run `skyvec release publish` on the release to use",
        ) from problem
    return check_name(name)


def publish(release: Release) -> None:
    """Make a release the current one of its store, in one step."""
    facts = {"release": release.name, "digest": release.manifest.digest()}
    place = release.folder.parent / CURRENT
    aside = place.with_name(f".{CURRENT}.{uuid.uuid4().hex}")
    try:
        aside.write_text(json.dumps(facts) + "\n")
        flush(aside)
        os.replace(aside, place)  # noqa: PTH105 - atomic on every platform
        flush(place.parent)
    finally:
        aside.unlink(missing_ok=True)


def check_name(name: str) -> str:
    """Refuse a name that could not be a folder of the store."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigurationError(
            f"{name!r} cannot name a release",
            where="release",
            remedy="Use letters, digits, dots, dashes and underscores",
        )
    return name


def files_below(root: Path) -> Iterator[str]:
    """Paths of all files under a folder, relative to it; hidden ones are left out."""
    for folder, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                yield (Path(folder) / file).relative_to(root).as_posix()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks.

    Raises
    ------
    ContractError
        If the file changes meanwhile or cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while count := file.readinto(block):
                digest.update(block[:count])
            after = os.fstat(file.fileno())
    except OSError as problem:
        raise ContractError(
            f"cannot be read ({problem.strerror})",
            where=str(path),
            remedy="Make it readable, or copy it again",
        ) from problem
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ContractError(
            "changed while it was read",
            where=str(path),
            remedy="Wait until nobody writes to it and run again",
        )
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
