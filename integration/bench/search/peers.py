"""The same question to DuckDB, over the same files, and to LanceDB, over its own copy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from search import catalogs

Case = Callable[[], list[int]]
"""Ids of the nearest."""


def cases(
    files: list[Path], query: np.ndarray, *, work: Path, rows: int, k: int, threads: int
) -> dict[str, Case]:
    """By name, of those that are installed."""
    found: dict[str, Case] = {}
    if find_spec("duckdb"):
        found["DuckDB"] = duckdb(files, query, k=k, threads=threads)
    if find_spec("lancedb"):
        found["LanceDB flat"] = lancedb(files, query, work=work, rows=rows, k=k)
    return found


def duckdb(files: list[Path], query: np.ndarray, *, k: int, threads: int) -> Case:
    """Its array functions over the Parquet files."""
    import duckdb as library

    connection = library.connect()
    connection.execute(f"SET threads = {threads}")
    dim = len(query)
    asked = (
        f"SELECT object_id FROM read_parquet($files) ORDER BY "  # noqa: S608
        f"array_cosine_similarity({catalogs.NAME}::FLOAT[{dim}], $query::FLOAT[{dim}]) DESC "
        f"LIMIT {k}"
    )
    given = {"files": [str(path) for path in files], "query": query.tolist()}
    return lambda: [row[0] for row in connection.execute(asked, given).fetchall()]


def lancedb(files: list[Path], query: np.ndarray, *, work: Path, rows: int, k: int) -> Case:
    """Its search without an index."""
    import lancedb as library

    database = library.connect(str(work / "lance"))
    name = f"v{rows}_{len(query)}"
    if name not in database.list_tables().tables:
        kind = pa.list_(pa.float16(), len(query))
        schema = pa.schema([("object_id", pa.int64()), ("vector", kind)])
        database.create_table(name, data=_batches(files, schema), schema=schema)
    table = database.open_table(name)
    asked = query.astype(np.float32)
    return lambda: (
        table.search(asked, vector_column_name="vector")
        .distance_type("cosine")
        .select(["object_id", "_distance"])
        .limit(k)
        .to_arrow()
        .column("object_id")
        .to_pylist()
    )


def _batches(files: list[Path], schema: pa.Schema) -> pa.RecordBatchReader:
    def read():
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(8192, columns=["object_id", catalogs.NAME]):
                    vectors = batch.column(catalogs.NAME).storage.cast(schema.field("vector").type)
                    yield pa.record_batch([batch.column("object_id"), vectors], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, read())
