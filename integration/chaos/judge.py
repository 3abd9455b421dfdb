"""Whether a disturbed run ended as the undisturbed one did: file by file, row by row."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import lsdb
import pyarrow as pa
import pyarrow.parquet as pq
from hats.io.validation import is_valid_catalog, is_valid_collection
from world import NAME

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.output import MANIFEST, STAGING, Output


@dataclass(kw_only=True)
class Verdict:
    """What was compared, and everything that is wrong."""

    leaves: int = 0
    """Of the undisturbed run; each was compared byte by byte."""
    rows: int = 0
    """Of the input."""
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    """Leaves with other bytes, missing or too many."""
    problems: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.problems or self.lost or self.doubled or self.differing)


def judge(calm: Path, storm: Path) -> Verdict:
    """Compare the extension in the collection of a disturbed run with the undisturbed one."""
    verdict = Verdict()
    _compare_files(calm / NAME, storm / NAME, verdict)
    _count_rows(storm, verdict)
    _read_records(storm / NAME, verdict)
    _load(calm, storm, verdict)
    return verdict


def _compare_files(calm: Path, storm: Path, verdict: Verdict) -> None:
    before, after = _leaves(calm), _leaves(storm)
    verdict.leaves = len(before)
    wrong = sorted(name for name in before | after if before.get(name) != after.get(name))
    verdict.differing = len(wrong)
    verdict.problems += [f"{name} has other bytes, is missing or too many" for name in wrong[:5]]
    left = [each for each in (storm / STAGING).rglob("*") if each.is_file()]
    verdict.problems += [f"left in {STAGING}: {each.name}" for each in left]
    beside = {each.name for each in storm.parent.iterdir()} - {
        each.name for each in calm.parent.iterdir()
    }
    verdict.problems += [f"left in the collection: {name}" for name in sorted(beside)]
    others = _names(storm) - _names(calm)
    verdict.problems += [f"left behind: {name}" for name in sorted(others)]
    verdict.problems += [f"missing: {name}" for name in sorted(_names(calm) - _names(storm))]


def _leaves(folder: Path) -> dict[str, str]:
    return {
        str(leaf.relative_to(folder)): hashlib.sha256(leaf.read_bytes()).hexdigest()
        for leaf in (folder / "dataset").rglob("Npix=*.parquet")
    }


def _names(folder: Path) -> set[str]:
    names = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    return {name for name in names if not name.startswith(str(STAGING))}


def _ids(folder: Path) -> Counter[int]:
    release = HatsRelease.open(folder)
    tables = [
        pq.read_table(release.leaf(pixel), columns=["object_id"], partitioning=None)
        for pixel in release.pixels
    ]
    return Counter(pa.concat_tables(tables).column("object_id").to_pylist())


def _count_rows(collection: Path, verdict: Verdict) -> None:
    expected, found = _ids(collection), _ids(collection / NAME)
    verdict.rows = expected.total()
    verdict.lost = (expected - found).total()
    verdict.doubled = (found - expected).total()


def _read_records(folder: Path, verdict: Verdict) -> None:
    output = Output(folder)
    records = output.records()
    bytes_of = _leaves(folder)
    for record in records.values():
        if record.outcome != "done" or record.digest not in bytes_of.values():
            verdict.problems.append(f"record of pixel {record.key} is {record.outcome}, or is not "
                                    "of its leaf")  # fmt: skip
    if len(records) != len(bytes_of):
        verdict.problems.append(f"{len(records)} records of {len(bytes_of)} leaves")
    manifest = json.loads((folder / MANIFEST).read_text())
    told = {key: manifest[key] for key in ("complete", "published", "rows", "exit_code")}
    if told != {"complete": True, "published": True, "rows": verdict.rows, "exit_code": 0}:
        verdict.problems.append(f"the manifest says {told}")


def _load(calm: Path, storm: Path, verdict: Verdict) -> None:
    if not is_valid_catalog(storm / NAME, strict=True):
        verdict.problems.append("no valid HATS catalog")
    if not is_valid_collection(storm, strict=True):
        verdict.problems.append("no valid HATS collection")
    frames = [
        lsdb.open_catalog(place).load_extension(NAME).compute(progress_bar=False)
        for place in (calm, storm)
    ]
    if len(frames[1]) != verdict.rows or not frames[0].equals(frames[1]):
        verdict.problems.append("LSDB reads other rows than from the undisturbed run")
