"""An extension as it lies on disk, read without trusting any of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import PartitionInfo
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.extensions.publish import is_committed
from skyvec.extensions.vector_catalog import extension_names
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import leaf_path
from skyvec.releases.hats.remote import first_line, is_remote, located
from skyvec.stage.found_runs import found_runs, meant
from skyvec.stage.output import JOB_FILE, MANIFEST, RUN_FILE, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import ConfigurationError, ContractError, SkyvecError
from skyvec_schemas.provenance import FOOTER_KEY, Provenance

KEYS = 4
"""Columns that every output begins with: spatial index, id, right ascension, declination."""
AGAIN = "Run the same `skyvec embed` again"
REDO = "Delete this file and run the same `skyvec embed` again"


@dataclass(frozen=True, kw_only=True)
class LeafFacts:
    """What the footer of one leaf says."""

    pixel: HealpixPixel
    path: Path
    rows: int = 0
    fingerprint: str = ""
    """Of the run that wrote it; empty if its footer carries none."""
    columns: str = ""
    """How its columns differ from the others'; empty if they do not."""
    error: str = ""
    """Why it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The extension that is verified."""

    name: str
    folder: Path
    """Of its catalog."""
    provenance: Provenance
    """As the run declared it before its first pixel; everything else is compared with this."""
    records: Mapping[tuple[int, int], QuantumRecord]
    job: Mapping[str, Any]
    """Where the inputs lay; empty where that was not recorded."""

    @classmethod
    def open(cls, catalog: str | Path, extension: str | None = None) -> Subject:
        """Find an extension by its collection and name, by its folder or by its properties file.

        Raises
        ------
        ConfigurationError
            If there is none, or several and none was named.
        ContractError
            If what skyvec keeps about it cannot be read.
        """
        folder = _folder(catalog, extension)
        output = Output(folder)
        try:
            provenance = output.earlier()
            records = output.records()
            job = _json(folder / JOB_FILE) if (folder / JOB_FILE).is_file() else {}
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            pa.ArrowException,
            SkyvecError,
        ) as problem:
            raise ContractError(
                f"its records cannot be read ({first_line(problem)})",
                where=str(folder / RUN_FILE.parent),
                remedy="Without them nothing can be proved: delete the extension and embed again",
            ) from problem
        if provenance is None:
            raise ContractError(
                f"{RUN_FILE} is missing",
                where=str(folder),
                remedy="Without it nothing can be proved: delete the extension and embed again",
            )
        return cls(name=folder.name, folder=folder, provenance=provenance, records=records, job=job)

    @property
    def home(self) -> Path:
        """Folder that holds the extension: the collection, or another place."""
        return self.folder.parent

    @property
    def properties(self) -> Path:
        """``<name>.properties``; there once it was published."""
        return self.home / f"{self.name}.properties"

    @property
    def published(self) -> bool:
        """Whether readers can load it by name."""
        return self.properties.is_file()

    @cached_property
    def under_way(self) -> bool:
        """Whether its last run did not come to an end: published is nothing, or what was before it."""
        told: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):
            told = _json(self.folder / MANIFEST)
        if not told.get("complete"):  # a run removes the manifest before its first pixel
            return True
        if told.get("published"):
            return False
        done = [record for record in self.records.values() if record.finished]
        return not is_committed(Output(self.folder), done, name=self.name)

    @cached_property
    def counted(self) -> list[LeafFacts]:
        """Leaves that the published metadata should count: all, or those of before a run under way."""
        if not self.under_way:
            return self.leaves
        with suppress(OSError, ValueError, KeyError):
            listed = PartitionInfo.read_from_csv(self.folder / "partition_info.csv")
            before = set(listed.get_healpix_pixels())
            return [leaf for leaf in self.leaves if leaf.pixel in before]
        return self.leaves

    @property
    def counted_rows(self) -> int:
        """Of these; of a leaf that cannot be read, which is said elsewhere, as many as were written."""
        return sum(
            self.records[leaf.pixel.order, leaf.pixel.pixel].rows if leaf.error else leaf.rows
            for leaf in self.counted
        )

    @cached_property
    def pixels(self) -> list[HealpixPixel]:
        """Pixels that should have a leaf."""
        return [HealpixPixel(*key) for key, record in self.records.items() if record.rows]

    def leaf(self, pixel: HealpixPixel) -> Path:
        """Where the leaf of a pixel belongs."""
        return leaf_path(self.folder, pixel)

    def shown(self, path: Path) -> str:
        """A path as people can use it where they stand."""
        here = Path.cwd().resolve()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    @cached_property
    def schema(self) -> pa.Schema | None:
        """Columns of the extension: as the catalog declares them, or as its first leaf has them."""
        places = [self.folder / "dataset" / "_common_metadata", *map(self.leaf, self.pixels)]
        for place in places:
            try:
                found = pq.read_schema(place)
            except (OSError, pa.ArrowException):
                continue
            return found.remove_metadata()
        return None

    @cached_property
    def keys(self) -> list[str]:
        """Spatial index, id, right ascension and declination."""
        return list(self.schema.names[:KEYS]) if self.schema else []

    @cached_property
    def columns(self) -> EmbeddingColumns | None:
        """Columns of vectors; None for a product of tokens or if there are none."""
        kind = self.provenance.vector_type
        if self.provenance.product != "embedding" or self.schema is None:
            return None
        place = self.schema.get_field_index(self.name)
        if place < 0 or not isinstance(self.schema.field(place).type, pa.FixedShapeTensorType):
            return None
        width = int(self.schema.field(place).type.shape[0])
        return EmbeddingColumns(
            name=self.name, dim=width, dtype="float16" if kind == "float16" else "float32"
        )

    @cached_property
    def leaves(self) -> list[LeafFacts]:
        """Footers of all leaves that should be there."""
        return [self._facts(pixel) for pixel in self.pixels]

    @property
    def readable(self) -> list[LeafFacts]:
        """Leaves whose rows can be looked at."""
        return [leaf for leaf in self.leaves if not leaf.error and not leaf.columns]

    def _facts(self, pixel: HealpixPixel) -> LeafFacts:
        path = self.leaf(pixel)
        if not path.is_file():
            return LeafFacts(pixel=pixel, path=path, error="is missing")
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, int(file.metadata.num_rows)
            text = (schema.metadata or {}).get(FOOTER_KEY.encode())
            fingerprint = Provenance.from_json(text).fingerprint() if text else ""
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as problem:
            return LeafFacts(
                pixel=pixel, path=path, error=f"cannot be read ({first_line(problem)})"
            )
        return LeafFacts(
            pixel=pixel, path=path, rows=rows, fingerprint=fingerprint,
            columns=self._difference(schema),
        )  # fmt: skip

    def _difference(self, schema: pa.Schema) -> str:
        expected = self.schema
        if expected is None or schema.equals(expected):
            return ""
        ours = {field.name: field.type for field in schema}
        theirs = {field.name: field.type for field in expected}
        lines = [f"no column {n!r}" for n in theirs if n not in ours]
        lines += [f"column {n!r} more than the others" for n in ours if n not in theirs]
        lines += [
            f"column {n!r} is {ours[n]}, not {theirs[n]}"
            for n in theirs
            if n in ours and ours[n] != theirs[n]
        ]
        return "; ".join(lines) or "its columns are in another order"


def open_source(subject: Subject, source: str | Path | None) -> HatsRelease | str:
    """The catalog that was embedded, or why it cannot be opened."""
    place = source or _recorded_source(subject)
    if place is None:
        return "where the input catalog lies is not recorded; name it with --source"
    try:
        return HatsRelease.open(place)
    except SkyvecError as problem:
        if source:
            raise
        return f"the input catalog cannot be opened; name it with --source ({problem})"


def _recorded_source(subject: Subject) -> str | Path | None:
    """Beside the extension first, since a collection may have been moved as a whole."""
    if (subject.home / "collection.properties").is_file():
        return subject.home
    return str(subject.job["source"]) if subject.job.get("source") else None


def _folder(catalog: str | Path, extension: str | None) -> Path:
    path = located(extension if extension and extension.endswith(".properties") else catalog)
    if is_remote(path):
        raise ConfigurationError(
            "an extension is verified where it lies on disk",
            where=str(path),
            remedy="Copy it here; --source may be a URI",
        )
    if path.suffix == ".properties" and path.is_file():
        return path.resolve().parent / path.stem
    if not path.is_dir():
        raise ConfigurationError(
            "there is no such folder", where=str(path), remedy="Name a HATS collection"
        )
    path = path.resolve()
    if (path / RUN_FILE).is_file() and extension in {None, path.name}:
        return path
    # Without its run file, there is still something to say of an extension.
    known = {each.name for each in path.iterdir() if (each / RUN_FILE.parent).is_dir()}
    extension = extension or meant(found_runs(path)) or (min(known) if len(known) == 1 else None)
    if extension:
        known |= set(extension_names(path))
    if extension is None or extension not in known:
        raise ConfigurationError(
            f"no extension {extension!r}" if extension else f"{len(known)} extensions",
            where=str(path),
            remedy=f"Name one with --extension: {', '.join(sorted(known))}"
            if known
            else "Run `skyvec embed` first",
        )
    if not (path / extension / RUN_FILE.parent).is_dir():
        raise ConfigurationError(
            f"extension {extension!r} was not written by a run of skyvec, or its data lie elsewhere",
            where=str(path),
            remedy="Only what `skyvec embed` and `skyvec tokenize` wrote can be verified",
        )
    return path / extension


def _json(place: Path) -> dict[str, Any]:
    return dict(json.loads(place.read_text()))
