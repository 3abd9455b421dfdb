"""What the sources add to the rows of one pixel: tokens, reasons, and which object was matched.

Every source is matched first and read once, in the order of its own files; its tokens wait in a
spool until their rows come by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.ids import canonical_ids
from skyvec.releases.joining.catalog_keys import CatalogKeys, read_catalog_keys
from skyvec.releases.joining.join import Match, match
from skyvec.releases.sky import valid_positions
from skyvec.releases.source import PositionSource, Quarantined, Reading, Source, SourceObjects
from skyvec.sources import SourceSpec, reach
from skyvec.stage.prefetch import prefetched
from skyvec.stage.timing import Timed
from skyvec.stage.token_spool import TokenSpool
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import ContractError, RowTruthError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import Survey

ReadRow = Callable[[int], Iterable[Reading]]
EXAMPLES = 20
"""Quarantined objects of a source that a record names; all are counted."""


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What one source had for one pixel."""

    counts: Mapping[str, int]
    """Matched, unmatched, ambiguous and the other outcomes of the join; ``quarantined``."""
    quarantined: tuple[Mapping[str, object], ...] = ()
    """The first objects of the source that could not be used, each with its reason."""


@dataclass(kw_only=True)
class JoinedRows:
    """The sources' part of the rows of a pixel, all in the catalog's order."""

    row_ids: NDArray[np.str_]
    """Canonical ids of the rows, as they were matched."""
    spool: TokenSpool
    inputs: tuple[str, ...]
    """Token keys that a vector may be made of."""
    labels: tuple[str, ...]
    flags: NDArray[np.int32]
    ids: dict[str, pa.Array]
    """Source -> id of the matched object, null where there is none."""
    separations: dict[str, pa.Array]
    """Source -> distance to it in arcsec (float32), null where there is none or no position."""
    counts: dict[str, SourceCounts] = field(default_factory=dict)
    refused: dict[str, tuple[Quarantined, ...]] = field(default_factory=dict)
    """Source -> every object of it that could not be used."""
    readers: list[tuple[tuple[str, ...], ReadRow]] = field(default_factory=list)
    """Token keys of a source, and how to read one row of it again."""

    def prove(self, start: int, ids: pa.Array, *, where: str) -> None:
        """Compare the ids of a batch of rows with those that were matched at its place.

        Raises
        ------
        RowTruthError
            If the rows are others, and would be given other objects' tokens.
        """
        if not np.array_equal(canonical_ids(ids), self.row_ids[start : start + len(ids)]):
            raise RowTruthError(
                f"rows from {start} on are not those that were joined with the sources",
                where=where,
                remedy="The catalog changed while it was read; run the same command again",
            )

    def tokens(self, start: int, stop: int) -> dict[str, Tokens]:
        """Model inputs of the rows from ``start`` to before ``stop``."""
        return {key: self.spool.get(key, start, stop) for key in self.inputs}

    def read_again(self, row: int, model: Model) -> dict[str, Tokens]:
        """Model inputs of one row, read from the sources anew and alone."""
        tokens: dict[str, Tokens] = {}
        for keys, read in self.readers:
            found = {}
            for reading in read(row):
                found = model.tokenize(reading.observations)
            none = {key: _no_tokens(MODALITIES[key].num_tokens) for key in keys}
            tokens |= none | {key: found[key] for key in keys if key in found}
        return tokens

    def label_tokens(self, start: int, stop: int) -> dict[str, Tokens]:
        """Tokens of labels of these rows."""
        return {key: self.spool.get(key, start, stop) for key in self.labels}

    def columns(self, start: int, stop: int) -> list[pa.Array]:
        """Id and distance of every source, for `match_fields`."""
        return [
            part[name].slice(start, stop - start)
            for name in self.ids
            for part in (self.ids, self.separations)
        ]


def match_fields(prefix: str, sources: Iterable[str]) -> list[pa.Field]:
    """Columns that say which object of each source a row was joined with."""
    return [
        pa.field(f"{prefix}{name}_{what}", kind)
        for name in sources
        for what, kind in (("id", pa.string()), ("arcsec", pa.float32()))
    ]


def join_sources(
    release: HatsRelease,
    pixel: HealpixPixel,
    *,
    survey: Survey,
    sources: Sequence[SourceSpec],
    model: Model,
    labels: Iterable[str],
    folder: Path,
    batch_rows: int,
    timed: Timed,
) -> JoinedRows:
    """Match, read and tokenize what every source has for the rows of a pixel.

    Parameters
    ----------
    survey
        Of the catalog.
    labels
        Token keys of labels to take from the sources.
    folder
        Where tokens may wait, on a disk with room.
    batch_rows
        Objects of a source in memory at a time.
    timed
        Gives a context that adds its time to ``match``, ``read`` or ``tokenize``.
    """
    margins = [reach(spec, release, survey) for spec in sources]
    with timed("match"):
        keys = read_catalog_keys(release, pixel, survey, margin_arcsec=max(margins))
    inputs = tuple(key for spec in sources for _, key in spec.survey.inputs)
    labels = tuple(labels)
    joined = JoinedRows(
        row_ids=keys.ids[: keys.rows],
        spool=TokenSpool(
            folder,
            rows=keys.rows,
            widths={key: MODALITIES[key].num_tokens for key in (*inputs, *labels)},
        ),
        inputs=inputs,
        labels=labels,
        flags=np.zeros(keys.rows, np.int32),
        ids={},
        separations={},
    )
    work = _Work(keys=keys, joined=joined, model=model, batch_rows=batch_rows, timed=timed)
    for spec, margin in zip(sources, margins, strict=True):
        source = spec.open()
        if isinstance(source, PositionSource):
            work.read_at_positions(source, spec)
        else:
            work.read_matched(source, spec, margin)
    return joined


def sources_identity(
    release: HatsRelease, pixel: HealpixPixel, *, survey: Survey, sources: Sequence[SourceSpec]
) -> Mapping[str, object]:
    """What the join of a pixel depends on: each source's files, and the catalog's own border."""
    margins = [reach(spec, release, survey) for spec in sources]
    border = read_catalog_keys(release, pixel, survey, margin_arcsec=max(margins)).digest
    files = {
        spec.name: dict(spec.open().identity(pixel, margin_arcsec=margin))
        for spec, margin in zip(sources, margins, strict=True)
    }
    return {"border": border, "sources": files}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    keys: CatalogKeys
    joined: JoinedRows
    model: Model
    batch_rows: int
    timed: Timed

    def read_matched(self, source: Source, spec: SourceSpec, margin: float) -> None:
        with self.timed("read"):
            objects = source.objects(self.keys.pixel, margin_arcsec=margin)
        with self.timed("match"):
            found = match(self.keys, objects, spec.rule, survey=spec.survey)
        self._note_matches(spec, objects, found)
        rows = np.flatnonzero(found.index >= 0)
        readings = source.read(objects, found.index[rows], rows=self.batch_rows)
        self._store(readings, spec, rows)

        def read(row: int) -> Iterable[Reading]:
            if found.index[row] < 0:
                return ()
            return source.read(objects, found.index[row : row + 1], rows=1)

        self._can_read_again(spec, read)

    def read_at_positions(self, source: PositionSource, spec: SourceSpec) -> None:
        joined, count = self.joined, self.keys.rows
        ra, dec = self.keys.ra[:count], self.keys.dec[:count]
        placed = valid_positions(ra, dec)
        rows = np.flatnonzero(placed)
        joined.flags[~placed] |= Flag.POSITION_INVALID
        joined.ids[spec.name] = pa.nulls(count, pa.string())
        joined.separations[spec.name] = pa.nulls(count, pa.float32())
        outcomes = {"rows": count, "positions": len(rows), "invalid_positions": count - len(rows)}
        joined.counts[spec.name] = SourceCounts(counts=outcomes)
        self._store(source.read_at(ra[rows], dec[rows], rows=self.batch_rows), spec, rows)

        def read(row: int) -> Iterable[Reading]:
            if not placed[row]:
                return ()
            return source.read_at(ra[row : row + 1], dec[row : row + 1], rows=1)

        self._can_read_again(spec, read)

    def _can_read_again(self, spec: SourceSpec, read: ReadRow) -> None:
        self.joined.readers.append((tuple(key for _, key in spec.survey.inputs), read))

    def _note_matches(self, spec: SourceSpec, objects: SourceObjects, found: Match) -> None:
        joined, none = self.joined, found.index < 0
        joined.flags |= found.flags
        ids = np.full(len(none), "", object)
        ids[~none] = objects.ids[found.index[~none]]
        joined.ids[spec.name] = pa.array(ids, pa.string(), mask=none)
        separation = found.separation_arcsec.astype(np.float32)
        joined.separations[spec.name] = pa.array(separation, mask=np.isnan(separation))
        joined.refused[spec.name] = objects.quarantined
        joined.counts[spec.name] = SourceCounts(
            counts={**found.counts, "quarantined": len(objects.quarantined)},
            quarantined=tuple(
                {**asdict(each), "row": int(each.row)} for each in objects.quarantined[:EXAMPLES]
            ),
        )

    def _store(
        self, readings: Iterable[Reading], spec: SourceSpec, rows: NDArray[np.int64]
    ) -> None:
        """Tokenize as it comes; every row must come once and no other may come."""
        joined = self.joined
        times = np.zeros(len(rows), np.int64)
        for reading in prefetched(iter(readings), self.timed):
            np.add.at(times, reading.index, 1)
            at = rows[reading.index]
            joined.flags[at] |= reading.flags
            labels = {key: seen for key, seen in reading.labels.items() if key in joined.labels}
            with self.timed("tokenize"):
                tokens = self.model.tokenize({**reading.observations, **labels})
            for key, coded in tokens.items():
                joined.spool.put(key, at, coded)
        if (times != 1).any():
            raise ContractError(
                f"of {len(rows)} wanted objects {int((times == 0).sum())} were not read and "
                f"{int((times > 1).sum())} came more than once",
                where=f"source {spec.name}, {spec.path}",
                remedy="A file changed while it was read; run the same command again",
            )
        without = np.ones(len(joined.flags), np.bool_)
        without[rows] = False
        joined.flags[without] |= absent_flags(spec.survey)


def _no_tokens(width: int) -> Tokens:
    return Tokens(
        ids_BN=torch.zeros((1, width), dtype=torch.int64),
        valid_BN=torch.zeros((1, width), dtype=torch.bool),
    )


def absent_flags(survey: Survey) -> int:
    """Reasons of a row for which a source of this survey has nothing."""
    parts = {
        Flag.IMAGE_MISSING: survey.image,
        Flag.SPECTRUM_MISSING: survey.spectrum,
        Flag.COEFFICIENTS_MISSING: survey.coefficients,
        Flag.SCALAR_MISSING: survey.scalars,
    }
    return sum(int(flag) for flag, part in parts.items() if part)
