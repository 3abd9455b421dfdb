"""Rows of one partition -> tokens, vectors and reasons for the same rows. Pure: no files, no Dask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from skyvec.releases.hats.column_map import ColumnMap
from skyvec.releases.hats.columns import observe_rows
from skyvec_core.codecs.image import ImageCodec
from skyvec_core.embedder import Model
from skyvec_core.modalities import modality_bits
from skyvec_core.observations import Tokens
from skyvec_schemas.embedding_columns import VectorType
from skyvec_schemas.quality_flags import FATAL, Flag
from skyvec_schemas.survey_columns import Survey
from skyvec_schemas.token_columns import content_digests


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedRows:
    """Tokens of the rows of a batch, in their order, and what is doubtful about each."""

    tokens: dict[str, Tokens]
    """Model inputs only."""
    labels: dict[str, Tokens]
    """Tokens of columns that training may predict; never a model input."""
    flags: NDArray[np.int32]

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Rows that get no vector."""
        return (self.flags & FATAL) != 0

    @property
    def token_counts(self) -> NDArray[np.int32]:
        """Valid input tokens of each row."""
        counts = [coded.valid_BN.sum(1).numpy() for coded in self.tokens.values()]
        total: NDArray[np.int32] = np.sum(counts, axis=0).astype(np.int32)
        return total

    def chosen(self, rows: NDArray[np.int64]) -> dict[str, Tokens]:
        """Tokens of some rows."""
        return {
            key: Tokens(ids_BN=coded.ids_BN[rows], valid_BN=coded.valid_BN[rows])
            for key, coded in self.tokens.items()
        }

    @property
    def contents(self) -> NDArray[np.int64]:
        """Digest of each row's input tokens."""
        return content_digests(
            {key: (coded.ids_BN.numpy(), coded.valid_BN.numpy())
             for key, coded in self.tokens.items()}
        )  # fmt: skip

    @property
    def modality_bits(self) -> NDArray[np.int64]:
        """Modalities that each row really has."""
        bits = np.zeros(len(self.flags), np.int64)
        for key, coded in self.tokens.items():
            bits |= np.where(coded.valid_BN.any(1).numpy(), _bit(key), 0)
        return bits


@lru_cache
def _bit(key: str) -> int:
    return modality_bits((key,))


@dataclass(frozen=True, kw_only=True, slots=True)
class FromSources:
    """What the sources add to the rows of a batch."""

    tokens: dict[str, Tokens]
    labels: dict[str, Tokens]
    flags: NDArray[np.int32]


def tokenize_rows(
    batch: pa.RecordBatch,
    survey: Survey,
    model: Model,
    *,
    with_labels: bool = False,
    sources: FromSources | None = None,
    columns: ColumnMap | None = None,
) -> TokenizedRows:
    """Tokenize every modality that the survey declares; never drops or reorders a row.

    ``columns`` is `columns_of` the batch, where the caller has it from an earlier one.
    """
    columns = columns or columns_of(batch, survey)
    observations, flags = observe_rows(batch, columns, size=ImageCodec.size)
    tokens = model.tokenize(observations)
    labels = model.tokenize(
        {
            key: scalar_values(batch.column(column))
            for column, key in survey.labels.items()
            if with_labels and column in batch.schema.names
        }
    )
    if sources:
        tokens |= sources.tokens
        labels |= sources.labels
        flags |= sources.flags
    seen = np.any([coded.valid_BN.any(1).numpy() for coded in tokens.values()], axis=0)
    flags[~seen] |= Flag.NO_INPUT
    flags[batch.column(survey.id_column).is_null().to_numpy(zero_copy_only=False)] |= (
        Flag.ID_MISSING
    )
    return TokenizedRows(tokens=tokens, labels=labels, flags=flags)


def embed_rows(
    rows: TokenizedRows, model: Model, only: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Vectors (rows, dim) of all rows, or of some; failed ones hold numbers not to be stored."""
    tokens = rows.tokens if only is None else rows.chosen(only)
    vectors: NDArray[np.float32] = model.embed(tokens).numpy()
    return vectors


def stored_as(vectors: NDArray[np.float32], dtype: VectorType) -> NDArray[np.floating]:
    """Vectors in the type that is stored; torch rounds as numpy does, five times faster."""
    if dtype == "float32":
        return vectors
    halves: NDArray[np.floating] = torch.from_numpy(vectors).half().numpy()
    return halves


def scalar_values(column: pa.Array) -> torch.Tensor:
    """Float32 values (rows,) of a numeric column, NaN where null."""
    values = pc.cast(column, pa.float32(), safe=False).fill_null(np.nan)
    # Arrow hands out read-only memory; torch needs its own.
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())


def columns_of(batch: pa.RecordBatch, survey: Survey) -> ColumnMap:
    """Which columns of a batch hold what a survey declares."""
    return ColumnMap.of(survey, batch.schema, where="the catalog")
