"""A few pixels matched and a few real objects read, tokenized and encoded, with the time it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.ids import MISSING
from skyvec.releases.joining.catalog_keys import CatalogKeys, read_catalog_keys
from skyvec.releases.joining.join import match
from skyvec.releases.lint.finding import Finding
from skyvec.releases.sky import valid_positions
from skyvec.releases.source import PositionSource, Quarantined, Reading, Source, SourceObjects
from skyvec.sources import SourceSpec, reach
from skyvec.stage.partition import tokenize_rows
from skyvec.stage.plan import Plan
from skyvec.stage.worker import model_on_worker
from skyvec_core.codecs.image import ImageCodec
from skyvec_core.embedder import Model
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import SkyvecError

T = TypeVar("T")

CATALOG = "catalog"
"""What the input catalog is called among the sources."""
BUDGET = 1.0
"""Seconds that the timed sample of one step of one source may take, over all pixels."""
PIECE = ImageCodec.rows
"""Objects that codecs take at once; fewer cost as much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """How the rows of the sampled pixels found their objects."""

    pixels: int
    rows: int
    """Of the catalog, in these pixels."""
    counts: Mapping[str, int]
    """Outcomes of the join, and ``quarantined``; ``positions`` of a source of sky images."""

    @property
    def fraction(self) -> float:
        """Share of rows with an object, or of images of the sky with a valid position."""
        found = self.counts.get("matched", 0) + self.counts.get("positions", 0)
        return found / self.rows if self.rows else 0.0


@dataclass(kw_only=True)
class Probed:
    """Measurements on the sampled pixels."""

    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(source or `CATALOG`, step) -> seconds; steps are those of a run."""
    units: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(source, step) -> what these seconds were spent on: rows, objects, or tokens to encode."""
    tokens: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Source -> token key -> valid tokens of its objects, by pixel."""
    rows: Counter[str] = field(default_factory=Counter)
    """Source -> rows of the catalog that it was asked for."""
    pixels: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    """Source -> objects read and tokenized in time measured."""
    findings: list[Finding] = field(default_factory=list)
    budget: float = BUDGET
    """Seconds for one step in one pixel."""
    pace: dict[tuple[str, str], float] = field(default_factory=dict)
    """(source, step) -> seconds that one object took at first."""

    def rate(self, source: str, step: str) -> float:
        """Seconds for each unit."""
        units = self.units[source, step]
        return self.seconds[source, step] / units if units else 0.0

    def matched(self, source: str) -> Matched | None:
        """How its objects were found; None if it could not be asked."""
        if source not in self.counts:
            return None
        return Matched(
            pixels=self.pixels[source], rows=self.rows[source], counts=dict(self.counts[source])
        )

    def mean_tokens(self, source: str) -> dict[str, float]:
        """Token key -> valid tokens of one of its objects."""
        return {key: float(np.mean(n)) for key, n in self.tokens.get(source, {}).items()}

    def spend(self, source: str, step: str, *, seconds: float, units: float) -> None:
        """Note how long so many units took."""
        self.seconds[source, step] += seconds  # type: ignore[assignment]
        self.units[source, step] += units  # type: ignore[assignment]

    @contextmanager
    def timed(self, source: str, step: str, units: float) -> Iterator[None]:
        """Note how long a block takes."""
        started = time.perf_counter()
        yield
        self.spend(source, step, seconds=time.perf_counter() - started, units=units)

    def sample(
        self, source: str, step: str, work: Callable[[int], T], *, most: int, first: int
    ) -> tuple[int, float, T]:
        """Do as much of ``work(count)`` as the budget allows: count, seconds, result.

        The first time, ``first`` objects are tried twice, since caches and kernels have to warm up.
        """
        first = min(first, most)
        if (source, step) not in self.pace:
            work(first)
            started = time.perf_counter()
            result = work(first)
            seconds = time.perf_counter() - started
            self.pace[source, step] = max(1e-9, seconds / first)
            if 2 * seconds > self.budget or first == most:
                return first, seconds, result
        parts = int(self.budget / (self.pace[source, step] * first))
        count = min(most, first * max(1, parts))
        started = time.perf_counter()
        result = work(count)
        return count, time.perf_counter() - started, result


def probe(plan: Plan, pixels: Sequence[HealpixPixel], *, rows: int) -> Probed:
    """Match in these pixels, and time about ``rows`` objects of the catalog and of each source.

    Whatever a source cannot do becomes a finding.
    """
    probed = Probed(budget=BUDGET / max(1, len(pixels)))
    model = model_on_worker(plan.job.model)
    share = -(-rows // max(1, len(pixels)))
    opened = {}
    for spec in plan.job.sources:
        with _noted(probed, spec.name):
            opened[spec.name] = spec.open()
    for pixel in pixels:
        parts = {}
        with _noted(probed, CATALOG):
            parts[CATALOG] = _catalog_tokens(plan, pixel, model, share, probed)
        keys = _keys(plan, pixel, probed) if opened else None
        for spec in plan.job.sources:
            if keys is None or spec.name not in opened:
                continue
            with _noted(probed, spec.name):
                source = opened[spec.name]
                if isinstance(source, PositionSource):
                    read = _at_positions(source, spec, keys, probed)
                else:
                    read = _matched(source, spec, plan, keys, probed)
                parts[spec.name] = _source_tokens(read, spec, model, share, probed)
        for name, tokens in parts.items():
            for key, coded in tokens.items():
                counts = coded.valid_BN.sum(1).double()
                of = probed.tokens.setdefault(name, {}).setdefault(key, [])
                of.append(float(counts.mean()))
        if plan.job.columns:
            _encode(list(parts.values()), model, probed)
    return probed


@contextmanager
def _noted(probed: Probed, source: str) -> Iterator[None]:
    """Turn what goes wrong with a source into a finding."""
    try:
        yield
        return
    except SkyvecError as problem:
        what, where, remedy = problem.what, problem.where, problem.remedy
    except Exception as problem:  # noqa: BLE001 - one source never ends the look at the others
        what, where = f"{type(problem).__name__}: {problem}", f"source {source}"
        remedy = "It would stop the run, too: look at its files, and report it"
    finding = Finding(
        severity="error", topic="reading", source=source, what=what, where=where, remedy=remedy
    )
    if finding not in probed.findings:
        probed.findings.append(finding)


def _keys(plan: Plan, pixel: HealpixPixel, probed: Probed) -> CatalogKeys | None:
    survey, release = plan.job.survey, plan.release
    margin = max(reach(spec, release, survey) for spec in plan.job.sources)
    keys = None
    with _noted(probed, CATALOG):
        started = time.perf_counter()
        keys = read_catalog_keys(release, pixel, survey, margin_arcsec=margin)
        seconds = time.perf_counter() - started
        probed.spend(CATALOG, "match", seconds=seconds, units=keys.rows)
    return keys


def _catalog_tokens(
    plan: Plan, pixel: HealpixPixel, model: Model, rows: int, probed: Probed
) -> dict[str, Tokens]:
    survey = plan.job.survey
    if not survey.inputs:
        return {}
    started = time.perf_counter()
    batch = next(plan.release.batches(pixel, survey, rows=rows), None)
    if batch is None or not len(batch):
        return {}
    seconds = time.perf_counter() - started
    probed.spend(CATALOG, "read", seconds=seconds, units=len(batch))
    count, seconds, coded = probed.sample(
        CATALOG, "tokenize", lambda k: tokenize_rows(batch.slice(0, k), survey, model),
        most=len(batch), first=PIECE,
    )  # fmt: skip
    probed.spend(CATALOG, "tokenize", seconds=seconds, units=_filled_up(count))
    probed.objects[CATALOG] += count
    return coded.tokens


_Read = tuple[Callable[[int], Iterator[Reading]], int]
"""What reads the first k wanted objects, and how many are wanted."""


def _matched(
    source: Source, spec: SourceSpec, plan: Plan, keys: CatalogKeys, probed: Probed
) -> _Read:
    with probed.timed(spec.name, "match", keys.rows):
        margin = reach(spec, plan.release, plan.job.survey)
        objects = source.objects(keys.pixel, margin_arcsec=margin)
        found = match(keys, objects, spec.rule, survey=spec.survey)
    counts = {**found.counts, "quarantined": len(objects.quarantined)}
    _count(probed, spec.name, keys, counts)
    _note_kinds(probed, spec, keys, objects)
    _note_quarantined(probed, spec.name, objects.quarantined)
    wanted = found.index[found.index >= 0]
    return lambda k: source.read(objects, wanted[:k], rows=plan.job.batch_rows), len(wanted)


def _at_positions(
    source: PositionSource, spec: SourceSpec, keys: CatalogKeys, probed: Probed
) -> _Read:
    ra, dec = keys.ra[: keys.rows], keys.dec[: keys.rows]
    placed = valid_positions(ra, dec)
    _count(probed, spec.name, keys, {"positions": int(placed.sum())})
    ra, dec = ra[placed], dec[placed]
    return lambda k: source.read_at(ra[:k], dec[:k], rows=k), len(ra)


def _count(probed: Probed, name: str, keys: CatalogKeys, counts: Mapping[str, int]) -> None:
    probed.pixels[name] += 1
    probed.rows[name] += keys.rows
    probed.counts.setdefault(name, Counter()).update(counts)


def _source_tokens(
    read: _Read, spec: SourceSpec, model: Model, rows: int, probed: Probed
) -> dict[str, Tokens]:
    reader, wanted = read
    if not wanted:
        return {}

    spent: list[float] = []

    def work(count: int) -> list[dict[str, Tokens]]:
        started = time.perf_counter()
        readings = list(reader(count))
        spent.append(time.perf_counter() - started)
        return [model.tokenize(reading.observations) for reading in readings]

    count, seconds, coded = probed.sample(
        spec.name, "tokenize", work, most=min(rows, wanted), first=PIECE
    )
    probed.spend(spec.name, "read", seconds=spent[-1], units=count)
    probed.spend(spec.name, "tokenize", seconds=seconds - spent[-1], units=_filled_up(count))
    probed.objects[spec.name] += count
    return {key: _joined([part[key] for part in coded]) for key in (coded[0] if coded else {})}


def _joined(parts: list[Tokens]) -> Tokens:
    import torch

    return Tokens(
        ids_BN=torch.cat([part.ids_BN for part in parts]),
        valid_BN=torch.cat([part.valid_BN for part in parts]),
    )


def _encode(parts: list[dict[str, Tokens]], model: Model, probed: Probed) -> None:
    """Time the encoder on rows that have something of everything, whosever objects they are."""
    tokens = {key: coded for part in parts for key, coded in part.items()}
    if not tokens:
        return
    rows = min(len(coded.ids_BN) for coded in tokens.values())

    def first(count: int) -> dict[str, Tokens]:
        return {
            key: Tokens(ids_BN=coded.ids_BN[:count], valid_BN=coded.valid_BN[:count])
            for key, coded in tokens.items()
        }

    count, seconds, _ = probed.sample(
        CATALOG, "encode", lambda k: model.embed(first(k)), most=rows, first=1
    )
    spent = sum(int(coded.valid_BN.sum()) for coded in first(count).values())
    probed.spend(CATALOG, "encode", seconds=seconds, units=spent)


def _filled_up(count: int) -> int:
    """Objects of whole pieces: what a run, which fills its pieces, would do in the same time."""
    return -(-count // PIECE) * PIECE


def _note_kinds(
    probed: Probed, spec: SourceSpec, keys: CatalogKeys, objects: SourceObjects
) -> None:
    """Say if ids are numbers on one side and words on the other, where a join by id is asked for."""
    if spec.rule.by != "id" or not keys.rows or not len(objects):
        return
    ours, theirs = _numeric_share(keys.ids[: keys.rows]), _numeric_share(objects.ids)
    if abs(ours - theirs) > 0.9:
        names = {True: "whole numbers", False: "text"}
        finding = Finding(
            severity="error", topic="ids", source=spec.name,
            what=f"ids are {names[theirs > 0.5]}, those of the catalog {names[ours > 0.5]}, so none "
            "can be equal",
            where=f"source {spec.name}", remedy='Join by position: join = "position"',
            evidence={"numeric_in_catalog": round(ours, 3), "numeric_in_source": round(theirs, 3)},
        )  # fmt: skip
        if all(f.what != finding.what or f.source != spec.name for f in probed.findings):
            probed.findings.append(finding)


def _numeric_share(ids: NDArray[np.str_]) -> float:
    known = ids[ids != MISSING][:1000]
    return float(np.strings.isdigit(known).mean()) if len(known) else 0.0


def _note_quarantined(probed: Probed, name: str, objects: Sequence[Quarantined]) -> None:
    if not objects or any(f.topic == "quarantine" and f.source == name for f in probed.findings):
        return
    first = objects[0]
    probed.findings.append(
        Finding(
            severity="warning", topic="quarantine", source=name,
            what=f"{len(objects):,} objects of a sampled pixel are set aside, e.g. {first.reason}",
            where=f"{first.file}, row {first.row}", remedy="They match nothing; mend them in the release",
            evidence={"set_aside": len(objects)},
        )
    )  # fmt: skip
