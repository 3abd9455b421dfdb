"""Files: the leaves are those of the records, all of them and no other, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import PartitionInfo
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.extensions.checks.report import Check, Findings
from skyvec.extensions.checks.subject import AGAIN, REDO, LeafFacts, Subject
from skyvec.releases.hats.remote import first_line
from skyvec.stage.leaf_writer import file_digest

_SHARED = {"_common_metadata", "_metadata", "data_thumbnail.parquet"}
"""What hats itself keeps beside the leaves."""
_PUBLISH = "Run the same `skyvec embed` again, which writes it anew"


def check_files(subject: Subject) -> Check:
    """Leaves, partition list, records and digests."""
    findings = Findings("files")
    _check_partitions(subject, findings)
    _check_folder(subject, findings)
    recorded = sum(_check_leaf(leaf, subject, findings) for leaf in subject.leaves)
    if without := len(subject.leaves) - recorded:
        findings.note(
            f"digests of {without:,} of {len(subject.leaves):,} files were not recorded when they "
            "were written, so that their bytes cannot be compared"
        )
    _check_unfinished(subject, findings)
    return findings.check(f"{len(subject.leaves):,} leaves, {recorded:,} digested")


def _check_partitions(subject: Subject, findings: Findings) -> None:
    place = subject.folder / "partition_info.csv"
    where = subject.shown(place)
    if not place.is_file():
        if subject.published:
            findings.problem("is missing", where=where, remedy=_PUBLISH)
        return
    try:
        listed = set(PartitionInfo.read_from_csv(place).get_healpix_pixels())
    except (OSError, ValueError, KeyError) as problem:
        findings.problem(f"cannot be read ({first_line(problem)})", where=where, remedy=_PUBLISH)
        return
    expected = set(subject.pixels)
    for what, pixels in (
        ("does not list", set() if subject.under_way else expected - listed),
        ("lists, against the records,", listed - expected),
    ):
        for pixel in sorted(pixels):
            findings.problem(f"{what} {_shown(pixel)}", where=where, remedy=_PUBLISH)


def _check_folder(subject: Subject, findings: Findings) -> None:
    dataset = subject.folder / "dataset"
    expected = {leaf.path for leaf in subject.leaves}
    for path in sorted(dataset.rglob("*")):
        if path.is_dir() or path in expected:
            continue
        if path.parent == dataset and path.name in _SHARED:
            continue
        findings.problem(
            "belongs to no pixel that was embedded",
            where=subject.shown(path),
            remedy="Delete this file; readers that crawl the folder would take its rows",
        )
    if subject.published:
        _check_metadata(dataset / "_metadata", subject, findings)


def _check_metadata(place: Path, subject: Subject, findings: Findings) -> None:
    """The gathered footers, where the catalog has them."""
    if not place.is_file():
        return
    rows = subject.counted_rows
    try:
        told = int(pq.read_metadata(place).num_rows)
    except (OSError, pa.ArrowException) as problem:
        what = f"cannot be read ({first_line(problem)})"
        findings.problem(what, where=subject.shown(place), remedy=_PUBLISH)
        return
    if told != rows:
        findings.problem(
            f"counts {told} rows, the files hold {rows}",
            where=subject.shown(place),
            remedy=_PUBLISH,
        )


def _check_leaf(leaf: LeafFacts, subject: Subject, findings: Findings) -> bool:
    """Look at one leaf; whether its digest was recorded."""
    record = subject.records[leaf.pixel.order, leaf.pixel.pixel]
    where = subject.shown(leaf.path)
    if leaf.error:
        remedy = REDO if leaf.path.exists() else AGAIN
        findings.problem(leaf.error, where=where, remedy=remedy)
        return bool(record.digest)
    if leaf.columns:
        findings.problem(leaf.columns, where=where, remedy=REDO)
    if leaf.rows != record.rows:
        findings.problem(
            f"holds {leaf.rows} rows, {record.rows} were written", where=where, remedy=REDO
        )
    if record.digest and (digest := file_digest(leaf.path)) != record.digest:
        findings.problem(
            f"SHA-256 is {digest[:12]}, it was written as {record.digest[:12]}",
            where=where,
            remedy=REDO,
        )
    return bool(record.digest)


def _check_unfinished(subject: Subject, findings: Findings) -> None:
    for key, record in subject.records.items():
        if not record.finished:
            findings.note(f"{_shown(HealpixPixel(*key))} is not finished: {record.error}")


def _shown(pixel: HealpixPixel) -> str:
    return f"Norder={pixel.order} Npix={pixel.pixel}"
