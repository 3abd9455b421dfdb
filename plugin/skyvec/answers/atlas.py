"""Plain Parquet with vectors and thumbnails, for tools that draw maps of embeddings.

`embedding-atlas` (arXiv 2505.06386) takes any Parquet file whose columns are named to it: vectors
as lists, coordinates as two numbers, images as structs with ``bytes``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.answers import figures
from skyvec.answers.formats import KEY, facts_of
from skyvec.answers.looks import looks_of
from skyvec.answers.vectors import vectors_of
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer

VECTOR, IMAGE, X, Y = "vector", "image", "projection_x", "projection_y"


def write_atlas(answer: Answer, path: Path, *, projection: bool, thumbnails: bool) -> Path:
    """Write the answer with its vectors; see `Answer.to_atlas`.

    Raises
    ------
    ConfigurationError
        If no object has a vector, or a column of the answer has the name of one that is added.
    """
    vectors = vectors_of(answer)
    there = np.asarray(np.all(np.isfinite(vectors), axis=1))
    if not there.any():
        raise ConfigurationError(
            "no object of it has a vector",
            where="answer",
            remedy="Ask for objects that were embedded",
        )
    flat = pa.array(np.where(there[:, None], vectors, 0).ravel())
    added = {
        VECTOR: pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(~there))
    }
    if projection:
        plane = principal_plane(vectors[there])
        for name, values in zip((X, Y), plane.T, strict=True):
            column = np.full(len(there), np.nan, np.float32)
            column[there] = values
            added[name] = pa.array(column, mask=~there)
    if thumbnails:
        added[IMAGE] = _images(answer)
    if taken := sorted(set(added) & set(answer.table.column_names)):
        raise ConfigurationError(
            f"has columns {', '.join(taken)} of its own",
            where="answer",
            remedy="Rename them before writing it for an atlas",
        )
    table = answer.table
    for name, array in added.items():
        table = table.append_column(name, array)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(facts_of(answer))}), path)
    return path


def principal_plane(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """First two principal components (rows, 2); zeros where there are too few rows."""
    centred = vectors - vectors.mean(axis=0)
    plane = np.zeros((len(vectors), 2), np.float32)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = min(2, len(sizes))
    plane[:, :found] = left[:, :found] * sizes[:found]
    return plane


def _images(answer: Answer) -> pa.Array:
    """PNG of each object as Hugging Face's image feature has it; null without pixels."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    keys = [str(key) for key in answer.table.column(answer.id_column).to_pylist()]
    looks = looks_of(answer, shown=len(answer))
    pictures = [figures.thumbnail(look, alt=key) for look, key in zip(looks, keys, strict=True)]
    return pa.array(
        [{"bytes": p.png, "path": f"{key}.png"} if p else None
         for p, key in zip(pictures, keys, strict=True)],
        kind,
    )  # fmt: skip
