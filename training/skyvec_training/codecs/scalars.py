"""Fitting of the codecs that are tables: scalars, coefficients, catalogs of cutouts, redshift grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.codecs.catalog import SHAPES, CatalogCodec
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.coefficients import CoefficientsCodec
from skyvec_core.codecs.folder import build_codec
from skyvec_core.codecs.quantizers import QuantileTable
from skyvec_core.codecs.scalar import GridScalarCodec, ScalarCodec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import Survey
from skyvec_training.codecs.quantiles import PASSES, StreamingQuantiles
from skyvec_training.data.numbers import Numbers, NumberStream
from skyvec_training.recipe.codecs import CodecSource, ScalarRun
from skyvec_training.recipe.reading import rows_to_train

CATALOG_KEY = "catalog"
CATALOG_FLUXES = tuple(f"catalog_FLUX_{band}" for band in "GRIZ")
"""Columns of which an object of a cutout has at least one that is not 0."""
_Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumn:
    """Numbers of a catalog and the codec whose tables they fit."""

    token_key: str
    codec: Codec
    columns: tuple[str, ...]
    """Columns that are read."""
    values: Callable[[Numbers], _Values]
    """Rows (n,) or (n, k) in the survey's unit from those columns, NaN where not measured."""

    def compressed(self, numbers: Numbers) -> _Values:
        """Values (n, tables) on the scale of the tables."""
        values = self.values(numbers)
        if isinstance(self.codec, ScalarCodec | CoefficientsCodec):
            values = self.codec.compress(torch.from_numpy(values)).numpy()
        return values if values.ndim == 2 else values[:, None]

    @property
    def tables(self) -> list[QuantileTable]:
        """Tables to fit; a grid has none."""
        if isinstance(self.codec, GridScalarCodec):
            return []
        if isinstance(self.codec, ScalarCodec):
            return [self.codec.quantizer]
        return cast("CoefficientsCodec | CatalogCodec", self.codec).tables


def columns_of(survey: Survey) -> dict[str, str]:
    """Column -> token key of every scalar and label that becomes a token."""
    return {**{s.name: s.token_key for s in survey.scalars}, **survey.labels}


def table_columns(survey: Survey, run: ScalarRun, *, positions: bool = False) -> list[TableColumn]:
    """Codecs of a survey that are to be fitted, in the order of its columns.

    Parameters
    ----------
    positions
        Whether right ascension and declination are among them.

    Raises
    ------
    ConfigurationError
        If nothing is left.
    """
    scalars = columns_of(survey)
    if positions:
        scalars |= {survey.ra_column: "tok_ra", survey.dec_column: "tok_dec"}
    missing = {s.name: s.missing for s in survey.scalars}
    found = [
        _scalar(name, key, missing.get(name, ()), run)
        for name, key in scalars.items()
        if name not in run.without
    ]
    if survey.coefficients and survey.coefficients.name not in run.without:
        start = 0
        for key in survey.coefficients.token_keys:
            stop = start + MODALITIES[key].num_tokens
            found.append(_coefficients(survey.coefficients.name, key, start, stop))
            start = stop
    if run.catalogs and survey.name == MODALITIES[CATALOG_KEY].survey:
        found.append(_catalog())
    if not found:
        raise ConfigurationError(
            "no column is left to fit", where=survey.name, remedy="Choose another survey"
        )
    return found


def fit_source(
    place: Path, survey: Survey, source: CodecSource, run: ScalarRun
) -> tuple[list[TableColumn], int]:
    """Fit all codecs of a survey to the rows that are not held out, in bounded memory.

    Returns
    -------
    tuple
        The codecs, and the number of rows that were fitted.

    Raises
    ------
    MissingColumnError
        If a file lacks a column.
    ContractError
        If a column holds no finite number, or only one.
    """
    found = table_columns(survey, run, positions=run.positions == source.name)
    read = read_by([column for column in found if column.tables])
    stream = NumberStream(source=place, columns=read or (survey.id_column,))
    rows = rows_to_train(stream.rows(), source.held_out, where=source.name)
    if read:
        fit(found, lambda: stream.batches(stop=rows), where=str(place))
    return found, rows


def fit_scalars(
    values: Mapping[str, NDArray[np.float64]], survey: Survey, run: ScalarRun
) -> dict[str, ScalarCodec]:
    """Token key -> fitted codec, for the scalars and labels of a survey.

    Parameters
    ----------
    values
        Column name -> numbers (rows,) in the survey's unit; the held-out rows are not read.
    """
    rows = rows_to_train(len(next(iter(values.values()))), run.held_out, where="scalars")
    found = [c for c in table_columns(survey, run) if isinstance(c.codec, ScalarCodec)]
    fit(found, lambda: [{name: v[:rows] for name, v in values.items()}], where="scalars")
    return {column.token_key: cast("ScalarCodec", column.codec) for column in found}


def fit(
    columns: Sequence[TableColumn], batches: Callable[[], Iterable[Numbers]], *, where: str
) -> None:
    """Set the tables of all columns to exact quantiles; goes through the batches three times."""
    fitted = [column for column in columns if column.tables]
    streams = {
        column.token_key: [StreamingQuantiles(t.values.numel()) for t in column.tables]
        for column in fitted
    }
    for done in range(PASSES):
        for numbers in batches():
            for column in fitted:
                compressed = column.compressed(numbers)
                for one, values in zip(streams[column.token_key], compressed.T, strict=True):
                    one.add(values)
        for column in fitted:
            for index, one in enumerate(streams[column.token_key]):
                if done == 0 and not one.counted:
                    raise _useless("holds no finite number", column, index, where)
                one.end_pass()
    for column in fitted:
        for index, (table, one) in enumerate(
            zip(column.tables, streams[column.token_key], strict=True)
        ):
            quantiles = one.quantiles()
            if quantiles[0] == quantiles[-1]:
                raise _useless(f"holds only {quantiles[0]:g} (codec scale)", column, index, where)
            table.values.copy_(torch.from_numpy(quantiles))


def read_by(columns: Sequence[TableColumn]) -> tuple[str, ...]:
    """Columns that are read, each once."""
    return tuple(dict.fromkeys(name for column in columns for name in column.columns))


def _scalar(name: str, key: str, missing: tuple[float, ...], run: ScalarRun) -> TableColumn:
    codec = build_codec(MODALITIES[key], {}).eval()
    if isinstance(codec, GridScalarCodec):
        codec.set_grid(*run.redshift_grid)

    def values(numbers: Numbers) -> _Values:
        found = numbers[name]
        return np.where(np.isfinite(found) & ~np.isin(found, missing), found, np.nan)

    return TableColumn(token_key=key, codec=codec, columns=(name,), values=values)


def _coefficients(name: str, key: str, start: int, stop: int) -> TableColumn:
    def values(numbers: Numbers) -> _Values:
        found = numbers[name]
        if found.ndim != 2 or found.shape[1] < stop:
            raise ContractError(
                f"has {found.shape[1:]} coefficients, {stop} are needed",
                where=f"column {name!r}",
                remedy="Store all coefficients of an object in one list",
            )
        # A row of zeros is a hole left by a merge.
        absent = ~(np.nan_to_num(found) != 0).any(axis=1)
        return np.where(absent[:, None], np.nan, found)[:, start:stop]

    codec = build_codec(MODALITIES[key], {}).eval()
    return TableColumn(token_key=key, codec=codec, columns=(name,), values=values)


def _catalog() -> TableColumn:
    shapes = tuple(f"catalog_{name}" for name in SHAPES)

    def values(numbers: Numbers) -> _Values:
        present = np.any([numbers[name] != 0 for name in CATALOG_FLUXES], axis=0)
        fields = [np.where(present, numbers[name], np.nan).ravel() for name in shapes]
        return np.stack(fields, axis=-1)

    codec = build_codec(MODALITIES[CATALOG_KEY], {}).eval()
    return TableColumn(
        token_key=CATALOG_KEY, codec=codec, columns=(*shapes, *CATALOG_FLUXES), values=values
    )


def _useless(what: str, column: TableColumn, index: int, where: str) -> ContractError:
    name = column.columns[0] if len(column.tables) == 1 else f"{column.columns[0]}, table {index},"
    return ContractError(
        f"column {name} {what}, so there are no quantiles",
        where=where,
        remedy="Leave it out by `without` in the recipe, or choose another survey",
    )
