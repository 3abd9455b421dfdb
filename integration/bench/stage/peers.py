"""What the stage stands beside: a plain pyarrow loop and LSDB, reading and writing the same columns.

Neither computes anything: vectors and the columns that describe them lie ready in memory.
"""

from __future__ import annotations

from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nested_pandas.tensors import TensorExtensionArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.leaf_writer import PAGE_BYTES, ROW_GROUP_ROWS
from skyvec_schemas.embedding_columns import EmbeddingColumns

KEYS = ["_healpix_29", "object_id", "ra", "dec"]


def ready_columns(columns: EmbeddingColumns, rows: int) -> pa.Table:
    """The six columns of an extension for so many rows."""
    rng = np.random.default_rng(0)
    arrays = columns.arrays(
        rng.standard_normal((rows, columns.dim), dtype=np.float32),
        flags=np.zeros(rows, np.int32),
        modality_bits=np.full(rows, 4094),
        token_counts=np.full(rows, 11, np.int32),
        contents=rng.integers(-(2**63), 2**63, rows),
        failed=np.zeros(rows, np.bool_),
    )
    return pa.Table.from_arrays(arrays, schema=pa.schema(columns.fields()))


def plain_pyarrow(
    release: HatsRelease, out: Path, ready: pa.Table, columns: EmbeddingColumns, inputs: list[str]
) -> None:
    """Read inputs, write keys and vectors: a file for each pixel with the stage's own settings."""
    out.mkdir(parents=True)
    for place, pixel in enumerate(release.pixels):
        with pq.ParquetFile(release.leaf(pixel)) as file:
            writer: pq.ParquetWriter | None = None
            done = 0
            for batch in file.iter_batches(ROW_GROUP_ROWS, columns=[*KEYS, *inputs]):
                keys = pa.table(batch.select(KEYS))
                added = ready.slice(done, len(batch))
                table = pa.Table.from_arrays(
                    [*keys.columns, *added.columns], names=[*KEYS, *added.column_names]
                )
                writer = writer or fast_writer(out / f"{place}.parquet", table.schema, columns)
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                done += len(batch)
            if writer:
                writer.close()


def fast_writer(place: Path, schema: pa.Schema, columns: EmbeddingColumns) -> pq.ParquetWriter:
    """The vector plain and uncompressed, all else zstd 1."""
    return pq.ParquetWriter(place, schema, data_page_size=PAGE_BYTES, **fast_options(columns))


def fast_options(columns: EmbeddingColumns) -> dict[str, object]:
    """The stage's Parquet settings, as pyarrow and LSDB take them."""
    status, *others = columns.names[1:]
    plain = [*KEYS, status, *others]
    return {
        "compression": {columns.vector_leaf: "none", **dict.fromkeys(plain, "zstd")},
        "compression_level": dict.fromkeys(plain, 1),
        "use_dictionary": [status],
        "write_statistics": plain,
    }


def lsdb_map_partitions(
    catalog: Path,
    out: Path,
    ready: pa.Table,
    columns: EmbeddingColumns,
    inputs: list[str],
    options: dict[str, object] | None,
) -> None:
    """LSDB's own way: ``map_partitions`` and ``write_catalog``, with its writer or the stage's."""
    opened = lsdb.open_catalog(catalog, columns=[*KEYS[1:], *inputs])
    vectors = ready.column(0).combine_chunks().storage.flatten().to_numpy().reshape(-1, columns.dim)
    others = ready.select(columns.names[1:]).to_pandas()

    def add(frame):
        rows = len(frame)
        added = others.iloc[:rows].set_axis(frame.index)
        vector = TensorExtensionArray.from_stack(vectors[:rows])
        return frame[KEYS[1:]].assign(**{columns.name: vector}, **dict(added.items()))

    meta = add(opened.meta)
    written = opened.map_partitions(add, meta=meta)
    more = {} if options is None else {"write_table_kwargs": options}
    written.write_catalog(out, catalog_name="v", as_collection=False, progress_bar=False, **more)
