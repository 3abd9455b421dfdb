"""Rows of one pixel with their tokens, batch by batch: from pixels and spectra, or from stored tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.column_map import ColumnMap
from skyvec.releases.hats.leaf import Leaf
from skyvec.stage.job import Job, StoredTokens
from skyvec.stage.joined import JoinedRows, join_sources
from skyvec.stage.partition import FromSources, TokenizedRows, columns_of, tokenize_rows
from skyvec.stage.prefetch import prefetched
from skyvec.stage.timing import Timed
from skyvec_core.embedder import Model
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import ContractError
from skyvec_schemas.token_columns import FLAGS, token_values


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A batch of rows, in the catalog's order."""

    keys: pa.RecordBatch
    """Spatial index, id and position, in the input's own types."""
    tokenized: TokenizedRows
    matches: Sequence[pa.Array] = ()
    """Columns of `Job.match_fields`."""


@lru_cache(maxsize=4)
def opened(folder: str, run_id: str) -> HatsRelease:
    """A catalog, opened once in each process and run: one of 200,000 pixels takes its time."""
    del run_id
    return HatsRelease.open(folder)


class RowStream(Protocol):
    """Where the rows of a pixel come from."""

    def __iter__(self) -> Iterator[Rows]:
        """All rows once, in order, in bounded memory."""

    def again(self, rows: Sequence[int]) -> Iterator[TokenizedRows]:
        """Some rows in ascending order, read anew in one pass, each tokenized alone: canaries."""

    def close(self) -> None:
        """Give back what it holds."""


class PixelRows:
    """Rows of the catalog and of the sources joined to it.

    Parameters
    ----------
    rows
        Of the pixel.
    staging
        A folder on a disk with room, for tokens of sources.
    """

    def __init__(
        self,
        job: Job,
        release: HatsRelease,
        pixel: HealpixPixel,
        model: Model,
        *,
        rows: int,
        batch_rows: int,
        staging: Path,
        timed: Timed,
    ) -> None:
        self.job, self.release, self.pixel, self.model = job, release, pixel, model
        self.batch_rows, self.timed = batch_rows, timed
        self.several = rows > batch_rows
        self.columns: ColumnMap | None = None
        self.joined: JoinedRows | None = None
        if job.sources:
            self.joined = join_sources(
                release,
                pixel,
                survey=job.survey,
                sources=job.sources,
                model=model,
                labels=() if job.columns else job.source_labels,
                folder=staging,
                batch_rows=batch_rows,
                timed=timed,
            )

    def __iter__(self) -> Iterator[Rows]:
        start = 0
        with_labels = self.job.columns is None
        batches = self.release.batches(
            self.pixel, self.job.survey, rows=self.batch_rows, with_labels=with_labels
        )
        for batch in prefetched(batches, self.timed, several=self.several):
            stop = start + len(batch)
            sources = None
            if self.joined:
                ids = batch.column(self.job.survey.id_column)
                self.joined.prove(start, ids, where=str(self.release.leaf(self.pixel)))
                sources = FromSources(
                    tokens=self.joined.tokens(start, stop),
                    labels=self.joined.label_tokens(start, stop),
                    flags=self.joined.flags[start:stop],
                )
            with self.timed("tokenize"):
                self.columns = self.columns or columns_of(batch, self.job.survey)
                tokenized = tokenize_rows(
                    batch, self.job.survey, self.model,
                    with_labels=with_labels, sources=sources, columns=self.columns,
                )  # fmt: skip
            yield Rows(
                keys=batch.select(self.job.keys(self.release)),
                tokenized=tokenized,
                matches=self.joined.columns(start, stop) if self.joined else (),
            )
            start = stop

    def again(self, rows: Sequence[int]) -> Iterator[TokenizedRows]:
        """Rows of the catalog and the sources."""
        survey = self.job.survey
        found = self.release.single_rows(self.pixel, survey, rows)
        for row, batch in zip(rows, found, strict=True):
            sources = None
            if self.joined:
                sources = FromSources(
                    tokens=self.joined.read_again(row, self.model),
                    labels={},
                    flags=self.joined.flags[row : row + 1],
                )
            yield tokenize_rows(batch, survey, self.model, sources=sources, columns=self.columns)

    def close(self) -> None:
        """Give the disk of the spool back."""
        if self.joined:
            self.joined.spool.close()


class TokenRows:
    """Rows of a token extension: no pixel is touched."""

    def __init__(
        self,
        job: Job,
        tokens: StoredTokens,
        release: HatsRelease,
        pixel: HealpixPixel,
        *,
        rows: int,
        batch_rows: int,
        timed: Timed,
    ) -> None:
        self.job, self.pixel, self.batch_rows, self.timed = job, pixel, batch_rows, timed
        self.several = rows > batch_rows
        self.release, self.keys = release, tokens.keys
        self.stored = opened(tokens.folder, job.run_id)
        if pixel not in self.stored.pixels:
            raise ContractError(
                f"holds no tokens of pixel Norder={pixel.order} Npix={pixel.pixel}",
                where=tokens.folder,
                remedy="Run `skyvec tokenize` on this catalog again",
            )

    def __iter__(self) -> Iterator[Rows]:
        job = self.job
        keys = job.keys(self.release)
        matches = [field.name for field in job.match_fields]
        # A token extension has its own names for what was matched: without the vector's prefix.
        theirs = [name.removeprefix(f"{job.columns.name}_") if job.columns else name
                  for name in matches]  # fmt: skip
        with Leaf.open(self.stored.files(self.pixel)) as leaf:
            batches = leaf.batches([*keys, *self.keys, FLAGS, *theirs], rows=self.batch_rows)
            for _, batch in prefetched(batches, self.timed, several=self.several):
                yield Rows(
                    keys=batch.select(keys),
                    tokenized=stored_rows(batch, self.keys),
                    matches=[batch.column(name) for name in theirs],
                )

    def again(self, rows: Sequence[int]) -> Iterator[TokenizedRows]:
        """Rows of the stored tokens."""
        with Leaf.open(self.stored.files(self.pixel)) as leaf:
            for batch in leaf.single_rows([*self.keys, FLAGS], rows, at_once=64):
                yield stored_rows(batch, self.keys)

    def close(self) -> None:
        """Nothing is held."""


def stored_rows(batch: pa.RecordBatch, keys: Sequence[str]) -> TokenizedRows:
    """Rows of a token extension: the columns of these token keys, and the flags."""
    import torch

    tokens = {}
    for key in keys:
        codes, valid = token_values(batch.column(key))
        tokens[key] = Tokens(ids_BN=torch.from_numpy(codes), valid_BN=torch.from_numpy(valid))
    flags: NDArray[np.int32] = batch.column(FLAGS).to_numpy().copy()
    return TokenizedRows(tokens=tokens, labels={}, flags=flags)
