"""Checks on columns, ids, scalars and coefficients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.releases.ids import MISSING, canonical_ids
from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.subject import Subject, floats, share
from skyvec_schemas.survey_columns import ScalarColumn

Floats = NDArray[np.float64]

SENTINELS = (-99.0, -999.0, -9999.0, -99999.0)
"""Numbers that surveys write for "not measured" in any unit."""
MAGNITUDE_SENTINELS = (99.0, 99.99, 999.0, 9999.0)
_FAR_OFF = 1e20
_MAX_EXACT = 2**53


def column_lengths(subject: Subject) -> Iterator[Finding]:
    """Columns of one file that differ in length."""
    for file in subject.files:
        odd = {name: n for name, n in file.lengths.items() if n != file.rows}
        if odd:
            name, rows = next(iter(odd.items()))
            yield subject.finding(
                "error", "columns", f"{name!r} has {rows:,} rows where the id has {file.rows:,}",
                where=file, remedy="Build or copy this file again", evidence=odd,
            )  # fmt: skip


def missing_columns(subject: Subject) -> Iterator[Finding]:
    """Columns that the survey declares and no sampled file has."""
    if not subject.files or not any(file.keys for file in subject.files):
        return
    declared = {"id": subject.survey.id_column, "ra": subject.survey.ra_column,
                "dec": subject.survey.dec_column}  # fmt: skip
    for logical, name in declared.items():
        lacking = [file for file in subject.files if logical not in file.keys]
        if lacking:
            yield subject.finding(
                "error", "columns", f"no column {name!r}", where=lacking[0],
                remedy="Map another column to it in a sources file",
                evidence={"files": len(lacking)},
            )  # fmt: skip
    for logical, names in missing_inputs(subject).items():
        yield subject.finding(
            "warning", "columns", f"no column {', '.join(map(repr, names))}",
            where=subject.files[0], column=logical,
            remedy=f"Map it in a sources file, or leave it out: without = {names}",
        )  # fmt: skip


def missing_inputs(subject: Subject) -> dict[str, list[str]]:
    """Kind of input -> declared columns that no sampled file has."""
    survey = subject.survey
    arrays = {
        "images": ("image.flux", survey.image),
        "spectra": ("spectrum.flux", survey.spectrum),
        "coefficients": ("coefficients", survey.coefficients),
    }
    lacking = {
        kind: [column.name]
        for kind, (logical, column) in arrays.items()
        if column and not any(logical in file.arrays for file in subject.files)
    }
    scalars = [s.name for s in survey.scalars if not any(s.name in f.keys for f in subject.files)]
    return lacking | ({"scalars": scalars} if scalars else {})


def ids(subject: Subject) -> Iterator[Finding]:
    """Ids that are floats, missing, doubled or dressed up."""
    for file in subject.files:
        values = file.keys.get("id")
        if values is None or not len(values):
            continue
        column = subject.survey.id_column
        if values.dtype.kind == "f":
            yield subject.finding(
                "error", "ids", f"ids are {values.dtype}, which cannot hold 64-bit ids exactly",
                where=file, column=column, remedy="Build this release again with integer ids",
                evidence={"beyond_2^53": int((np.abs(values) > _MAX_EXACT).sum())},
            )  # fmt: skip
            return
        texts = canonical_ids(values)
        missing = int((texts == MISSING).sum())
        doubled = Counter(texts[texts != MISSING].tolist())
        repeated = {text: n for text, n in doubled.items() if n > 1}
        if missing:
            yield subject.finding(
                "warning", "ids", f"{missing:,} ids are empty", where=file, column=column,
                remedy="These objects can be joined by position only",
                evidence={"missing": missing, "of": len(texts)},
            )  # fmt: skip
        if repeated:
            example = next(iter(repeated))
            all_twice = set(repeated.values()) == {2} and len(repeated) * 2 == len(texts)
            own = subject.name == "catalog"
            yield subject.finding(
                "error" if all_twice or own else "warning", "ids",
                f"{len(repeated):,} ids occur more than once, e.g. {example}"
                + ("; was the build run twice?" if all_twice else ""),
                where=file, column=column,
                remedy="Remove the copies, or name a unique column with --id-column"
                if own
                else "Nothing is taken from objects whose id is not unique: remove the copies",
                evidence={"repeated": len(repeated), "of": len(doubled)},
            )  # fmt: skip
        if dressed := _dress(values):
            yield subject.finding(
                "note", "ids", f"ids are {dressed}; read without it", where=file, column=column
            )


def _dress(values: NDArray[Any]) -> str:
    if values.dtype.kind not in "SUOT":
        return ""
    some = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values[:100]]
    if any(text.startswith(("b'", 'b"')) for text in some):
        return "the text b'...' of bytes"
    return "padded with spaces" if any(text != text.strip() for text in some) else ""


def scalar_values(subject: Subject) -> Iterator[Finding]:
    """Sentinels, values that cannot be, and columns without any value."""
    missing: dict[str, int] = {}
    for scalar in subject.survey.scalars:
        columns = [floats(f.keys[scalar.name]) for f in subject.files if scalar.name in f.keys]
        if not columns:
            continue
        values = np.concatenate(columns)
        where = next(file for file in subject.files if scalar.name in file.keys)
        found = _sentinels(scalar, values)
        if found:
            told = ", ".join(f"{value:g} ({n:,})" for value, n in found.items())
            yield subject.finding(
                "warning", "sentinels", f"holds {told} of {len(values):,} values, which would be "
                "taken as measured", where=where, column=scalar.name,
                remedy="Declare them as missing, or write NaN",
                evidence={str(value): n for value, n in found.items()},
            )  # fmt: skip
        real = values[np.isfinite(values) & ~np.isin(values, [*found, *scalar.missing])]
        absent = len(values) - len(real) - sum(found.values())
        if len(values) and not len(real):
            yield subject.finding(
                "warning", "missing values", f"no value in {len(values):,} rows", where=where,
                column=scalar.name, remedy="Leave the column out if it is empty everywhere",
                evidence={"rows": len(values)},
            )  # fmt: skip
        elif absent:
            missing[scalar.name] = absent
        if odd := _impossible(scalar, real):
            yield subject.finding(
                "warning", "units", odd[0], where=where, column=scalar.name,
                remedy=f"The survey says {scalar.unit}: check the unit", evidence=odd[1],
            )  # fmt: skip
    if missing:
        rows = sum(max(map(len, file.keys.values()), default=0) for file in subject.files)
        told = ", ".join(f"{name} ({count:,})" for name, count in missing.items())
        yield subject.finding(
            "note", "missing values",
            f"NaN, infinite or null, read as not measured, in {rows:,} rows: {told}",
            where=subject.files[0], evidence=missing,
        )  # fmt: skip


def _sentinels(scalar: ScalarColumn, values: Floats) -> dict[float, int]:
    known = SENTINELS + (MAGNITUDE_SENTINELS if scalar.unit == "mag" else ())
    # float32 has 99.99 as 99.98999786
    counts = {v: int(np.isclose(values, v, rtol=1e-6, atol=0).sum()) for v in known}
    huge = np.isfinite(values) & (np.abs(values) >= _FAR_OFF)
    if huge.any():
        counts[float(values[huge][0])] = int(huge.sum())
    return {v: n for v, n in counts.items() if n and v not in scalar.missing}


def _impossible(
    scalar: ScalarColumn, values: Floats
) -> tuple[str, Mapping[str, float | int]] | None:
    """What is wrong with measured values of a unit, and the numbers."""
    if not len(values):
        return None
    below, median = int((values < 0).sum()), float(np.median(values))
    evidence = {"median": round(median, 4), "below_0": below, "of": len(values)}
    name = scalar.name.lower()
    if scalar.unit in {"arcsec", "electron/s"} and below:
        return f"{below:,} of {len(values):,} are negative", evidence
    if "cmodel_mag" in name and not 5 < median < 35:
        return f"the median is {median:g}, no magnitude of a galaxy or star", evidence
    if (name.startswith("a_") or name == "ebv") and (below or median > 10):
        return f"extinction from {values.min():g} to {values.max():g}", evidence
    if "shape_e" in name and (odd := int((np.abs(values) > 1).sum())):
        return f"{odd:,} ellipticities are beyond 1", evidence | {"beyond_1": odd}
    return None


def coefficients(subject: Subject) -> Iterator[Finding]:
    """Coefficient lists of the wrong width, or holes of zeros."""
    column = subject.survey.coefficients
    rows = list(subject.rows("coefficients"))
    if not column or not rows:
        return
    from skyvec_core.modalities import MODALITIES

    width = sum(MODALITIES[key].num_tokens for key in column.token_keys)
    odd = [(row, values) for row, values in rows if values.shape != (width,)]
    if odd:
        yield subject.finding(
            "error" if len(odd) == len(rows) else "warning", "coefficients",
            f"{len(odd):,} of {len(rows):,} rows have {odd[0][1].size} coefficients, not {width}",
            where=odd[0][0], column=column.name, remedy=f"Store {width} coefficients in one list",
            evidence={"rows": len(odd), "width": odd[0][1].size},
        )  # fmt: skip
    empty = [row for row, values in rows if not np.any(np.nan_to_num(floats(values)))]
    if empty:
        yield subject.finding(
            "warning", "coefficients", f"{len(empty):,} of {len(rows):,} rows are all zero or NaN, "
            "holes of a merge", where=empty[0], column=column.name, remedy="Read as missing",
            evidence={"empty": share(len(empty), len(rows))},
        )  # fmt: skip


CATALOG_CHECKS = (
    column_lengths,
    missing_columns,
    ids,
    scalar_values,
    coefficients,
)
