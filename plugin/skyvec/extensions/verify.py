"""Offline proof that an extension is right: published or not, today or years later.

Nothing that the extension says of itself is believed without a second witness: its files are
compared with each other, with the catalog that was embedded, and with a few vectors made anew.
"""

from __future__ import annotations

from pathlib import Path

from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.extensions.checks.files import check_files
from skyvec.extensions.checks.properties import check_properties
from skyvec.extensions.checks.provenance import check_provenance
from skyvec.extensions.checks.recompute import check_recomputed
from skyvec.extensions.checks.recorded_job import NotRecordedError, recorded_job
from skyvec.extensions.checks.report import Check, Report
from skyvec.extensions.checks.rows import check_rows
from skyvec.extensions.checks.subject import Subject, open_source
from skyvec.extensions.checks.vectors import SameInput, check_vectors
from skyvec.extensions.publish import published_rows
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.job import Job
from skyvec.stage.output import Output
from skyvec_schemas.errors import SkyvecError

__all__ = ("Check", "Report", "verify")


def verify(
    catalog: str | Path,
    extension: str | None = None,
    *,
    source: str | Path | None = None,
    sample: int = 8,
    model: str | None = None,
    seed: int = 0,
) -> Report:
    """Prove that every row of an extension is that of its input, or name those that are not.

    Parameters
    ----------
    catalog
        Folder of the collection, of the extension itself, or its ``.properties`` file.
    extension
        Which one, if there are several.
    source
        The catalog that was embedded, where it lies elsewhere now; a folder or URI.
    sample
        Rows to embed again, each alone, spread over the pixels.
    model
        Folder or name of the model, where it lies elsewhere now.
    seed
        Of the choice of these rows.

    Raises
    ------
    ConfigurationError
        If there is no such extension, catalog or model.
    ContractError
        If what skyvec keeps about the extension cannot be read, so that nothing can be proved.
    """
    subject = Subject.open(catalog, extension)
    release = open_source(subject, source)
    opened = release if isinstance(release, HatsRelease) else None
    job = _job(subject, release)
    rows, stale = check_rows(subject, release, job)
    checks = (
        check_properties(subject, opened),
        check_provenance(subject),
        check_files(subject),
        rows,
        check_vectors(subject, _same_input(opened, job, stale)),
        check_recomputed(subject, release, job, stale=stale, sample=sample, model=model, seed=seed),
    )
    return Report(
        extension=subject.name,
        folder=subject.folder,
        source=str(opened.root) if opened else "",
        checks=checks,
        stale_pixels=len(stale),
        unfinished=_unfinished(subject, opened),
    )


def _unfinished(subject: Subject, source: HatsRelease | None) -> str:
    """How far runs came, if the last was stopped or a pixel failed; else empty."""
    if not subject.under_way and all(record.finished for record in subject.records.values()):
        return ""
    done = [record for record in subject.records.values() if record.finished]
    of = f" of {len(source.pixels):,}" if source else ""
    before = published_rows(Output(subject.folder), subject.name)
    return (
        f"{len(done):,}{of} HEALPix pixels with {sum(record.rows for record in done):,} rows are "
        "done; readers find "
        + (f"the {before:,} rows that were published" if before else "nothing yet")
    )


def _job(subject: Subject, release: HatsRelease | str) -> Job | str:
    """How the rows were made, or why that cannot be repeated."""
    if isinstance(release, str):
        return release
    try:
        return recorded_job(subject, release)
    except NotRecordedError as problem:
        return str(problem)


def _same_input(
    release: HatsRelease | None, job: Job | str, stale: frozenset[HealpixPixel]
) -> SameInput | None:
    """Compares two rows of the catalog, where it alone is what they were made of.

    A source never gives one object to two rows.
    """
    if release is None or isinstance(job, str) or job.sources or job.tokens:
        return None
    survey = job.survey
    columns = {column for column, _ in survey.inputs}

    def content(pixel: HealpixPixel, row: int) -> str:
        (batch,) = release.single_rows(pixel, survey, [row])
        inputs = batch.select([name for name in batch.schema.names if name in columns])
        return repr(inputs.to_pylist())  # in which NaN is like NaN

    def same(pixel: HealpixPixel, one: int, other: int) -> bool:
        try:
            return pixel not in stale and content(pixel, one) == content(pixel, other)
        except SkyvecError:
            return False

    return same
