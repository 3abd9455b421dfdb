"""What objects can be coloured by: columns of the catalog, of the extension, of other extensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.explorer.objects import Objects
from skyvec.extensions.vector_catalog import VectorCatalog, extension_folder, extension_names
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import open_parquet
from skyvec_schemas.errors import MissingColumnError, SkyvecError

CLASSES = 8
"""Told apart by colour; rarer ones share one."""
DENSITY = "density"
"""The choice that is no column: objects for each place."""
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b5a300", "#5b4a9b",
)  # fmt: skip
"""Okabe and Ito's, on paper; the last two are added."""
OTHER = "#8a8f98"
_REST = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """A column of numbers."""

    name: str
    values: NDArray[np.float64]
    """(n,); NaN where there is none."""

    @property
    def span(self) -> tuple[float, float]:
        """From the 2nd to the 98th percentile: outliers must not take all colours."""
        known = self.values[np.isfinite(self.values)]
        if not len(known):
            return (0.0, 1.0)
        low, high = (float(v) for v in np.percentile(known, [2, 98]))
        if low == high:
            low, high = float(known.min()), float(known.max())
        return (low, high) if low < high else (low - 0.5, high + 0.5)

    @property
    def missing(self) -> int:
        """Objects without a value."""
        return int((~np.isfinite(self.values)).sum())

    def text(self, which: int) -> str:
        """Value of one object."""
        value = self.values[which]
        return f"{value:.6g}" if np.isfinite(value) else "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """A column of few values, or of text."""

    name: str
    codes: NDArray[np.int16]
    """(n,), into ``labels``; -1 where there is none."""
    labels: tuple[str, ...]
    """The most frequent first; the last stands for the rest, where there are more."""

    @property
    def missing(self) -> int:
        """Objects without a value."""
        return int((self.codes < 0).sum())

    @property
    def colours(self) -> tuple[str, ...]:
        """Of each label."""
        return tuple(
            OTHER if label == _REST and place == CLASSES else PALETTE[place]
            for place, label in enumerate(self.labels)
        )

    def text(self, which: int) -> str:
        """Value of one object."""
        code = self.codes[which]
        return self.labels[code] if code >= 0 else "none"


Colour = Numbers | Classes


@dataclass(frozen=True, slots=True)
class _Source:
    """A catalog whose rows are joined by id, pixel by pixel."""

    release: HatsRelease
    id_column: str
    columns: tuple[str, ...]


class Columns:
    """Columns that tell a value for each object, read when they are asked for."""

    def __init__(self, vectors: VectorCatalog, objects: Objects) -> None:
        self._vectors, self._objects = vectors, objects
        self._where: dict[str, tuple[_Source, str]] = {}
        self.problems: list[str] = []
        """Why columns of a catalog are not among them, for people."""
        for prefix, source in self._sources():
            for column in source.columns:
                name = f"{prefix}.{column}" if prefix else column
                self._where.setdefault(name, (source, column))

    @property
    def names(self) -> list[str]:
        """By which to ask; those of other extensions as ``extension.column``."""
        return list(self._where)

    def read(self, name: str) -> Colour:
        """Values of all objects.

        Raises
        ------
        MissingColumnError
            If there is no such column, or it holds what no colour can show.
        """
        if name not in self._where:
            near = get_close_matches(name, self.names, n=3)
            raise MissingColumnError(
                f"no column {name!r} of numbers or text"
                + (f"; is it {' or '.join(near)}?" if near else ""),
                where=f"{self._vectors.primary}, colours",
                remedy=f"Choose {DENSITY} or one of {', '.join(self.names) or 'none'}",
            )
        source, column = self._where[name]
        return _colour(name, self._values(source, column))

    def _sources(self) -> Iterator[tuple[str, _Source]]:
        vectors = self._vectors
        try:
            primary = HatsRelease.open(vectors.primary)
            yield "", _source(primary, vectors.id_column, without={vectors.id_column})
        except SkyvecError as problem:
            self.problems.append(f"no columns of the catalog: {problem.what}")
        info = vectors.release.catalog.catalog_info
        shared = {
            vectors.id_column,
            str(info.ra_column),
            str(info.dec_column),
            vectors.release.healpix_column,
        }
        yield "", _source(vectors.release, vectors.id_column, without=shared)
        home = vectors.primary
        for other in extension_names(home) if home.is_dir() else []:
            if other == vectors.name:
                continue
            try:
                release = HatsRelease.open(_folder(home, other))
                if vectors.id_column in release.schema.names:
                    yield other, _source(release, vectors.id_column, without=shared)
            except SkyvecError as problem:
                self.problems.append(f"no columns of extension {other}: {problem.what}")

    def _values(self, source: _Source, column: str) -> pa.ChunkedArray:
        objects, parts = self._objects, []
        pixels = self._vectors.release.pixels
        ends = np.searchsorted(objects.place, np.arange(len(pixels) + 1))
        theirs = set(source.release.pixels)
        for place, pixel in enumerate(pixels):
            own = objects.ids.slice(ends[place], ends[place + 1] - ends[place])
            kind = source.release.schema.field(column).type
            parts.append(_joined(source, column, pixel, own) if pixel in theirs
                         else pa.nulls(len(own), kind))  # fmt: skip
        return pa.chunked_array([c for part in parts for c in _chunks(part)])


def _joined(source: _Source, column: str, pixel: HealpixPixel, own: pa.Array) -> pa.ChunkedArray:
    """Values of one pixel in the order of the objects; null where the other has no such row."""
    tables = []
    for path in source.release.files(pixel):
        with open_parquet(path) as file:
            tables.append(file.read(columns=[source.id_column, column]))
    table = pa.concat_tables(tables)
    ids = table.column(source.id_column).combine_chunks().cast(own.type)
    return table.column(column).take(pc.index_in(own, value_set=ids))


def _chunks(values: pa.Array | pa.ChunkedArray) -> Sequence[pa.Array]:
    return values.chunks if isinstance(values, pa.ChunkedArray) else [values]


def _source(release: HatsRelease, id_column: str, *, without: set[str]) -> _Source:
    columns = [f.name for f in release.schema if f.name not in without and _shows(f.type)]
    hidden = {release.healpix_column}
    return _Source(release, id_column, tuple(c for c in columns if c not in hidden))


def _shows(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )  # fmt: skip


def _folder(home: Path, name: str) -> Path:
    """Data of an extension without vectors, such as a probe's predictions, have no run beside them."""
    data = home / name
    return data if (data / "dataset").is_dir() else extension_folder(home, name)


def _colour(name: str, column: pa.ChunkedArray) -> Colour:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        return Numbers(name=name, values=_doubles(column))
    counts = pc.value_counts(column.drop_null())
    if pa.types.is_integer(kind) and len(counts) > CLASSES:
        return Numbers(name=name, values=_doubles(column))
    values, number = counts.field("values"), counts.field("counts").to_numpy()
    order = np.argsort(-number, kind="stable")
    kept = order[:CLASSES]
    codes = pc.index_in(column, value_set=values.take(pa.array(kept))).fill_null(-1).to_numpy()
    labels = [str(values[int(i)].as_py()) for i in kept]
    if len(order) > CLASSES:
        known = column.is_valid().to_numpy()
        codes = np.where((codes < 0) & known, CLASSES, codes)
        labels.append(_REST)
    return Classes(name=name, codes=codes.astype(np.int16), labels=tuple(labels))


def _doubles(column: pa.ChunkedArray) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return values
