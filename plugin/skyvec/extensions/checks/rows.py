"""Rows: as many as the input has, with its ids, order, types and places on the sky."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import spatial_index_to_healpix

from skyvec.extensions.checks.report import Check, Findings
from skyvec.extensions.checks.subject import REDO, LeafFacts, Subject
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import first_line
from skyvec.stage.job import Job
from skyvec.stage.row_truth import RowTruth
from skyvec_schemas.errors import DuplicateIdsError, SkyvecError
from skyvec_schemas.provenance import pixel_fingerprint

_SPATIAL_INDEX = "_healpix_29"
_AGAIN = "run `skyvec embed` again, under a new name"


def check_rows(
    subject: Subject, source: HatsRelease | str, job: Job | str
) -> tuple[Check, frozenset[HealpixPixel]]:
    """Compare the keys of every leaf with the input; also the pixels whose input changed.

    What the input of a pixel was is in the fingerprint of its record; a pixel whose input changed
    since is stale, which is no corruption, and its rows are not compared.
    """
    findings = Findings("rows")
    if subject.keys[:1] == [_SPATIAL_INDEX]:
        for leaf in subject.readable:
            _check_places(leaf, subject, findings)
    if isinstance(source, str):
        return findings.not_done(source), frozenset()
    stale: frozenset[HealpixPixel] = frozenset()
    if isinstance(job, str):
        findings.note(f"whether the input changed since was not compared: {job}")
    else:
        stale = _stale(subject, source, job, findings)
    compared = 0
    for leaf in subject.readable:
        if leaf.pixel not in stale:
            compared += _compare(leaf, subject, source, findings)
    _note_others(subject, source, findings)
    return findings.check(f"{compared:,} rows compared with {source.root}"), stale


def _stale(
    subject: Subject, source: HatsRelease, job: Job, findings: Findings
) -> frozenset[HealpixPixel]:
    run, stale = subject.provenance.fingerprint(), set()
    for leaf in subject.readable:
        record = subject.records[leaf.pixel.order, leaf.pixel.pixel]
        try:
            now = pixel_fingerprint(run, job.identity(source, leaf.pixel))
        except (SkyvecError, OSError) as problem:
            stale.add(leaf.pixel)
            findings.note(f"the input is not there any more: {first_line(problem)}; {_AGAIN}")
            continue
        if now != record.fingerprint:
            stale.add(leaf.pixel)
            what = "or its tokens or sources " if job.tokens or job.sources else ""
            findings.note(
                f"{source.leaf(leaf.pixel)} {what}changed since it was embedded; {_AGAIN}"
            )
    return frozenset(stale)


def _compare(leaf: LeafFacts, subject: Subject, source: HatsRelease, findings: Findings) -> int:
    where = subject.shown(leaf.path)
    _, id_column, *position = subject.keys
    try:
        truth = RowTruth.of(source, leaf.pixel, id_column, more=position)
        with pq.ParquetFile(leaf.path) as file:
            problems = list(truth.differences(file))
    except DuplicateIdsError as problem:
        problems = [problem.what]
    except (SkyvecError, OSError, KeyError, pa.ArrowException) as problem:
        problems = [f"cannot be compared with the input ({first_line(problem)})"]
    for what in problems:
        findings.problem(what, where=where, remedy=REDO)
    return leaf.rows


def _check_places(leaf: LeafFacts, subject: Subject, findings: Findings) -> None:
    """Every row lies in the pixel of its file; needs no input."""
    try:
        with pq.ParquetFile(leaf.path) as file:
            index = file.read(columns=subject.keys[:1]).column(0).to_numpy()
    except (OSError, pa.ArrowException) as problem:
        findings.problem(
            f"cannot be read ({first_line(problem)})",
            where=subject.shown(leaf.path),
            remedy=REDO,
        )
        return
    outside = np.flatnonzero(spatial_index_to_healpix(index, leaf.pixel.order) != leaf.pixel.pixel)
    if len(outside):
        findings.problem(
            f"{len(outside)} rows do not lie in the HEALPix pixel of their file (the first is row "
            f"{outside[0]})",
            where=subject.shown(leaf.path),
            remedy=REDO,
        )


def _note_others(subject: Subject, source: HatsRelease, findings: Findings) -> None:
    others = [p for p in source.pixels if (p.order, p.pixel) not in subject.records]
    if others:
        findings.note(
            f"{len(others):,} of {len(source.pixels):,} HEALPix pixels of the input are not in it, "
            "by choice or because they came later"
        )
