"""Where the labels of a probe come from: columns of the catalog, or another table.

Every source answers for the rows of one partition, so that labels are joined as the vectors stream
by. Rows without a label are NaN, or None where labels are classes.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import first_line, open_parquet
from skyvec.releases.ids import canonical_ids
from skyvec_schemas.errors import ConfigurationError, DuplicateIdsError, MissingColumnError

_CONDITION = "Write a condition on columns, e.g. Z > 0 and ZWARN == 0"
RADIUS = 1.0
"""Arcseconds within which a position is the same object."""


class Labels(Protocol):
    """A source of labels."""

    targets: tuple[str, ...]
    description: str
    """What they are and where they come from, for people."""

    def of(
        self, pixel: HealpixPixel, ids: pa.Array, positions: NDArray[np.float64]
    ) -> NDArray[Any]:
        """Labels (rows, targets) of some rows of one partition; floats, or objects for classes."""


class ColumnLabels:
    """Columns of the primary catalog.

    Parameters
    ----------
    where
        Expression over its columns, as pandas' ``query`` takes it; other rows have no label.
    classes
        Whether labels may be words.

    Raises
    ------
    MissingColumnError
        If there is no such column, or it holds no numbers where they are needed.
    ConfigurationError
        If the target is the id.
    """

    def __init__(
        self,
        vectors: VectorCatalog,
        targets: Sequence[str],
        *,
        where: str | None = None,
        classes: bool = False,
    ) -> None:
        primary = HatsRelease.open(vectors.primary)
        usable = [f.name for f in primary.schema if _usable(f.type, classes=classes)]
        for target in targets:
            if target == vectors.id_column:
                raise ConfigurationError(
                    "is the id of the rows",
                    where=f"target {target!r}",
                    remedy="Choose a measured column",
                )
            if target not in usable:
                there = target in primary.schema.names
                raise MissingColumnError(
                    f"column {target!r} is not numeric" if there else f"no column {target!r}",
                    where=str(primary.path),
                    remedy=f"Choose one of: {', '.join(usable)}; or give labels of another table",
                )
        self.targets, self.where, self.classes = tuple(targets), where, classes
        self._primary, self._id = str(vectors.primary), vectors.id_column
        asked = _names_in(where, primary.schema.names) if where else []
        self._columns = list(dict.fromkeys([self._id, *self.targets, *asked]))
        self.description = f"{', '.join(targets)} of {primary.path}" + (
            f" where {where}" if where else ""
        )

    def of(
        self, pixel: HealpixPixel, ids: pa.Array, positions: NDArray[np.float64]
    ) -> NDArray[Any]:
        """See `Labels.of`."""
        del positions
        release = _release(self._primary)
        tables = []
        for file in release.files(pixel):
            with open_parquet(file) as leaf:
                tables.append(leaf.read(columns=self._columns, use_threads=False))
        table = pa.concat_tables(tables)
        values = _values(table, self.targets, classes=self.classes)
        if self.where:
            values[~holds(table.to_pandas(), self.where)] = None if self.classes else np.nan
        return _aligned(values, table.column(self._id).combine_chunks(), ids)


class TableLabels:
    """Columns of a table, joined by id or by position.

    Parameters
    ----------
    table, name
        Its rows, and what people call it.
    id_column
        Of the vectors; the table is joined by it if it has such a column.
    on
        Another name of the id in the table.
    radius_arcsec
        Without ids the nearest row within this radius carries the label.

    Raises
    ------
    MissingColumnError
        If a target, or both ids and positions, are not in the table.
    DuplicateIdsError
        If an id has several rows.
    """

    def __init__(
        self,
        table: pa.Table,
        targets: Sequence[str],
        *,
        name: str,
        id_column: str,
        on: str | None = None,
        radius_arcsec: float = RADIUS,
        where: str | None = None,
        classes: bool = False,
    ) -> None:
        found = table
        if missing := [t for t in targets if t not in found.column_names]:
            raise MissingColumnError(
                f"no column {', '.join(missing)}", where=name,
                remedy=f"Choose one of: {', '.join(found.column_names)}",
            )  # fmt: skip
        for target in targets:
            if not _usable(found.column(target).type, classes=classes):
                raise MissingColumnError(
                    f"column {target!r} is not numeric", where=name,
                    remedy="Choose a column of numbers, or kind='logistic' (--kind logistic) for classes",
                )  # fmt: skip
        if where:
            found = found.filter(pa.array(holds(found.to_pandas(), where)))
        self.targets, self.classes, self.radius = tuple(targets), classes, radius_arcsec
        self._values = _values(found, self.targets, classes=classes)
        self._ids: pa.Array | None = None
        self._tree: cKDTree | None = None
        key = on or id_column
        position = _position_columns(found.column_names)
        if key in found.column_names:
            self._ids = found.column(key).combine_chunks()
            if len(self._ids.unique()) != len(self._ids):
                raise DuplicateIdsError(
                    f"column {key!r} holds ids more than once", where=name,
                    remedy="Keep one row of each object",
                )  # fmt: skip
            joined = f"by {key}"
        elif position and not on:
            places = np.stack([found.column(c).to_numpy() for c in position], axis=1)
            self._tree = cKDTree(_unit_vectors(places.astype(np.float64)))
            joined = f"within {radius_arcsec:g} arcsec"
        else:
            raise MissingColumnError(
                f"neither a column {key!r} nor positions (ra, dec)", where=name,
                remedy="Name the id with on=..., or add right ascension and declination in degrees",
            )  # fmt: skip
        self.description = (
            f"{', '.join(targets)} of {name}, {len(found):,} rows joined {joined}"
            + (f" where {where}" if where else "")
        )

    def of(
        self, pixel: HealpixPixel, ids: pa.Array, positions: NDArray[np.float64]
    ) -> NDArray[Any]:
        """See `Labels.of`."""
        del pixel
        if self._ids is not None:
            return _aligned(self._values, self._ids, ids)
        labels = _nothing(len(ids), self._values)
        if self._tree is None or not len(ids) or not len(self._values):
            return labels
        chord = 2 * np.sin(np.deg2rad(self.radius / 3600) / 2)
        apart, which = self._tree.query(_unit_vectors(positions), distance_upper_bound=chord)
        rows = np.flatnonzero(np.isfinite(apart))
        # Of two objects beside one label the nearer one is meant.
        rows = rows[np.argsort(apart[rows], kind="stable")]
        _, first = np.unique(which[rows], return_index=True)
        rows = rows[first]
        labels[rows] = self._values[which[rows]]
        return labels


@lru_cache(maxsize=4)
def _release(path: str) -> HatsRelease:
    return HatsRelease.open(path)


def _usable(kind: pa.DataType, *, classes: bool) -> bool:
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return True
    words = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return classes and (words or pa.types.is_boolean(kind) or pa.types.is_dictionary(kind))


def _values(table: pa.Table, targets: Sequence[str], *, classes: bool) -> NDArray[Any]:
    if not classes:
        columns = [table.column(t).cast(pa.float64()).to_numpy() for t in targets]
        return np.stack(columns, axis=1).reshape(len(table), len(targets))
    values = np.empty((len(table), len(targets)), object)
    for place, target in enumerate(targets):
        words = table.column(target)
        if pa.types.is_floating(words.type):
            words = pc.if_else(pc.is_nan(words), None, words)
        values[:, place] = words.to_pylist()
    return values


def _nothing(rows: int, like: NDArray[Any]) -> NDArray[Any]:
    fill = None if like.dtype == object else np.nan
    return np.full((rows, like.shape[1]), fill, like.dtype)


def _aligned(values: NDArray[Any], theirs: pa.Array, ids: pa.Array) -> NDArray[Any]:
    """Rows of ``values``, whose ids are ``theirs``, in the order of ``ids``."""
    if theirs.equals(ids):
        return values
    both: Sequence[Any] = (theirs, ids)
    whole = all(pa.types.is_integer(a.type) and not a.null_count for a in both)
    one, other = (a.to_numpy() if whole else canonical_ids(a) for a in both)
    place = pd.Index(one).get_indexer(pd.Index(other))
    labels = _nothing(len(ids), values)
    labels[place >= 0] = values[place[place >= 0]]
    return labels


def as_table(table: pd.DataFrame | pa.Table | str | Path) -> pa.Table:
    """Data frame, Arrow table or Parquet file as a table."""
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pd.DataFrame):
        return pa.Table.from_pandas(pd.DataFrame(table), preserve_index=False)
    try:
        return pq.read_table(table)
    except (OSError, pa.ArrowInvalid) as problem:
        raise ConfigurationError(
            f"cannot be read as Parquet ({first_line(problem)})",
            where=str(table),
            remedy="Give a Parquet file with ids or positions and the labels",
        ) from problem


def _position_columns(names: Sequence[str]) -> tuple[str, str] | None:
    lower: Mapping[str, str] = {name.lower(): name for name in names}
    for ra, dec in (("ra", "dec"), ("target_ra", "target_dec"), ("plug_ra", "plug_dec")):
        if ra in lower and dec in lower:
            return lower[ra], lower[dec]
    return None


def _unit_vectors(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    ra, dec = np.deg2rad(positions).T
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def _names_in(expression: str, columns: Sequence[str]) -> list[str]:
    try:
        found = {node.id for node in ast.walk(ast.parse(expression, mode="eval"))
                 if isinstance(node, ast.Name)}  # fmt: skip
    except SyntaxError as problem:
        raise _not_understood(expression, problem) from problem
    return [name for name in columns if name in found]


def holds(frame: pd.DataFrame, expression: str, *, remedy: str = _CONDITION) -> NDArray[np.bool_]:
    """Rows (n,) for which an expression over columns is true, as pandas' ``query`` reads it.

    Raises
    ------
    ConfigurationError
        If it cannot be evaluated, or gives numbers in place of yes and no.
    """
    try:
        mask = frame.eval(expression)
    except Exception as problem:  # pandas raises whatever the expression does
        raise _not_understood(expression, problem, remedy) from problem
    if str(getattr(mask, "dtype", "")) != "bool":
        raise _not_understood(expression, "is no condition", remedy)
    return np.asarray(mask)


def _not_understood(
    expression: str, problem: object, remedy: str = _CONDITION
) -> ConfigurationError:
    told = first_line(problem) if isinstance(problem, Exception) else problem
    return ConfigurationError(
        f"not understood ({told})", where=f"where {expression!r}", remedy=remedy
    )
