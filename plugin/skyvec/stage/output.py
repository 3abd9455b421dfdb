"""The folder that an extension's catalog grows in, local or on an object store.

A leaf appears under its name whole or not at all, and before its record: a pixel is done when its
record says so. Records are small JSON files, one for each pixel, written by whoever made it; at the
end of a run they are gathered into one table, so that a release of 200,000 pixels is one read.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from upath import UPath

from skyvec.releases.hats.leaf import leaf_path
from skyvec.releases.hats.remote import is_remote, located, open_parquet, patiently
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.record_table import (
    GROUP_RECORDS,
    Key,
    from_facts,
    from_row,
    quanta_rows,
    quanta_table,
)
from skyvec_schemas.errors import ConfigurationError, ContractError, SkyvecError
from skyvec_schemas.provenance import Provenance

STAGING = Path(".staging")
HOME = Path("skyvec")
"""What skyvec knows about the catalog that holds it."""
RUN_FILE = HOME / "run.json"
"""Provenance of a run, written before its first pixel."""
JOB_FILE = HOME / "job.json"
"""Where the inputs lay; for people, and to read rows anew."""
MANIFEST = HOME / "manifest.json"
QUANTA = HOME / "quanta.parquet"
RECORDS = HOME / "records"
QUARANTINE = HOME / "quarantine"

READERS, READ_AT_A_TIME = 16, 16
"""Threads that read records, and files that each takes at a time: on a shared file system a file
takes milliseconds of waiting, on a disk less than to hand it to a thread."""


class Output:
    """Where a run writes."""

    def __init__(self, root: str | Path) -> None:
        self.root = _unremembered(located(root))
        self._sizes: dict[str, int] | None = None

    @cached_property
    def remote(self) -> bool:
        """Whether it is an object store."""
        return is_remote(self.root)

    @cached_property
    def _staging(self) -> Path:
        return self.root / STAGING

    @cached_property
    def _records(self) -> Path:
        return self.root / RECORDS

    def leaf(self, pixel: HealpixPixel) -> Path:
        """The file of one pixel."""
        return leaf_path(self.root, pixel)

    def is_foreign(self) -> bool:
        """Whether something is there that skyvec did not make."""

        def look() -> bool:
            return self.root.exists() and not (self.root / HOME).is_dir()

        return (
            look()
            if not self.remote
            else patiently(look, where=str(self.root), kind=ConfigurationError)
        )

    def listed(self) -> Output:
        """Itself, with the sizes of all leaves of an object store from one listing.

        To plan with: what is written later it does not see.
        """
        if self.remote:
            dataset = self.root / "dataset"
            found = patiently(
                lambda: _store(dataset).find(dataset.path, detail=True),  # type: ignore[attr-defined]
                where=str(dataset),
                kind=ConfigurationError,
            )
            self._sizes = {key: int(facts["size"]) for key, facts in found.items()}
        return self

    # ---- pixels

    @contextmanager
    def staged(self, pixel: HealpixPixel) -> Iterator[Path]:
        """A local file to write to, of a name that no other attempt has; gone after the block."""
        if self.remote:
            with tempfile.TemporaryDirectory(prefix="skyvec-") as folder:
                yield Path(folder) / f"{pixel.order}_{pixel.pixel}.parquet"
            return
        self._staging.mkdir(parents=True, exist_ok=True)
        place = self._staging / f"{pixel.order}_{pixel.pixel}.{uuid.uuid4().hex}"
        try:
            yield place
        finally:
            place.unlink(missing_ok=True)

    def commit(self, staged: Path, pixel: HealpixPixel) -> None:
        """Give a verified file its name, in one step."""
        self.put(staged, self.leaf(pixel))

    def put(self, local: Path, place: Path) -> None:
        """Move a local file to a place of the output, whole or not at all."""
        if self.remote:
            # An object appears when its upload is complete.
            _upload(place, lambda store, key: store.put_file(str(local), key))
            return
        with local.open("rb") as file:
            os.fsync(file.fileno())  # a name must never outlive a crash without its bytes
        _rename(local, place)

    def put_text(self, text: str, place: Path) -> None:
        """Write a small file, whole or not at all."""
        if self.remote:
            _upload(place, lambda store, key: store.pipe_file(key, text.encode()))
            return
        aside = self._staging / f"{place.name}.{uuid.uuid4().hex}"
        try:
            try:
                aside.write_bytes(text.encode())
            except FileNotFoundError:  # the first file, or a run beside this one has tidied up
                self._staging.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(text.encode())
            _rename(aside, place)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """A local folder for files to `put`, on the output's own disk if it has one; gone after."""
        staging = None if self.remote else self._staging
        if staging:
            staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=staging, prefix="skyvec-") as folder:
            yield Path(folder)
        if staging:
            with suppress(OSError):  # somebody else is at work in it
                staging.rmdir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let other processes wait that say the same of this folder, where it knows `flock`.

        The lock goes with the process and leaves no file behind. On an object store, and on file
        systems without such locks, nobody waits.
        """
        if self.remote:
            yield
            return
        handle = os.open(self.root, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def clear_staging(self) -> None:
        """Remove what killed attempts left; nobody may be writing."""
        if not self.remote:
            shutil.rmtree(self._staging, ignore_errors=True)

    # ---- who wrote it

    def earlier(self) -> Provenance | None:
        """What the folder was begun with."""
        place = self.root / RUN_FILE
        return Provenance.from_json(place.read_text()) if place.is_file() else None

    def claim(self, provenance: Provenance, job: Mapping[str, object]) -> None:
        """Say whose output this is before the first pixel is written, so that no two runs mix."""
        self.put_text(json.dumps(job, indent=2, sort_keys=True), self.root / JOB_FILE)
        self.put_text(provenance.to_json(), self.root / RUN_FILE)

    def reopen(self) -> None:
        """There is work to do: what an earlier manifest says of the whole holds no more."""
        (self.root / MANIFEST).unlink(missing_ok=True)

    # ---- records

    def save(self, record: QuantumRecord) -> None:
        """Keep what became of a pixel."""
        # `asdict` would copy the sky map entry by entry.
        self.put_text(json.dumps(vars(record)), self._records / _name(record.key))

    def record(self, pixel: HealpixPixel) -> QuantumRecord | None:
        """The fresh record of one pixel, if this run has written one."""
        place = self._records / _name((pixel.order, pixel.pixel))
        try:
            return from_facts(json.loads(place.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def records(self, made: Iterable[QuantumRecord] = ()) -> dict[Key, QuantumRecord]:
        """What became of every pixel so far; the latest word counts.

        Parameters
        ----------
        made
            Records that this process has in hand; these are not read again.
        """
        ours = {record.key: record for record in made}
        found = {record.key: record for _, record in self._fresh_places(besides=ours)}
        return {**self.gathered(), **found, **ours}

    def gather(self, records: Iterable[QuantumRecord]) -> None:
        """Put all records into one table, one row for each pixel, and drop the single ones."""
        every = {record.key: record for record in records}
        if self.gathered() != every and not self._put_table(quanta_table(every.values())):
            return
        self._remove(
            [place for place, record in self._fresh_places() if every.get(record.key) == record]
        )

    def _put_table(self, table: pa.Table) -> bool:
        """Write the table of records; whether it can be read back as it is."""
        with self.workshop() as folder:
            pq.write_table(table, folder / QUANTA.name, row_group_size=GROUP_RECORDS)
            self.put(folder / QUANTA.name, self.root / QUANTA)
        with open_parquet(self.root / QUANTA) as file:
            return bool(file.read().equals(table))

    def _remove(self, places: list[Path]) -> None:
        if self.remote and places:
            _store(self.root).rm([place.path for place in places])  # type: ignore[attr-defined]
            return
        for place in places:
            place.unlink(missing_ok=True)

    def gathered(self, near: HealpixPixel | None = None) -> dict[Key, QuantumRecord]:
        """Records of the table: all, or those of pixels that overlap with one."""
        return {record.key: record for record in map(from_row, self._rows(near=near))}

    def _rows(
        self, *, columns: Sequence[str] | None = None, near: HealpixPixel | None = None
    ) -> Iterator[dict[str, Any]]:
        place = self.root / QUANTA
        if not place.is_file():
            return
        with open_parquet(place) as file:
            yield from quanta_rows(file, columns=columns, near=near)

    def fingerprints(self) -> dict[Key, str]:
        """Of every pixel so far; of the table, no other columns are read."""
        rows = self._rows(columns=("order", "pixel", "fingerprint"))
        known = {(row["order"], row["pixel"]): row["fingerprint"] for row in rows}
        return {**known, **{record.key: record.fingerprint for record in self.fresh()}}

    def fresh(self) -> Iterator[QuantumRecord]:
        """Records that are not in the table yet."""
        return (record for _, record in self._fresh_places())

    def _fresh_places(
        self, *, besides: Collection[Key] = ()
    ) -> Iterator[tuple[Path, QuantumRecord]]:
        for place, text in self._texts(self._records, besides={_name(key) for key in besides}):
            try:
                yield place, from_facts(json.loads(text))
            except (ValueError, TypeError, KeyError):
                continue  # torn by a crash of the machine: the pixel is made again

    def _texts(
        self, folder: Path, *, besides: Collection[str]
    ) -> Iterator[tuple[Path, str | bytes]]:
        """The JSON files of a folder; of a store all at once, since each is a request."""
        if not folder.is_dir():
            return
        found = (place for place in folder.glob("*.json") if place.name not in besides)
        places = sorted(found, key=str)
        if not self.remote:
            parts = [
                places[at : at + READ_AT_A_TIME] for at in range(0, len(places), READ_AT_A_TIME)
            ]
            with ThreadPoolExecutor(READERS) as readers:
                for part, texts in zip(parts, readers.map(_read_all, parts), strict=True):
                    yield from ((p, text) for p, text in zip(part, texts, strict=True) if text)
            return
        keys = [place.path for place in places]  # type: ignore[attr-defined]
        held = _store(folder).cat(keys, on_error="omit") if keys else {}
        yield from ((place, held[key]) for place, key in zip(places, keys, strict=True)
                    if key in held)  # fmt: skip

    def is_whole(self, record: QuantumRecord) -> bool:
        """Whether the file of a finished pixel is still there, as long as its record says."""
        if record.outcome == "empty":
            return True
        place = self.leaf(HealpixPixel(*record.key))
        if self.remote and record.bytes:
            # An object is there whole or not at all, so its length says enough.
            key = place.path  # type: ignore[attr-defined]
            size = self.size(place) if self._sizes is None else self._sizes.get(key)
            return size == record.bytes
        try:
            if record.bytes and int(place.stat().st_size) != record.bytes:
                return False
            with open_parquet(place) as file:
                return int(file.metadata.num_rows) == record.rows
        except (OSError, pa.ArrowInvalid, SkyvecError):
            return False

    def size(self, place: Path) -> int | None:
        """Bytes of a file of the output; None if it is not there.

        Raises
        ------
        InfrastructureError
            If the store does not answer.
        """
        try:
            if not self.remote:
                return int(place.stat().st_size)
            key = place.path  # type: ignore[attr-defined]
            return int(patiently(lambda: _store(place).info(key)["size"], where=str(place)))
        except (FileNotFoundError, ContractError):
            return None


@lru_cache(maxsize=2)
def fingerprints(folder: str, run_id: str) -> dict[Key, str]:
    """`Output.fingerprints` of an extension, read once in each process and run."""
    del run_id
    return Output(folder).fingerprints()


def _name(key: Key) -> str:
    """Of the file that holds the record of a pixel."""
    return f"Norder={key[0]}_Npix={key[1]}.json"


def _rename(local: Path, place: Path) -> None:
    """Give a file its name, in one step; the first of its folder makes that."""
    try:
        os.replace(local, place)  # noqa: PTH105 - atomic on every platform
    except FileNotFoundError:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local, place)  # noqa: PTH105


def _read_all(places: Sequence[Path]) -> list[str]:
    return [_text(place) for place in places]


def _text(place: Path) -> str:
    try:
        return place.read_text()
    except FileNotFoundError:
        return ""


def _unremembered(root: Path) -> Path:
    """A store whose listings are not kept: workers elsewhere write to it as well."""
    if not is_remote(root):
        return root
    options = {**cast("UPath", root).storage_options, "use_listings_cache": False}
    return cast("Path", UPath(str(root), **options))


def _store(place: Path) -> Any:  # noqa: ANN401
    return cast("UPath", place).fs


def _upload(place: Path, write: Callable[[Any, str], object]) -> None:
    """Write one object; what no repetition mends (no bucket, no access) ends the run."""
    key = cast("UPath", place).path
    patiently(lambda: write(_store(place), key), where=str(place), kind=ConfigurationError)
