"""Any HATS catalog as a source: objects by sky ranges, observations by leaf and row group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER
from numpy.typing import NDArray
from upath import UPath

from skyvec.releases.hats.arrow_types import array_at
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.column_map import ColumnMap, Target
from skyvec.releases.hats.columns import observe_row_labels, observe_rows
from skyvec.releases.hats.leaf import KeepGroup, Leaf, footer
from skyvec.releases.ids import MISSING, canonical_ids
from skyvec.releases.sky import in_ranges, meet_ranges, near_pixel, ranges_around, valid_positions
from skyvec.releases.source import Quarantined, Reading, SourceObjects
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import Survey

KEY_ROWS = 1 << 16
"""Rows of ids and positions read at a time."""

INDEX_ARCSEC = 2.0
"""How far the position that a row was indexed by may lie from its ra and dec (SDSS plates)."""

Stamps = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, kw_only=True)
class HatsSource:
    """Observations of one survey in a HATS catalog, local or remote; its margin is never read."""

    release: HatsRelease
    columns: ColumnMap
    window: int = 96
    """Side of the image codec's window in cutout pixels."""
    _seen: dict[int, Stamps] = field(default_factory=dict, repr=False, compare=False)
    """Leaf -> what its files were when its objects were listed."""

    @classmethod
    def open(
        cls,
        uri: str | Path | UPath,
        survey: Survey,
        *,
        columns: Mapping[str, str] | None = None,
        window: int = 96,
    ) -> HatsSource:
        """Open a catalog or collection and find the survey's columns in it.

        Parameters
        ----------
        uri
            Folder, ``hf://``, ``s3://`` or ``https://``.
        columns
            Logical name -> column or dotted path, before the defaults; see `ColumnMap`.

        Raises
        ------
        ConfigurationError, InfrastructureError
            If there is no such catalog, or it does not answer.
        MissingColumnError, ContractError, BandError
            If it does not hold what the survey declares.
        """
        release = HatsRelease.open(uri)
        found = release.columns(survey, columns)
        release.check_bands(found)
        return cls(release=release, columns=found, window=window)

    @property
    def survey(self) -> Survey:
        """What the columns mean."""
        return self.columns.survey

    @cached_property
    def _ranges(self) -> NDArray[np.int64]:
        """Spatial indices (order 29) of each leaf, in the order of the release's pixels."""
        table = np.array([(p.order, p.pixel) for p in self.release.pixels], np.int64).reshape(-1, 2)
        shift = 2 * (SPATIAL_INDEX_ORDER - table[:, 0])
        return np.stack([table[:, 1] << shift, (table[:, 1] + 1) << shift], axis=1)

    def _leaves(self, pixel: HealpixPixel, margin_arcsec: float) -> list[int]:
        """Leaves of any order that overlap a pixel or its margin."""
        around = _around(pixel, margin_arcsec)
        return [int(place) for place in np.flatnonzero(meet_ranges(self._ranges, around))]

    def objects(self, pixel: HealpixPixel, *, margin_arcsec: float) -> SourceObjects:
        """Ids and positions in a pixel and at least this far around it.

        Of a leaf that reaches further only the row groups are read that can hold such rows. A row
        without a place on the sky is reported for the pixel that holds its spatial index.

        Raises
        ------
        ContractError
            If a leaf cannot be read or its ids are of a type that cannot tell objects apart.
        """
        parts: list[dict[str, NDArray[Any]]] = []
        quarantined: list[Quarantined] = []
        for place in self._leaves(pixel, margin_arcsec):
            keys = self._keys(place, _around(pixel, margin_arcsec))
            usable, reasons = _usable(keys)
            quarantined += self._refused(place, keys, reasons, pixel)
            keys = {name: values[usable] for name, values in keys.items()}
            near = near_pixel(keys["ra"], keys["dec"], pixel, margin_arcsec=margin_arcsec)
            keys = {name: values[near] for name, values in keys.items()}
            keys["file"] = np.full(len(keys["row"]), place, np.int32)
            parts.append(keys)
        if not parts:
            return _nobody(self.columns)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return SourceObjects(
            ids=whole["id"],
            ra=whole["ra"] % 360,
            dec=whole["dec"],
            file=whole["file"],
            row=whole["row"],
            pm_ra=whole.get("pm_ra"),
            pm_dec=whole.get("pm_dec"),
            quarantined=tuple(quarantined),
        )

    def _keys(self, place: int, around: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Row, spatial index, id, position and motion of the rows of a leaf that may be near."""
        columns, index = self.columns, self.release.healpix_column
        names = dict(zip(("id", "ra", "dec", "pm_ra", "pm_dec"), columns.keys, strict=False))
        parts: list[dict[str, NDArray[Any]]] = []
        with Leaf.open(self.release.files(self.release.pixels[place])) as leaf:
            self._seen[place] = leaf.stamps
            paths = [index, *columns.paths(columns.keys)]
            keep = self._may_hold(around)
            for first, batch in leaf.batches(paths, rows=KEY_ROWS, keep=keep):
                arrays = {k: array_at(batch, columns.targets[n].path) for k, n in names.items()}
                part: dict[str, NDArray[Any]] = {"id": self._ids(arrays.pop("id"), leaf)}
                part |= {name: _degrees(array) for name, array in arrays.items()}
                part["index"] = _integers(batch.column(index)) << self._shift
                part["row"] = np.arange(first, first + len(batch))
                parts.append(part)
        if not parts:
            empty = np.empty(0)
            none: dict[str, NDArray[Any]] = dict.fromkeys(names, empty)
            none["id"] = np.empty(0, np.str_)
            return none | {"index": np.empty(0, np.int64), "row": np.empty(0, np.int64)}
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _ids(self, array: pa.Array, leaf: Leaf) -> NDArray[np.str_]:
        try:
            return canonical_ids(array)
        except TypeError as problem:
            raise ContractError(
                str(problem),
                where=f"{leaf.files[0].path}, column "
                f"{self.columns.targets[self.survey.id_column].text!r}",
                remedy="Import the ids as integers or text",
            ) from problem

    @property
    def _shift(self) -> int:
        """Bits that bring the catalog's spatial index to order 29."""
        order = self.release.catalog.catalog_info.healpix_order
        return 2 * (SPATIAL_INDEX_ORDER - (SPATIAL_INDEX_ORDER if order is None else order))

    def _may_hold(self, around: NDArray[np.int64]) -> KeepGroup:
        """Whether the statistics of a row group allow a row in these ranges."""

        def keep(group: pq.RowGroupMetaData) -> bool:
            for place in range(group.num_columns):
                column = group.column(place)
                if column.path_in_schema == self.release.healpix_column:
                    noted = column.statistics
                    if noted is None or not noted.has_min_max:
                        return True
                    bounds = np.array([[noted.min, noted.max + 1]]) << self._shift
                    return bool(meet_ranges(bounds, around)[0])
            return True

        return keep

    def _refused(
        self,
        place: int,
        keys: Mapping[str, NDArray[Any]],
        reasons: Mapping[int, str],
        pixel: HealpixPixel,
    ) -> Iterator[Quarantined]:
        """Unusable rows of a leaf, so that every pixel reports its own and no other."""
        start, stop = self._ranges[place]
        own = ranges_around(pixel, margin_arcsec=0)
        for entry, reason in reasons.items():
            # Without a position the index may be anything; such rows belong to the leaf's first.
            index = keys["index"][entry]
            index = index if start <= index < stop else start
            if in_ranges(np.array([index]), own)[0]:
                yield Quarantined(
                    file=str(self.release.leaf(self.release.pixels[place])),
                    row=int(keys["row"][entry]),
                    object_id=str(keys["id"][entry]),
                    reason=reason,
                )

    def read(
        self, objects: SourceObjects, wanted: NDArray[np.int64], *, rows: int
    ) -> Iterator[Reading]:
        """Observations of ``wanted`` in file order; only row groups that hold one are decoded.

        Raises
        ------
        ContractError
            If a leaf cannot be decoded or was written again since `objects`.
        """
        columns = self.columns
        names = [*columns.inputs, *columns.labels]
        paths = columns.paths(names) or [self.release.healpix_column]
        for place in np.unique(objects.file[wanted]).tolist():
            members = np.flatnonzero(objects.file[wanted] == place)
            members = members[np.argsort(objects.row[wanted[members]], kind="stable")]
            numbers = objects.row[wanted[members]]
            with Leaf.open(self.release.files(self.release.pixels[place])) as leaf:
                leaf.refuse_change(self._seen.get(place, leaf.stamps))
                taken = 0
                distinct, which = np.unique(numbers, return_inverse=True)
                for batch in _gathered(leaf, paths, distinct, rows):
                    inside = (which >= taken) & (which < taken + len(batch))
                    reading = self._reading(batch, members[inside], which[inside] - taken)
                    taken += len(batch)
                    del batch
                    yield reading
                    del reading

    def _reading(
        self, batch: pa.RecordBatch, index: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Reading:
        if not np.array_equal(rows, np.arange(len(batch))):
            batch = batch.take(pa.array(rows))  # one object wanted by several
        observed, flags = observe_rows(batch, self.columns, size=self.window)
        return Reading(
            index=index,
            observations=observed,
            flags=flags,
            labels=observe_row_labels(batch, self.columns) if self.columns.labels else {},
        )

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """Columns read, and size, rows and footer digest of each leaf in or around a pixel."""
        targets = self.columns.targets.items()
        leaves = (self.release.pixels[place] for place in self._leaves(pixel, margin_arcsec))
        return {
            "catalog": self.release.name,
            "columns": {name: _written(target) for name, target in targets},
            "files": {
                f"Norder={leaf.order}/Npix={leaf.pixel}/{path.name}": footer(path)
                for leaf in leaves
                for path in self.release.files(leaf)
            },
        }


def _around(pixel: HealpixPixel, margin_arcsec: float) -> NDArray[np.int64]:
    """Spatial indices that an object in a pixel or its margin may have."""
    allowance = INDEX_ARCSEC if margin_arcsec > 0 else 0
    return ranges_around(pixel, margin_arcsec=margin_arcsec + allowance)


def _written(target: Target) -> str:
    """A target as a user would write it."""
    if target.constant:
        return "=" + ",".join(target.constant)
    return target.text + (str(list(target.shape)).replace(" ", "") if target.shape else "")


def _usable(keys: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.bool_], dict[int, str]]:
    """Which rows have an id and a place on the sky, and what is wrong with the others."""
    placed = valid_positions(keys["ra"], keys["dec"])
    named = keys["id"] != MISSING
    reasons = {}
    for entry in np.flatnonzero(~(placed & named)).tolist():
        ra, dec = keys["ra"][entry], keys["dec"][entry]
        if not named[entry]:
            reasons[entry] = "it has no id"
        elif 0 <= ra <= 360:
            reasons[entry] = f"dec is {dec:g}"
        else:
            reasons[entry] = f"ra is {ra:g}"
    return placed & named, reasons


def _gathered(
    leaf: Leaf, paths: list[str], numbers: NDArray[np.int64], rows: int
) -> Iterator[pa.RecordBatch]:
    """The rows with these numbers, ``rows`` at a time; untouched where a batch is wanted whole."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for first, batch in leaf.batches(paths, rows=rows, wanted=numbers):
        inside = numbers[slice(*np.searchsorted(numbers, [first, first + len(batch)]))] - first
        if not len(inside):
            continue
        if held + len(inside) > rows:
            yield _one(pending)
            held = 0
        pending.append(_picked(batch, inside))
        held += len(inside)
        del batch  # a batch that is let go before the next is decoded gives it its memory
        if held == rows:
            yield _one(pending)
            held = 0
    if held:
        yield _one(pending)


def _picked(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.RecordBatch:
    """Some rows of a batch, copied, so that the others can be let go."""
    if len(rows) == len(batch):
        return batch
    edges = np.flatnonzero(np.diff(rows) > 1) + 1
    runs = np.split(rows, edges)
    return pa.concat_batches([batch.slice(int(run[0]), len(run)) for run in runs])


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """All batches of a list as one; the list is emptied."""
    whole = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    batches.clear()
    return whole


def _degrees(array: pa.Array) -> NDArray[np.float64]:
    values = pc.cast(array, pa.float64(), safe=False).fill_null(np.nan)
    numbers: NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
    return numbers


def _integers(array: pa.Array) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = pc.cast(array.fill_null(-1), pa.int64()).to_numpy()
    return numbers


def _nobody(columns: ColumnMap) -> SourceObjects:
    empty = np.empty(0)
    motion = empty if columns.motion else None
    return SourceObjects(
        ids=np.empty(0, np.str_),
        ra=empty,
        dec=empty,
        file=np.empty(0, np.int32),
        row=np.empty(0, np.int64),
        pm_ra=motion,
        pm_dec=motion,
    )
