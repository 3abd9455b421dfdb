"""Compiled shards, memory-mapped: any objects by their row, in any order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_core.modalities import MODALITIES, modality_bits
from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_training.data.shard_files import (
    LAYOUT_VERSION,
    MANIFEST,
    OBJECTS,
    FileRecord,
    ShardManifest,
    ShardRecord,
    file_record,
    open_array,
)
from skyvec_training.data.shard_rows import LEAST_TOKENS, unpack

# Shape letters: B object, A all positions of a vocabulary.

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """What is known of consecutive objects without reading their tokens."""

    start: int
    """Row of the first."""
    keys: NDArray[np.uint64]
    """Hashes of their ids."""
    healpix: NDArray[np.int64]
    """Pixel at order 29; -1 where not known."""
    presence: NDArray[np.uint64]
    lone: NDArray[np.uint64]

    def usable(self, vocabulary: Vocabulary) -> NDArray[np.bool_]:
        """Which have two tokens or more of the vocabulary."""
        keys = [modality.token_key for modality in vocabulary.modalities]
        inside = self.presence & np.uint64(modality_bits(keys))
        return (np.bitwise_count(inside) >= LEAST_TOKENS) | ((inside & ~self.lone) > 0)


@dataclass(frozen=True, slots=True)
class _Mapped:
    codes: NDArray[np.int16]
    offsets: NDArray[np.int64]
    presence: NDArray[np.uint64]


class Shards:
    """Objects of compiled data sets, one after the other; rows count over all of them."""

    def __init__(self, folder: Path, manifest: ShardManifest) -> None:
        self.folder, self.manifest = folder, manifest
        records = [shard for dataset in manifest.datasets for shard in dataset.shards]
        self._records = [record for record in records if record.rows]
        self._stops = np.cumsum([record.rows for record in self._records])
        self._starts = self._stops - [record.rows for record in self._records]
        self._mapped: list[_Mapped | None] = [None] * len(self._records)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what `compiling.compile_shards` wrote; sizes of all files are compared.

        Raises
        ------
        ConfigurationError
            If the folder is no complete corpus, or of another layout or registry.
        ContractError
            If a file is not as long as it was when it was written.
        """
        shards = cls(folder, _manifest_of(folder))
        for path, record in shards._files():
            size = path.stat().st_size if path.is_file() else 0
            if size != record.bytes:
                raise _changed(path, f"it has {size} bytes instead of {record.bytes}")
        return shards

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def datasets(self) -> Mapping[str, range]:
        """Rows of each data set."""
        found, start = {}, 0
        for dataset in self.manifest.datasets:
            found[dataset.name] = range(start, start + dataset.rows)
            start += dataset.rows
        return found

    def codes(self, rows: Rows, vocabulary: Vocabulary) -> NDArray[np.int16]:
        """Code (B, A) of each position, within its domain; -1 where nothing was observed."""
        shards_B = np.searchsorted(self._stops, rows, side="right")
        parts, presence_B = [], np.empty(len(rows), np.uint64)
        own_B = rows - self._starts[shards_B]
        for index, (shard, row) in enumerate(zip(shards_B.tolist(), own_B.tolist(), strict=True)):
            mapped = self._mapped[shard] or self._map(shard)
            start, stop = mapped.offsets[row : row + 2]
            parts.append(mapped.codes[start:stop])
            presence_B[index] = mapped.presence[row]
        lengths_B = np.array([len(part) for part in parts], np.int64)
        flat = np.concatenate(parts) if parts else np.empty(0, np.int16)
        return unpack(flat, lengths_B, presence_B, vocabulary)

    def facts(self, rows: range) -> Iterator[ObjectFacts]:
        """Facts of a data set's objects, shard by shard."""
        for shard in range(len(self._records)):
            start = int(self._starts[shard])
            if start in rows:
                arrays = (self._array(shard, name) for name in
                          ("keys.u64", "healpix.i64", "presence.u64", "lone.u64"))  # fmt: skip
                keys, healpix, presence, lone = arrays
                yield ObjectFacts(
                    start=start, keys=keys, healpix=healpix, presence=presence, lone=lone
                )

    def objects(self, rows: Rows) -> pa.Table:
        """Where objects come from: ``dataset``, ``object_id``, ``order`` and ``pixel`` of the leaf."""
        shards_B = np.searchsorted(self._stops, rows, side="right")
        names = [name for name, own in self.datasets.items() for r in self._records_of(own)]
        found = [
            pq.read_table(self.folder / self._records[shard].folder / OBJECTS)
            .slice(int(row - self._starts[shard]), 1)
            .add_column(0, "dataset", pa.array([names[shard]]))
            for shard, row in zip(shards_B, rows, strict=True)
        ]
        return pa.concat_tables(found)

    def verify(self) -> None:
        """Compare the digests of all files with the manifest; reads everything once."""
        for path, record in self._files():
            if file_record(path).sha256 != record.sha256:
                raise _changed(path, "its digest is not that of the manifest")

    def _records_of(self, rows: range) -> list[ShardRecord]:
        return [
            r for r, start in zip(self._records, self._starts, strict=True) if int(start) in rows
        ]

    def _files(self) -> Iterator[tuple[Path, FileRecord]]:
        for record in self._records:
            for name, file in record.files.items():
                yield self.folder / record.folder / name, file

    def _array(self, shard: int, name: str) -> NDArray[Any]:
        return open_array(self.folder / self._records[shard].folder, name)

    def _map(self, shard: int) -> _Mapped:
        arrays = (self._array(shard, name) for name in
                  ("codes.i16", "offsets.i64", "presence.u64"))  # fmt: skip
        mapped = _Mapped(*arrays)
        self._mapped[shard] = mapped
        return mapped

    def require(self, vocabulary: Vocabulary) -> None:
        """Refuse a vocabulary with a domain that no data set has.

        Raises
        ------
        MissingColumnError
            Names the domains.
        """
        keys = {modality.token_key for modality in vocabulary.modalities}
        missing = sorted(keys - self.manifest.domains.keys())
        if missing:
            raise MissingColumnError(
                f"column {', '.join(missing)} is missing from all data sets",
                where=str(self.folder),
                remedy="Tokenize with this modality, or take it out of the recipe's "
                "transformer.model.domains",
            )


def _manifest_of(folder: Path) -> ShardManifest:
    place = folder / MANIFEST
    if not place.is_file():
        raise ConfigurationError(
            f"there is no {MANIFEST}: nothing was compiled here, or it was stopped",
            where=str(folder),
            remedy="Run `python -m skyvec_training compile-tokens` with this --out (again)",
        )
    text = place.read_text()
    layout = json.loads(text).get("layout")
    if layout != LAYOUT_VERSION:
        raise ConfigurationError(
            f"the shards have layout {layout}, this version reads layout {LAYOUT_VERSION}",
            where=str(place),
            remedy="Compile the tokens again into another folder",
        )
    manifest = ShardManifest.from_json(text)
    for key, sizes in manifest.domains.items():
        known = MODALITIES.get(key)
        if known is None or (known.num_tokens, known.vocabulary) != sizes:
            raise ConfigurationError(
                f"its {key} has {sizes[0]} tokens of {sizes[1]} codes, which is no domain of ours",
                where=str(place),
                remedy="Tokenize and compile again with this version",
            )
    return manifest


def _changed(path: Path, what: str) -> ContractError:
    return ContractError(
        f"it changed since it was compiled: {what}",
        where=str(path),
        remedy="Delete its folder and the manifest, and compile the tokens again",
    )
