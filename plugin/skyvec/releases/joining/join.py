"""Which object of a source belongs to which row of the catalog: by id, or by position and epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.ids import MISSING
from skyvec.releases.joining.catalog_keys import CatalogKeys
from skyvec.releases.joining.nearest import Spots, reciprocal_nearest, separations
from skyvec.releases.sky import near_pixel, unit_vectors, valid_positions
from skyvec.releases.source import SourceObjects
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import Survey

_AGREEMENT = 0.9
"""Share of a sample for which ids and positions must tell the same, to join by id."""
_SLACK = 0.1
"""Arcsec by which positions rounded to float32 may lie outside of the pixel of their row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinRule:
    """How rows find their objects."""

    by: Literal["auto", "id", "position"] = "auto"
    """``auto`` is settled once for a whole release, by `decide_rule`."""
    radius_arcsec: float = 1.0
    """Greatest separation of a match by position; beyond it a match by id is counted as far."""
    epoch: float | None = None
    """Julian year of the catalog's positions; None compares positions as they are."""
    max_pm: float = 10_400.0
    """Proper motion in mas/yr up to which matches are surely found; by default Barnard's star."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 < self.radius_arcsec <= 3600 or not 0 <= self.max_pm < math.inf:
            raise ConfigurationError(
                f"radius of {self.radius_arcsec} arcsec, motions up to {self.max_pm} mas/yr",
                where="the join",
                remedy="Give a radius above 0 and up to 3600 arcsec, and a finite motion",
            )
        if self.epoch is not None and not 1000 < self.epoch < 3000:
            raise ConfigurationError(
                f"epoch {self.epoch} is no Julian year",
                where="the join",
                remedy="Give the epoch of the catalog's positions as a year, e.g. 2015.5",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """The object of each row of one pixel, in the order of the rows."""

    index: NDArray[np.int64]
    """Place in the source's objects, -1 for none. By id, rows of one id share their object."""
    separation_arcsec: NDArray[np.float64]
    """Between row and object at the same epoch; NaN without match or without a valid position."""
    flags: NDArray[np.int32]
    """Bits of `Flag`: POSITION_INVALID, MATCH_AMBIGUOUS, SOURCE_DUPLICATE."""
    counts: Mapping[str, int]
    """Rows of each outcome, see `match`; sums over pixels are counts of the catalog."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """How a release is joined, and on which evidence."""

    by: Literal["id", "position"]
    reason: str
    """One clause, for people."""


def margin_needed(rule: JoinRule, survey: Survey, *, catalog_moves: bool = False) -> float:
    """Arcsec around a pixel in which rows and objects have to be known for `match` to be right.

    An object within the radius of a row is the row's if no other row, up to a radius further away,
    is nearer to it: twice the radius. Objects are looked up where they were at their epoch, so
    the way of the fastest up to the next epoch is added; if the rows move, twice.

    Parameters
    ----------
    survey
        Of the source.
    catalog_moves
        Whether the catalog has proper motions; they count where the source has none.
    """
    moving = 2 if catalog_moves else 1 if survey.pm_ra_column else 0
    way = abs(_years(rule, survey)) * rule.max_pm / 1000
    return 2 * rule.radius_arcsec + moving * way + _SLACK


def decide_rule(
    sample: Iterable[tuple[CatalogKeys, SourceObjects]], rule: JoinRule, *, survey: Survey
) -> Decision:
    """Settle ``auto`` on a sample of pixels, for the whole release.

    By id, if of the rows that find an object by position at least 90% have the id of that object,
    and of the rows whose id is in the source at least 90% lie within the radius of it. So neither
    a few equal ids by accident, nor running numbers on both sides, join by id.
    """
    if rule.by != "auto":
        return Decision(by=rule.by, reason="as asked for")
    near = same = shared = far = 0
    for keys, objects in sample:
        by_position = match(keys, objects, replace(rule, by="position"), survey=survey)
        rows = np.flatnonzero(by_position.index >= 0)
        near += len(rows)
        ids = keys.ids[rows]
        same += int(((ids == objects.ids[by_position.index[rows]]) & (ids != MISSING)).sum())
        counts = match(keys, objects, replace(rule, by="id"), survey=survey).counts
        shared += counts["matched"]
        far += counts["far"]
    agree = same >= max(1, _AGREEMENT * near) and far <= (1 - _AGREEMENT) * shared
    return Decision(
        by="id" if agree else "position",
        reason=f"{same} of {near} matches by position have equal ids, "
        f"{far} of {shared} matches by id are farther apart than {rule.radius_arcsec:g} arcsec",
    )


def match(keys: CatalogKeys, objects: SourceObjects, rule: JoinRule, *, survey: Survey) -> Match:
    """Find the object of each of the pixel's own rows.

    By position, row and object are each the nearest of the other within the radius; of several at
    the same distance the one with the smallest id text counts. Neither order nor the division of
    the sky into pixels has an influence, if keys and objects reach as far as `margin_needed`. By
    id, texts are equal; an id that the source has twice matches nothing.

    With ``rule.epoch`` and ``survey.epoch``, objects are moved by their proper motions to the
    catalog's epoch; if the source gives none, rows by theirs to the source's.

    Parameters
    ----------
    survey
        Of the source.

    Returns
    -------
    Match
        Its ``counts``: ``rows``, ``matched``, ``unmatched``, ``ambiguous`` (several objects in
        the radius), ``not_reciprocal`` (nothing matched, since the object is nearer to another
        row), ``border`` (matched to an object outside of the pixel), ``moved`` (matched with a
        proper motion), ``far`` (matched by id, farther apart than the radius), ``shared`` (rows
        that share their object), ``duplicates`` (ids that the source has more than once),
        ``missing_ids``, ``invalid_positions``, ``outside_pixel`` (rows whose position is not in
        their own pixel), ``too_fast`` (objects or rows of the pixel that move more than
        ``rule.max_pm``).

    Raises
    ------
    ValueError
        If the rule is still ``auto``.
    """
    if rule.by == "auto":
        raise ValueError("a join by 'auto' is settled by decide_rule first, for all pixels alike")
    rows, placed = _at_one_epoch(keys, objects, rule, survey)
    own = slice(keys.rows)
    nowhere = np.isnan(rows.at[own, 0])
    flags = np.zeros(keys.rows, np.int32)
    counts = dict.fromkeys(("ambiguous", "not_reciprocal", "duplicates", "far"), 0)
    if rule.by == "id":
        index, twice = _by_id(keys.ids[own], objects.ids)
        flags[twice] |= Flag.SOURCE_DUPLICATE
        counts["duplicates"] = int(twice.sum())
    else:
        found = reciprocal_nearest(
            Spots.of(rows.at, keys.ids),
            Spots.of(
                placed.at, objects.ids, rank=np.lexsort((objects.row, objects.file)).argsort()
            ),
            radius_arcsec=rule.radius_arcsec,
        )
        index, within = found.index[own], found.within[own]
        flags[within > 1] |= Flag.MATCH_AMBIGUOUS
        counts["ambiguous"] = int((within > 1).sum())
        counts["not_reciprocal"] = int(((within > 0) & (index < 0)).sum())
    matched = np.flatnonzero(index >= 0)
    chosen = index[matched]
    flags[nowhere & (index < 0)] |= Flag.POSITION_INVALID
    separation = np.full(keys.rows, np.nan)
    separation[matched] = separations(rows.at[matched], placed.at[chosen])
    if rule.by == "id":
        counts["far"] = int((separation[matched] > rule.radius_arcsec).sum())
    speeding = np.flatnonzero(placed.too_fast)
    outside_pixel, border, elsewhere = _outside(
        keys.pixel,
        (keys.ra[own], keys.dec[own]),
        (objects.ra[chosen], objects.dec[chosen]),
        (objects.ra[speeding], objects.dec[speeding]),
    )
    return Match(
        index=index,
        separation_arcsec=separation,
        flags=flags,
        counts=counts
        | {
            "rows": keys.rows,
            "matched": len(matched),
            "unmatched": keys.rows - len(matched),
            "border": border,
            "moved": int((rows.moves[matched] | placed.moves[chosen]).sum()),
            "shared": len(chosen) - int(np.count_nonzero(np.bincount(chosen))),
            "missing_ids": int((keys.ids[own] == MISSING).sum()),
            "invalid_positions": int(nowhere.sum()),
            "outside_pixel": outside_pixel,
            "too_fast": int(rows.too_fast[own].sum()) + speeding.size - elsewhere,
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """Where n rows or objects are at the epoch of the join."""

    at: NDArray[np.float64]
    """Unit vectors (n, 3), NaN where there is no valid position."""
    moves: NDArray[np.bool_]
    too_fast: NDArray[np.bool_]


def _years(rule: JoinRule, survey: Survey) -> float:
    """From the source's epoch to the catalog's; 0 where either is unknown."""
    return 0.0 if rule.epoch is None or survey.epoch is None else rule.epoch - survey.epoch


def _at_one_epoch(
    keys: CatalogKeys, objects: SourceObjects, rule: JoinRule, survey: Survey
) -> tuple[_Places, _Places]:
    years = _years(rule, survey)
    objects_move = objects.pm_ra is not None and objects.pm_dec is not None
    return (
        _places(keys, 0.0 if objects_move else -years, rule.max_pm),
        _places(objects, years, rule.max_pm),
    )


def _places(who: CatalogKeys | SourceObjects, years: float, max_pm: float) -> _Places:
    at = unit_vectors(who.ra, who.dec, pm_ra=who.pm_ra, pm_dec=who.pm_dec, years=years)
    if who.pm_ra is None or who.pm_dec is None or not years:
        still = np.zeros(len(at), np.bool_)
        return _Places(at=at, moves=still, too_fast=still)
    pm = np.hypot(who.pm_ra, who.pm_dec)
    return _Places(at=at, moves=np.isfinite(pm), too_fast=np.isfinite(pm) & (pm > max_pm))


def _by_id(
    rows: NDArray[np.str_], objects: NDArray[np.str_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Object of each row by equal text, -1 for none, and where the object's id is not the only."""
    known = pa.array(objects, pa.string()).dictionary_encode()
    codes = known.indices.to_numpy().astype(np.int64)
    times = np.append(np.bincount(codes, minlength=len(known.dictionary)), 0)
    place = np.full(len(times), -1, np.int64)
    place[codes] = np.arange(len(codes))
    place[-1] = -1
    code = pc.index_in(pa.array(rows, pa.string()), value_set=known.dictionary)
    found = np.where(rows == MISSING, -1, code.fill_null(-1).to_numpy().astype(np.int64))
    twice = times[found] > 1
    return np.where(twice, -1, place[found]), twice


def _outside(
    pixel: HealpixPixel, *positions: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> list[int]:
    """How many of each set of positions (ra, dec) are valid and not in the pixel."""
    ra, dec = (np.concatenate(angles) for angles in zip(*positions, strict=True))
    outside = valid_positions(ra, dec)
    outside[outside] = ~near_pixel(ra[outside], dec[outside], pixel, margin_arcsec=0)
    ends = np.cumsum([len(ra) for ra, _ in positions])
    return [int(part.sum()) for part in np.split(outside, ends[:-1])]
