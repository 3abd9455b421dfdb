"""Checks on the files of a release as a whole: unreadable, absent, unlisted, miscounted."""

from __future__ import annotations

from collections.abc import Iterator

from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.raw_sample import RawRelease
from skyvec.releases.lint.subject import short


def release_findings(name: str, release: RawRelease) -> Iterator[Finding]:
    """What the number of files and their footers show."""
    for problem in release.problems:
        yield Finding(
            severity="error", topic="files", source=name, what=problem.what,
            where=problem.where, remedy=problem.remedy,
        )  # fmt: skip
    if release.absent_files:
        yield Finding(
            severity="error", topic="files", source=name,
            what="the release lists files that are not there",
            where=short(release.absent_files[0]),
            remedy="Copy the release again, or rewrite its partition list",
            evidence={"absent": len(release.absent_files)},
        )  # fmt: skip
    if release.unlisted_files:
        yield Finding(
            severity="warning", topic="files", source=name,
            what="files that the release does not list, so that their rows stay invisible",
            where=short(release.unlisted_files[0]),
            remedy="Rewrite the metadata of the catalog after adding files",
            evidence={"unlisted": len(release.unlisted_files)},
        )  # fmt: skip
    stated, counted = release.stated_rows, release.counted_rows
    if stated is not None and counted is not None and stated != counted:
        yield Finding(
            severity="error", topic="row count", source=name,
            what=f"the properties say {stated:,} rows, the files hold {counted:,}",
            where="hats_nrows",
            remedy="Files were added or cut after the import: rewrite the metadata",
            evidence={"hats_nrows": stated, "footers": counted},
        )  # fmt: skip
    if release.file_count and not release.rows and release.files and release.files[0].keys:
        yield Finding(
            severity="warning", topic="row count", source=name, what="there are no rows",
            where=short(release.files[0].path), remedy="Is this the right folder?",
        )  # fmt: skip
