"""Records of pixels as one table: sorted, so that a worker reads those near its pixel and no others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.stage.quantum_record import QuantumRecord

GROUP_RECORDS = 2000
"""Records in a row group: a release of 200,000 pixels has a hundred."""
Key = tuple[int, int]
_JSON = ("flags", "sources", "skymap", "seconds")
_KINDS = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}
_QUANTA_SCHEMA = pa.schema(
    [pa.field(each.name, _KINDS.get(str(each.type), pa.string())) for each in fields(QuantumRecord)]
)


def quanta_table(records: Iterable[QuantumRecord]) -> pa.Table:
    """One row for each pixel, with all that its record holds; maps as JSON."""
    rows = sorted(records, key=lambda record: record.key)
    columns = []
    for name in _QUANTA_SCHEMA.names:
        values = [getattr(record, name) for record in rows]
        columns.append([json.dumps(v, sort_keys=True) for v in values] if name in _JSON else values)
    return pa.Table.from_pydict(
        dict(zip(_QUANTA_SCHEMA.names, columns, strict=True)), schema=_QUANTA_SCHEMA
    )


def quanta_rows(
    file: pq.ParquetFile,
    *,
    columns: Sequence[str] | None = None,
    near: HealpixPixel | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of such a table: all, or those of pixels that overlap with one."""
    for group in range(file.num_row_groups):
        if near is None or _may_overlap(file.metadata.row_group(group), near):
            for row in file.read_row_group(group, columns=columns).to_pylist():
                if near is None or overlap((row["order"], row["pixel"]), near):
                    yield row


def from_row(row: dict[str, Any]) -> QuantumRecord:
    """The record of a row."""
    return from_facts({k: json.loads(v) if k in _JSON else v for k, v in row.items()})


def from_facts(facts: dict[str, Any]) -> QuantumRecord:
    """The record that became JSON."""
    facts["skymap"] = {int(k): v for k, v in facts["skymap"].items()}
    return QuantumRecord(**facts)


def overlap(key: Key, pixel: HealpixPixel) -> bool:
    """Whether two pixels, of whatever orders, have a part of the sky in common."""
    order = min(key[0], pixel.order)
    return key[1] >> 2 * (key[0] - order) == pixel.pixel >> 2 * (pixel.order - order)


def _may_overlap(group: pq.RowGroupMetaData, pixel: HealpixPixel) -> bool:
    """Whether records of a row group can; the table is sorted, so few groups do."""
    order, number = (group.column(place).statistics for place in (0, 1))
    if not (order and number and order.has_min_max and number.has_min_max):
        return True
    if order.min != order.max:
        return True  # numbers of two orders cannot be compared
    shift = 2 * (order.min - pixel.order)
    if shift < 0:
        return bool(number.min <= pixel.pixel >> -shift <= number.max)
    return bool(number.min >> shift <= pixel.pixel <= number.max >> shift)
