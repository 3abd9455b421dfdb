"""Which rows are searched: an expression over columns, a region of the sky, a list of ids."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.catalog import TableProperties
from hats.pixel_math.healpix_pixel import HealpixPixel
from mocpy import MOC
from numpy.typing import NDArray

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import open_parquet
from skyvec.search.regions import Box, Cone, Region
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError

_REMEDY = "Write it as for pandas, e.g. 'FLUX_R > 10 and Z < 0.5'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Conditions that rows must all meet; none by default.

    Parameters
    ----------
    where
        As `pandas.DataFrame.query` takes it, over columns of the catalog and of the extension.
        A row of which it is not known whether it holds, for a null, is left out.
    cone
        Right ascension and declination in degrees, radius in arcseconds; or as text.
    box
        ((west, east), (south, north)) in degrees.
    moc
        Coverage map, or its file.
    ids
        Of the objects among which to search.
    """

    where: str | None = None
    cone: Cone | str | None = None
    box: Box | None = None
    moc: MOC | str | Path | None = None
    ids: Sequence[object] | None = None


class CatalogFilters:
    """The conditions, as a catalog understands them.

    Raises
    ------
    ConfigurationError
        If one is not understood.
    MissingColumnError
        If the expression names a column that there is not.
    """

    def __init__(self, filters: Filters, vectors: VectorCatalog) -> None:
        self.where = filters.where
        self.region = Region.of(cone=filters.cone, box=filters.box, moc=filters.moc)
        self.ids = None if filters.ids is None else ids_as(filters.ids, vectors)
        self._vectors = vectors
        self._primary = HatsRelease.open(vectors.primary) if filters.where else None
        self._theirs: tuple[str, ...] = ()
        self._ours: tuple[str, ...] = ()
        if self._primary and filters.where:
            self._name_columns(filters.where, self._primary)

    def _name_columns(self, where: str, primary: HatsRelease) -> None:
        theirs = primary.schema.names
        ours = [n for n in self._vectors.release.schema.names if n != self._vectors.name]
        names = names_in(where)
        self._theirs = tuple(n for n in theirs if n in names)
        self._ours = tuple(n for n in ours if n in names and n not in self._theirs)
        unknown = names - {*self._theirs, *self._ours}
        if unknown:
            name = min(unknown)
            near = get_close_matches(name, [*theirs, *ours], n=3)
            raise MissingColumnError(
                f"no column {name!r}" + (f"; is it {' or '.join(near)}?" if near else ""),
                where=f"{self._vectors.primary}, filter {where!r}",
                remedy="Name columns of the catalog or of the extension",
            )

    @property
    def everything(self) -> bool:
        """Whether there is no condition."""
        return self.where is None and self.region.everywhere and self.ids is None

    def describe(self) -> dict[str, str]:
        """As lines for people."""
        lines = {"where": self.where} if self.where else {}
        lines |= self.region.describe()
        return lines | ({} if self.ids is None else {"among": f"{len(self.ids):,} ids"})

    def pixels(self) -> list[HealpixPixel]:
        """Partitions that may hold such rows, by the sky alone."""
        return self.region.pixels(self._vectors.release)

    def of(self, pixel: HealpixPixel) -> LeafFilter | None:
        """The conditions on the rows of one partition; None if there is none."""
        if self.everything:
            return None
        return LeafFilter(
            where=self.where, region=self.region, ids=self.ids,
            files=self._primary.files(pixel) if self._primary and self._theirs else (),
            theirs=self._theirs, ours=self._ours, id_column=self._vectors.id_column,
            properties=self._vectors.release.catalog.catalog_info,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafFilter:
    """The conditions on the rows of one partition; can travel to another process."""

    where: str | None
    region: Region
    ids: pa.Array | None
    files: tuple[Path, ...]
    """Of the same partition in the catalog that the extension belongs to."""
    theirs: tuple[str, ...]
    """Columns of that catalog which the expression names."""
    ours: tuple[str, ...]
    """Columns of the extension which it names."""
    id_column: str
    properties: TableProperties

    def rows(self, file: pq.ParquetFile) -> NDArray[np.bool_]:
        """Rows (n,) of the extension's file that meet them; reads no other columns.

        Raises
        ------
        ConfigurationError
            If the expression cannot be evaluated, or says neither yes nor no.
        ContractError
            If the catalog lacks rows of the extension.
        """
        info = self.properties
        place = [] if self.region.everywhere else [info.ra_column, info.dec_column]
        columns = dict.fromkeys([self.id_column, *place, *self.ours])
        table = file.read(columns=list(columns))
        wanted = np.ones(len(table), np.bool_)
        if self.ids is not None:
            wanted &= _flags(pc.is_in(table.column(self.id_column), self.ids))
        if place:
            wanted &= self.region.rows(table.select(place).to_pandas(), info)
        if self.where and wanted.any():
            wanted &= self._evaluate(table)
        return wanted

    def _evaluate(self, table: pa.Table) -> NDArray[np.bool_]:
        ids = table.column(self.id_column)
        columns = {name: table.column(name) for name in self.ours}
        if self.theirs:
            theirs = self._beside(ids)
            columns |= {name: theirs.column(name) for name in self.theirs}
        frame = pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)
        where = f"filter {self.where!r}"
        try:
            # Python's own engine: what pandas takes by default depends on what is installed.
            answer = frame.eval(self.where, engine="python")
        except Exception as problem:  # pandas raises whatever its operators raise
            line = (str(problem).splitlines() or [""])[0]
            raise ConfigurationError(
                f"cannot be evaluated ({type(problem).__name__}: {line})",
                where=where, remedy=_REMEDY,
            ) from problem  # fmt: skip
        if not isinstance(answer, pd.Series) or not pd.api.types.is_bool_dtype(answer.dtype):
            raise ConfigurationError("is no condition on rows", where=where, remedy=_REMEDY)
        return answer.to_numpy(dtype=np.bool_, na_value=False)

    def _beside(self, ids: pa.ChunkedArray) -> pa.Table:
        """Rows of the catalog, in the order of the extension's."""
        names = list(dict.fromkeys([self.id_column, *self.theirs]))
        parts = []
        for path in self.files:
            with open_parquet(path) as file:
                parts.append(file.read(columns=names).select(names))
        table = pa.concat_tables(parts)
        if table.column(self.id_column).equals(ids):
            return table
        place = pc.index_in(ids, table.column(self.id_column).combine_chunks())
        if place.null_count:
            lost = ids.filter(place.is_null())[0].as_py()
            raise ContractError(
                f"object {lost!r} of the extension is not in the catalog any more",
                where=", ".join(map(str, self.files)),
                remedy="Run `skyvec embed` again, which embeds what changed",
            )
        return table.take(place)


def names_in(expression: str) -> set[str]:
    """Names of columns in an expression; what follows a dot is an attribute.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    parts = expression.split("`")
    names = set(parts[1::2])
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(" 0 ".join(parts[::2])).readline))
    except (tokenize.TokenError, SyntaxError) as problem:
        raise ConfigurationError(
            "is no expression", where=f"filter {expression!r}", remedy=_REMEDY
        ) from problem
    before = ""
    for token in tokens:
        if token.type == tokenize.NAME and before != "." and token.string not in _WORDS:
            names.add(token.string)
        if token.string == "@" or token.string.startswith("__"):
            raise ConfigurationError(
                f"{token.string!r} is not allowed", where=f"filter {expression!r}", remedy=_REMEDY
            )
        before = token.string
    return names


_WORDS = {"and", "or", "not", "in", "True", "False", "None", "index"}
_WORDS |= {"sin", "cos", "tan", "exp", "log", "log10", "log1p", "expm1", "sqrt", "abs", "arcsin",
           "arccos", "arctan", "arctan2", "sinh", "cosh", "tanh", "floor", "ceil"}  # fmt: skip


def ids_as(values: Sequence[object], vectors: VectorCatalog) -> pa.Array:
    """Ids in the type of the extension's column; the command line has only text.

    Raises
    ------
    ConfigurationError
        For what cannot be one.
    """
    kind = vectors.release.schema.field(vectors.id_column).type
    return pa.array([id_as(value, kind).as_py() for value in values], kind)


def id_as(value: object, kind: pa.DataType) -> pa.Scalar:
    """One id in a column's type."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        return (
            pa.scalar(str(value)).cast(kind) if isinstance(value, str) else pa.scalar(value, kind)
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
        raise ConfigurationError(
            f"{value!r} is not an id of type {kind}", where="like", remedy="Give an id as stored"
        ) from problem


def _flags(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = column.to_numpy()
    return flags


__all__: Sequence[str] = ("CatalogFilters", "Filters", "LeafFilter", "id_as", "ids_as", "names_in")
