"""``skyvec.embed``: the stage as a lazy LSDB operation, for interactive use."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
from nested_pandas import NestedFrame
from nested_pandas.series.ext_array import NestedExtensionArray

from skyvec.models import DEFAULT, load_model
from skyvec.stage.partition import embed_rows, tokenize_rows
from skyvec.stage.plan import default_name, model_path
from skyvec.stage.worker import ModelReference, model_on_worker
from skyvec.surveys import named_survey
from skyvec_core.embedder import Precision
from skyvec_schemas.embedding_columns import EmbeddingColumns, VectorType
from skyvec_schemas.survey_columns import LEGACY_SURVEY, Survey

if TYPE_CHECKING:
    from lsdb import Catalog


def embed(
    catalog: Catalog,
    *,
    model: str | Path = DEFAULT,
    name: str | None = None,
    survey: str | Survey = LEGACY_SURVEY,
    dtype: VectorType = "float16",
    precision: Precision = "float32",
    device: str = "cpu",
) -> Catalog:
    """Append embedding columns to an LSDB catalog, computed when the catalog is.

    Same rows, same numbers as `skyvec.run` writes; nothing is stored. The margin is left out,
    since LSDB would embed its rows a second time.
    """
    loaded = load_model(model, device=device, precision=precision)
    columns = EmbeddingColumns(
        name=name or default_name(loaded.name, "embedding"), dim=loaded.dim, dtype=dtype
    )
    reference = ModelReference(
        folder=str(model_path(model)), name=loaded.name, digest=loaded.digest,
        precision=precision, device=device,
    )  # fmt: skip
    step = EmbedPartition(reference, named_survey(survey), columns)
    core = copy(catalog)  # the caller keeps the margin
    core.margin = None
    return core.map_partitions(step, meta=step.empty(core.meta))


class EmbedPartition:
    """The function that LSDB maps: holds a reference to the model, never the weights."""

    def __init__(self, model: ModelReference, survey: Survey, columns: EmbeddingColumns) -> None:
        self.model, self.survey, self.columns = model, survey, columns

    def __call__(self, frame: NestedFrame) -> NestedFrame:
        """The same rows with our columns appended."""
        if not len(frame):
            return self.empty(frame)
        batch = _record_batch(frame, self.survey)
        model = model_on_worker(self.model)
        rows = tokenize_rows(batch, self.survey, model)
        arrays = self.columns.arrays(
            embed_rows(rows, model),
            flags=rows.flags,
            modality_bits=rows.modality_bits,
            token_counts=rows.token_counts,
            contents=rows.contents,
            failed=rows.failed,
        )
        return self._append(frame, arrays)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Equal settings and weights are equal tasks."""
        return type(self).__name__, self.model.digest, str(self.survey), str(self.columns)

    def empty(self, frame: NestedFrame) -> NestedFrame:
        """No rows, all columns."""
        arrays = [pa.array([], field.type) for field in self.columns.fields()]
        return self._append(frame.iloc[:0], arrays)

    def _append(self, frame: NestedFrame, arrays: list[pa.Array]) -> NestedFrame:
        from nested_pandas.tensors import TensorExtensionArray

        first, *others = arrays
        added = {self.columns.name: pd.Series(TensorExtensionArray(first), index=frame.index)}
        for name, array in zip(self.columns.names[1:], others, strict=True):
            added[name] = pd.Series(pd.arrays.ArrowExtensionArray(array), index=frame.index)
        return frame.assign(**added)


def _record_batch(frame: NestedFrame, survey: Survey) -> pa.RecordBatch:
    columns = {}
    for name in survey.columns:
        values = frame[name].array
        # A nested column would come out as a list of structs; on disk it is a struct of lists.
        nested = isinstance(values, NestedExtensionArray)
        array = values.struct_array if nested else values.__arrow_array__()
        columns[name] = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pa.RecordBatch.from_pydict(columns)
