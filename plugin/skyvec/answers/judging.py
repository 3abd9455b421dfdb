"""Labels against answers: reads them over everything that was searched, a partition at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from skyvec.answers.precision import Precision
from skyvec.answers.vectors import opened_extension
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import Leaf
from skyvec_schemas.errors import ConfigurationError, MissingColumnError

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer

_ROWS = 1 << 16
FILTERS = frozenset(("where", "among", "cone", "box", "moc"))
"""Lines of a question that say that not everything was searched."""


def judge(
    answer: Answer,
    labels: str | pa.Table | pd.DataFrame,
    *,
    wanted: str | None = None,
    among: pa.Array | None = None,
) -> Precision:
    """Count hits of an answer and of everything that was searched; see `Answer.judged`."""
    extension = opened_extension(answer)
    if isinstance(labels, str):
        release = HatsRelease.open(answer.catalog)
        name, known = labels, _by_expression(release, labels, answer.id_column)
    else:
        name, table = _label_table(labels, answer.id_column, wanted)
        known = iter([table])
    searched, count = _searched(extension, among)
    hits = judged = positives = labelled = 0
    own = answer.table.column(answer.id_column)
    for read in known:
        valid = read.column("wanted").is_valid()
        part = read.filter(pc.and_(_among(read.column("id"), searched), valid))
        labelled += len(part)
        positives += pc.sum(part.column("wanted")).as_py() or 0
        # Each row of the answer counts, also where many queries found one object.
        place = pc.index_in(own, value_set=part.column("id").cast(own.type).combine_chunks())
        answered = part.column("wanted").take(place.drop_null())
        judged += len(answered)
        hits += pc.sum(answered).as_py() or 0
    if not labelled:
        raise ConfigurationError(
            f"no object that was searched has a label {name!r}",
            where=f"{answer.catalog}, extension {answer.extension}",
            remedy="Give labels of objects of this catalog, with its ids",
        )
    return Precision(
        wanted=name, rows=len(answer), judged=judged, hits=hits, labelled=labelled,
        positives=positives, searched=count,
        unfiltered=among is None and not FILTERS.isdisjoint(answer.question),
    )  # fmt: skip


def _searched(extension: VectorCatalog, among: pa.Array | None) -> tuple[pa.Array, int]:
    """Ids of all objects with a vector that were searched."""
    parts = [ids for ids in _embedded(extension) if len(ids)]
    ids = pa.concat_arrays(parts) if parts else pa.array([], pa.string())
    if among is not None:
        ids = ids.filter(_among(ids, among))
    return ids, len(ids)


def _embedded(extension: VectorCatalog) -> Iterator[pa.Array]:
    """Ids of the rows with a vector; of the vectors themselves nothing is read."""
    status = f"{extension.name}_status"
    for pixel in extension.release.pixels:
        with Leaf.open(extension.release.files(pixel)) as leaf:
            for _, batch in leaf.batches([extension.id_column, status], rows=_ROWS):
                there = pc.not_equal(batch.column(status), "failed")
                yield batch.column(extension.id_column).filter(there)


def _among(ids: pa.Array | pa.ChunkedArray, allowed: pa.Array) -> pa.Array | pa.ChunkedArray:
    return pc.is_in(ids, value_set=allowed.cast(ids.type))


def _label_table(
    labels: pa.Table | pd.DataFrame, id_column: str, wanted: str | None
) -> tuple[str, pa.Table]:
    """Name of the labels, and a table of ids and booleans."""
    table = labels if isinstance(labels, pa.Table) else pa.Table.from_pandas(labels)
    others = [name for name in table.column_names if name not in (id_column, "__index_level_0__")]
    name = wanted or (others[0] if len(others) == 1 else "")
    if id_column not in table.column_names or name not in others:
        raise MissingColumnError(
            f"needs {id_column!r} and one column of labels; it has "
            f"{', '.join(table.column_names) or 'none'}",
            where="table of labels",
            remedy="Name the column with wanted=...",
        )
    column = table.column(name)
    if not pa.types.is_boolean(column.type):
        raise ConfigurationError(
            f"is {column.type}, not true or false",
            where=f"label {name!r}",
            remedy="Give a column that is true for the objects that are wanted",
        )
    return name, pa.table({"id": table.column(id_column), "wanted": column})


def _by_expression(release: HatsRelease, expression: str, id_column: str) -> Iterator[pa.Table]:
    """Ids and truth of an expression over the catalog; null where one of its columns is."""
    columns = _columns(expression, release)
    for pixel in release.pixels:
        with Leaf.open(release.files(pixel)) as leaf:
            for _, batch in leaf.batches(list(dict.fromkeys([id_column, *columns])), rows=_ROWS):
                frame = batch.select(columns).to_pandas()
                truth = _evaluated(frame, expression)
                unknown = frame.isna().to_numpy().any(axis=1)
                yield pa.table(
                    {"id": batch.column(id_column), "wanted": pa.array(truth, mask=unknown)}
                )


def _columns(expression: str, release: HatsRelease) -> list[str]:
    """Columns that an expression names.

    Raises
    ------
    ConfigurationError
        If it is no expression.
    MissingColumnError
        If the catalog lacks a column.
    """
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError as problem:
        raise ConfigurationError(
            "is no expression over columns",
            where=f"labels {expression!r}",
            remedy="Write for example \"SHAPE_R > 2 and TYPE == 'SER'\"",
        ) from problem
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    if lacking := [name for name in names if name not in release.schema.names]:
        raise MissingColumnError(
            f"no column {', '.join(lacking)}",
            where=str(release.path),
            remedy=f"It has {', '.join(release.schema.names)}",
        )
    return names


def _evaluated(frame: pd.DataFrame, expression: str) -> NDArray[np.bool_]:
    try:
        truth = np.asarray(frame.eval(expression, engine="python"))
    except (ValueError, TypeError, NameError, SyntaxError, NotImplementedError) as problem:
        raise ConfigurationError(
            f"cannot be evaluated ({problem})",
            where=f"labels {expression!r}",
            remedy="Compare columns with numbers or text",
        ) from problem
    if truth.dtype != np.bool_ or truth.shape != (len(frame),):
        raise ConfigurationError(
            f"gives {truth.dtype}, not true or false for each object",
            where=f"labels {expression!r}",
            remedy='Compare with something, e.g. "Z > 1"',
        )
    return truth
