"""Before any compute: how large a run would be, what its sources hold, and what is wrong with them.

A few rows of every release are opened raw and checked, a few pixels are matched, and a few real
objects go through reading, tokenizing and encoding; the rest is extrapolated, and says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.preview.cost import Cost, estimate
from skyvec.preview.probe import CATALOG, Matched, Probed, probe
from skyvec.releases.lint.catalog import missing_inputs
from skyvec.releases.lint.finding import Finding, worst_first
from skyvec.releases.lint.lint import lint_release
from skyvec.releases.lint.raw_hats import sample_hats
from skyvec.releases.lint.raw_sample import RawRelease, sample_release, spread
from skyvec.releases.lint.subject import Subject
from skyvec.sources import SourceSpec
from skyvec.stage.plan import Plan
from skyvec_core.codecs.image import ImageCodec
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.survey_columns import Survey

_MANY = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePreview:
    """The catalog, or one source."""

    name: str
    path: str
    format: str
    survey: str
    joined: str
    """How its objects find their rows; empty for the catalog."""
    rows: int
    """Of the release; 0 if unknown."""
    bytes: int
    files: int
    exact: bool
    """Whether rows and bytes were counted, not extrapolated from some files."""
    sampled_rows: int
    """Objects whose columns were looked at."""
    inputs: tuple[str, ...]
    """What it feeds, as ``column=token_key``."""
    missing: Mapping[str, Sequence[str]]
    """Kind of input -> declared columns that the sample does not have."""
    matched: Matched | None = None
    """None for the catalog itself, and where matching failed."""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        plain = asdict(self)
        if self.matched:
            plain["matched"]["fraction"] = round(self.matched.fraction, 6)
        return plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a look before the run shows."""

    catalog: SourcePreview
    sources: tuple[SourcePreview, ...]
    findings: tuple[Finding, ...]
    """Worst first."""
    cost: Cost | None
    """None where not one object could be read and tokenized."""
    seconds: float
    """That the preview took."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that should stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "catalog": self.catalog.to_dict(),
            "sources": [source.to_dict() for source in self.sources],
            "findings": [finding.to_dict() for finding in self.findings],
            "cost": self.cost.to_dict() if self.cost else None,
            "seconds": round(self.seconds, 3),
        }


def preview(
    plan: Plan, *, sample_rows: int = 64, sample_pixels: int = 3, workers: int | None = None
) -> Preview:
    """Sample, check, match and time; problems of the data become findings, never exceptions.

    Parameters
    ----------
    sample_rows
        Objects of each release whose pixels and spectra are looked at, and timed.
    sample_pixels
        HATS pixels in which sources are matched, and files opened of each release.
    workers
        For the wall time; all cores of this machine by default.
    """
    started = time.monotonic()
    job, release = plan.job, plan.release
    findings: list[Finding] = []
    look = partial(sample_hats, release, job.survey, rows=sample_rows, files=sample_pixels)
    own = _sampled(CATALOG, look, findings)
    probed = probe(plan, _pixels(plan, sample_pixels), rows=sample_rows)
    findings += probed.findings
    catalog = _described(own, job.survey, name=CATALOG, path=str(release.path), form="hats")
    findings += lint_release(CATALOG, job.survey, own, window=ImageCodec.size) if own else ()
    sources = []
    for spec in job.sources:
        look = partial(sample_release, spec, rows=sample_rows, files=sample_pixels)
        raw = _sampled(spec.name, look, findings)
        findings += lint_release(spec.name, spec.survey, raw, window=ImageCodec.size) if raw else ()
        sources.append(
            _described(
                raw, spec.survey, name=spec.name, path=spec.path, form=spec.format,
                joined=_rule(spec), matched=probed.matched(spec.name),
            )
        )  # fmt: skip
        findings += _match_findings(spec, probed)
    return Preview(
        catalog=catalog,
        sources=tuple(sources),
        findings=worst_first(findings),
        cost=estimate(
            plan,
            probed,
            catalog_bytes=catalog.bytes,
            largest=own.largest if own else 0,
            source_sizes={source.name: (source.bytes, source.rows) for source in sources},
            workers=workers or os.cpu_count() or 1,
        ),
        seconds=time.monotonic() - started,
    )


def lint_plan(plan: Plan, *, sample_rows: int = 64, sample_pixels: int = 3) -> tuple[Finding, ...]:
    """What is wrong with the data of a plan, the worst first; neither matches nor times anything."""
    findings: list[Finding] = []
    release, survey = plan.release, plan.job.survey
    looks: list[tuple[str, Survey, Callable[[], RawRelease]]] = [
        (
            CATALOG,
            survey,
            partial(sample_hats, release, survey, rows=sample_rows, files=sample_pixels),
        )
    ]
    looks += [
        (spec.name, spec.survey,
         partial(sample_release, spec, rows=sample_rows, files=sample_pixels))
        for spec in plan.job.sources
    ]  # fmt: skip
    for name, of, look in looks:
        raw = _sampled(name, look, findings)
        findings += lint_release(name, of, raw, window=ImageCodec.size) if raw else ()
    return tuple(worst_first(findings))


def _sampled(
    name: str, sample: Callable[[], RawRelease], findings: list[Finding]
) -> RawRelease | None:
    try:
        return sample()
    except SkyvecError as problem:
        what, where, remedy = problem.what, problem.where, problem.remedy
    except Exception as problem:  # noqa: BLE001 - a look at odd files must not end the others
        what, where, remedy = f"{type(problem).__name__}: {problem}", name, "Look at its files"
    findings.append(
        Finding(severity="error", topic="files", source=name, what=what, where=where, remedy=remedy)
    )
    return None


def _described(
    raw: RawRelease | None,
    survey: Survey,
    *,
    name: str,
    path: str,
    form: str,
    joined: str = "",
    matched: Matched | None = None,
) -> SourcePreview:
    files = raw.files if raw else ()
    subject = Subject(name=name, survey=survey, files=files, window=0)
    return SourcePreview(
        name=name,
        path=path,
        format=form,
        survey=survey.name,
        joined=joined,
        rows=raw.rows if raw else 0,
        bytes=raw.bytes if raw else 0,
        files=raw.file_count if raw else 0,
        exact=raw.exact if raw else False,
        sampled_rows=sum(max(map(len, file.keys.values()), default=0) for file in files),
        inputs=tuple(f"{column}={key}" for column, key in survey.inputs),
        missing=missing_inputs(subject) if any(file.keys for file in files) else {},
        matched=matched,
    )


def _rule(spec: SourceSpec) -> str:
    if spec.rule.by == "id":
        return "by id"
    epoch = f", epoch {spec.rule.epoch:g}" if spec.rule.epoch is not None else ""
    return f"within {spec.rule.radius_arcsec:g} arcsec{epoch}"


def _pixels(plan: Plan, count: int) -> list[HealpixPixel]:
    """Pixels to try, spread over those that are left to do."""
    pixels = plan.todo or tuple(plan.release.pixels)
    return [pixels[at] for at in spread(len(pixels), count)]


def _match_findings(spec: SourceSpec, probed: Probed) -> Iterator[Finding]:
    """What the outcomes of the join say about source and radius."""
    found = probed.matched(spec.name)
    if not found or not found.rows:
        return

    def finding(what: str, remedy: str, count: int) -> Finding:
        return Finding(
            severity="warning", topic="match", source=spec.name, what=what, remedy=remedy,
            where=f"{found.pixels} sampled pixels",
            evidence={"rows": count, "of": found.rows},
        )  # fmt: skip

    if not found.fraction:
        yield finding(
            f"not one of {found.rows:,} rows has an object here",
            "Does it cover this part of the sky, and is the join right?", 0,
        )  # fmt: skip
    radius = f"{spec.rule.radius_arcsec:g} arcsec"
    far, ambiguous = found.counts.get("far", 0), found.counts.get("ambiguous", 0)
    if far > _MANY * found.rows:
        yield finding(
            f"{far:,} of {found.rows:,} rows share an id with an object farther away than {radius}",
            "Are these the same ids? Else join by position", far,
        )  # fmt: skip
    if ambiguous > _MANY * found.rows:
        yield finding(
            f"{ambiguous:,} of {found.rows:,} rows have several objects within {radius}; the nearest "
            "is taken", "Choose a smaller radius", ambiguous,
        )  # fmt: skip
