"""Predictions for a catalog: as a table, or as lazy columns of an LSDB catalog."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.answers.answer import Answer
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.inputs import Inputs
from skyvec.probes.labels import holds
from skyvec.probes.rows import known
from skyvec.releases.hats.remote import open_parquet
from skyvec.releases.ids import canonical_ids
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from lsdb import Catalog
    from nested_pandas import NestedFrame

    from skyvec.probes.probe import Probe

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Predicting:
    """A probe and what it may be applied to."""

    probe: Probe
    inputs: Inputs
    name: str | None

    @property
    def catalog(self) -> VectorCatalog:
        """The extension whose rows are predicted for."""
        return self.inputs.catalog

    def columns(self, inputs: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401
        """Predictions of what `Inputs.read` gave, by column."""
        return self.probe.columns(inputs, self.name)

    def empty(self) -> dict[str, NDArray[Any]]:
        """No rows, all columns."""
        return self.columns(self.inputs.none())

    def rows(
        self, pixel: HealpixPixel, wanted: NDArray[np.bool_], count: int
    ) -> dict[str, NDArray[Any]]:
        """Predictions of the rows of one partition; NaN, None for words, where there is none."""
        columns = {
            column: np.full(count, None if kind.dtype == object else np.nan, kind.dtype)
            for column, kind in self.empty().items()
        }
        for rows, inputs in self.inputs.read(pixel, wanted):
            for column, values in self.columns(inputs).items():
                columns[column][rows] = values
        return columns


def answer(predicting: Predicting, *, where: str | None, workers: int) -> Answer:
    """Id, position and predictions of every row with a vector, or of those that fulfil ``where``."""
    catalog, probe = predicting.catalog, predicting.probe

    def chosen(pixel: HealpixPixel) -> tuple[pa.Table, int]:
        table, columns = _partition(predicting, pixel)
        there = known(next(iter(columns.values())))
        for column, values in columns.items():
            table = table.append_column(column, _array(values))
        keep = there if where is None else there & fulfils(columns, where)
        return table.filter(pa.array(keep)), int((~there).sum())

    with ThreadPoolExecutor(workers) as threads:
        parts = list(threads.map(chosen, catalog.release.pixels))
    without = sum(absent for _, absent in parts)
    return Answer(
        table=pa.concat_tables(table for table, _ in parts),
        id_column=catalog.id_column,
        catalog=catalog.primary,
        extension=catalog.name,
        fingerprint=catalog.provenance.fingerprint(),
        model=predicting.inputs.model["model"],
        question={
            "predicted": ", ".join(probe.targets),
            "by": f"{probe.kind} probe on {probe.extension} ({probe.fingerprint[:12]})",
            **({"where": where} if where else {}),
            **({"rows without a vector, left out": f"{without:,}"} if without else {}),
        },
    )


def predicted_catalog(catalog: Catalog, predicting: Predicting) -> Catalog:
    """An LSDB catalog with the predictions as lazy columns; its margin is left out."""
    from lsdb import Catalog as LsdbCatalog

    if not isinstance(catalog, LsdbCatalog):
        raise ConfigurationError(
            f"is a {type(catalog).__name__}", where="catalog",
            remedy="Give the folder of a collection or an LSDB catalog",
        )  # fmt: skip
    taken = [name for name in predicting.empty() if name in catalog.columns]
    if taken:
        raise ConfigurationError(
            f"has columns {', '.join(taken)} already",
            where="catalog",
            remedy="Give the predictions another name=...",
        )
    step = PredictPartition(predicting)
    core = copy(catalog)  # the caller keeps the margin
    core.margin = None
    made = core.map_partitions(step, meta=step.empty(core.meta), include_pixel=True)
    made.hc_collection, made.extensions = catalog.hc_collection, catalog.extensions
    return made


class PredictPartition:
    """The function that LSDB maps; small, since the vectors stay in their files."""

    def __init__(self, predicting: Predicting) -> None:
        self.predicting = predicting

    def __call__(self, frame: NestedFrame, pixel: HealpixPixel) -> NestedFrame:
        """The same rows with predictions appended."""
        if not len(frame):
            return self.empty(frame)
        held = self.predicting.inputs.of_frame(frame)
        found = self._looked_up(frame, pixel) if held is None else self._of_frame(*held)
        return frame.assign(**self._series(frame, found))

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Equal probes on equal vectors are equal tasks."""
        from skyvec.probes.storage import digest_of

        asked = self.predicting
        return (type(self).__name__, digest_of(asked.probe), asked.name, asked.inputs.identity)

    def empty(self, frame: NestedFrame) -> NestedFrame:
        """No rows, all columns."""
        none = frame.iloc[:0]
        return none.assign(**self._series(none, self.predicting.empty()))

    def _of_frame(
        self,
        there: NDArray[np.bool_],
        inputs: Any,  # noqa: ANN401
    ) -> dict[str, NDArray[Any]]:
        """From what LSDB read."""
        found = self.predicting.columns(inputs)
        return {name: _spread(some, there) for name, some in found.items()}

    def _looked_up(self, frame: NestedFrame, pixel: HealpixPixel) -> dict[str, NDArray[Any]]:
        """From the extension's own files, by id."""
        asked = self.predicting.catalog
        if asked.id_column not in frame.columns:
            raise ConfigurationError(
                f"has neither the vectors {asked.name!r} nor the id {asked.id_column!r}",
                where="LSDB catalog",
                remedy="Open it with that column",
            )
        ids = pd.Index(canonical_ids(frame[asked.id_column]))
        found = {name: _spread(none, np.zeros(len(frame), np.bool_))
                 for name, none in self.predicting.empty().items()}  # fmt: skip
        for place in asked.release.pixels:
            if not _overlap(place, pixel):
                continue
            with open_parquet(asked.release.leaf(place)) as leaf:
                own = canonical_ids(leaf.read(columns=[asked.id_column]).column(0))
            at = pd.Index(own).get_indexer(ids)
            wanted = np.zeros(len(own), np.bool_)
            wanted[at[at >= 0]] = True
            for name, values in self.predicting.rows(place, wanted, len(own)).items():
                found[name][at >= 0] = values[at[at >= 0]]
        return found

    def _series(
        self, frame: NestedFrame, columns: dict[str, NDArray[Any]]
    ) -> dict[str, pd.Series[Any]]:
        return {
            name: pd.Series(
                pd.arrays.ArrowExtensionArray(_array(values)) if values.dtype == object else values,
                index=frame.index,
            )
            for name, values in columns.items()
        }


def fulfils(columns: dict[str, NDArray[Any]], expression: str) -> NDArray[np.bool_]:
    """Which rows of predictions meet a condition, as pandas' ``query`` reads it."""
    return holds(
        pd.DataFrame(columns), expression, remedy=f"Write a condition on {', '.join(columns)}"
    )


def _partition(
    predicting: Predicting, pixel: HealpixPixel
) -> tuple[pa.Table, dict[str, NDArray[Any]]]:
    """Id and position of all rows of one partition, and their predictions."""
    info = predicting.catalog.release.catalog.catalog_info
    names = [predicting.catalog.id_column, info.ra_column, info.dec_column]
    with open_parquet(predicting.catalog.release.leaf(pixel)) as leaf:
        table = leaf.read(columns=names).rename_columns([names[0], "ra", "dec"])
    table = table.replace_schema_metadata(None)
    return table, predicting.rows(pixel, np.ones(len(table), np.bool_), len(table))


def _array(values: NDArray[Any]) -> pa.Array:
    return pa.array(values, pa.string() if values.dtype == object else None)


def _spread(some: NDArray[Any], there: NDArray[np.bool_]) -> NDArray[Any]:
    values = np.full(len(there), None if some.dtype == object else np.nan, some.dtype)
    values[there] = some
    return values


def _overlap(one: HealpixPixel, other: HealpixPixel) -> bool:
    shift = 2 * abs(one.order - other.order)
    fine, coarse = (one, other) if one.order >= other.order else (other, one)
    return bool(fine.pixel >> shift == coarse.pixel)
