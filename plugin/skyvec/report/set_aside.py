"""The first quarantined objects of a run, with ids, reasons and remedies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from skyvec.stage.output import Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.quarantine import lists_anything, read_quarantine

SHOWN = 200
PER_PIXEL = 25
"""So that one bad field does not hide the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """One line of a quarantine list."""

    order: int
    pixel: int
    id: str
    reasons: str
    remedy: str
    file: str
    row: int | None
    embedded: bool
    """Whether the rest of the row sufficed for a vector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAside:
    """What the lists of all pixels hold, and the first lines of them."""

    objects: int
    """Rows and objects without a vector that are listed, as records count them."""
    shown: tuple[Object, ...]
    by_reason: dict[str, int]
    """Lines by reason, of those read."""
    lost: tuple[tuple[int, int], ...]
    """Pixels whose list is not what their record counts."""
    more: bool
    """Whether there are lines that are not shown."""


def set_aside(output: Output, records: Sequence[QuantumRecord]) -> SetAside:
    """Read lists until `SHOWN` lines are found, `PER_PIXEL` of a pixel at most."""
    shown: list[Object] = []
    reasons: Counter[str] = Counter()
    lost: list[tuple[int, int]] = []
    more = False
    for record in records:
        if not (record.finished and lists_anything(record)):
            continue
        if len(shown) >= SHOWN:
            more = True
            break
        table = read_quarantine(output, record)
        if table is None:
            lost.append(record.key)
            continue
        room = min(PER_PIXEL, SHOWN - len(shown))
        more = more or len(table) > room
        reasons.update(table.column("reasons").to_pylist())
        id_column = table.column_names[1]
        lines = table.slice(0, room).to_pylist()
        shown.extend(_object(record, line, id_column) for line in lines)
    return SetAside(
        objects=sum(record.quarantined for record in records),
        shown=tuple(shown),
        by_reason=dict(reasons.most_common()),
        lost=tuple(lost),
        more=more,
    )


def _object(record: QuantumRecord, line: dict[str, object], id_column: str) -> Object:
    own = line[id_column]
    found = line["source_object_id"] if own is None else own
    source = line["source"]
    row = line["source_row"]
    return Object(
        order=record.order,
        pixel=record.pixel,
        id=("no id" if found is None else str(found)) + (f" of {source}" if source else ""),
        reasons=str(line["reasons"]),
        remedy=str(line["remedy"]),
        file=str(line["source_file"]),
        row=row if isinstance(row, int) else None,
        embedded=bool(line["embedded"]),
    )
