"""Reciprocal nearest neighbours on the sphere, whatever the order of those compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ARCSEC = math.pi / 180 / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Spots:
    """The k different places of n rows or objects, so that a thousand at one place are one."""

    at: NDArray[np.float64]
    """Unit vectors (k, 3), in their own order."""
    ids: NDArray[np.str_]
    """Smallest id at each spot."""
    first: NDArray[np.int64]
    """Who has it."""
    members: NDArray[np.int64]
    """How many are there."""
    spot_of: NDArray[np.int64]
    """Spot of each of the n, -1 without a valid position."""

    @classmethod
    def of(
        cls,
        at: NDArray[np.float64],
        ids: NDArray[np.str_],
        *,
        rank: NDArray[np.int64] | None = None,
    ) -> Spots:
        """Find the spots of unit vectors (n, 3); equal ids at one spot are taken by rank."""
        rank = np.arange(len(at)) if rank is None else rank
        valid = np.flatnonzero(np.isfinite(at).all(axis=1))
        order = valid[np.argsort(at[valid, 2])]
        if (at[order[1:], 2] == at[order[:-1], 2]).any():
            order = valid[np.lexsort(at[valid].T)]
        new = np.append(True, (at[order[1:]] != at[order[:-1]]).any(axis=1))[: len(order)]
        spot = np.cumsum(new) - 1
        members = np.bincount(spot)
        crowded = np.flatnonzero(members[spot] > 1)
        if crowded.size:
            who = order[crowded]
            order[crowded] = who[np.lexsort((rank[who], ids[who], spot[crowded]))]
        first = order[np.flatnonzero(new)]
        spot_of = np.full(len(at), -1, np.int64)
        spot_of[order] = spot
        return cls(at=at[first], ids=ids[first], first=first, members=members, spot_of=spot_of)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """What n rows found among the objects."""

    index: NDArray[np.int64]
    """Object that is the row's nearest and has the row as its own nearest, -1 for none."""
    within: NDArray[np.int64]
    """How many objects lie within the radius."""


def reciprocal_nearest(rows: Spots, objects: Spots, *, radius_arcsec: float) -> Neighbours:
    """Pair rows and objects that are each the nearest of the other within the radius.

    At one distance the smallest id is taken, then the first in the order of the spots.
    """
    chord = 2 * math.sin(radius_arcsec * _ARCSEC / 2)
    row, spot, distance = _pairs(rows.at, objects.at, chord)
    of_row = _nearest(row, spot, distance, n=len(rows.at), ids=objects.ids)
    of_spot = _nearest(spot, row, distance, n=len(objects.at), ids=rows.ids)
    mutual = np.flatnonzero(of_row >= 0)
    mutual = mutual[of_spot[of_row[mutual]] == mutual]
    index = np.full(len(rows.spot_of), -1, np.int64)
    index[rows.first[mutual]] = objects.first[of_row[mutual]]
    within = np.bincount(row, weights=objects.members[spot], minlength=len(rows.at))
    at = rows.spot_of
    return Neighbours(
        index=index, within=np.where(at >= 0, np.append(within, 0)[at], 0).astype(np.int64)
    )


def separations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles in arcsec between unit vectors (n, 3), to 1e-10 arcsec however small they are."""
    half_chord = np.sqrt(_squared_chord(a, b)) / 2
    return np.asarray(2 * np.arcsin(np.minimum(half_chord, 1)) / _ARCSEC)


def _pairs(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], chord: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """All pairs of places at most a chord apart, and the square of their chords."""
    if not len(ours) or not len(theirs):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    from scipy.spatial import cKDTree  # 0.3 s, for joins by position alone

    a, b = (cKDTree(at, balanced_tree=False, compact_nodes=False) for at in (ours, theirs))
    found = a.sparse_distance_matrix(b, chord * (1 + 1e-9), output_type="ndarray")
    i, j = found["i"], found["j"]
    square = _squared_chord(ours[i], theirs[j])  # the tree's own rounding depends on its shape
    near = square <= chord**2
    return i[near], j[near], square[near]


def _nearest(
    of: NDArray[np.int64],
    to: NDArray[np.int64],
    distance: NDArray[np.float64],
    *,
    n: int,
    ids: NDArray[np.str_],
) -> NDArray[np.int64]:
    """For each of n values of ``of`` the nearest ``to``, -1 for none.

    Of several at the same distance, the smallest id, then the smallest ``to``.
    """
    least = np.full(n, np.inf)
    np.minimum.at(least, of, distance)
    best = np.flatnonzero(distance == least[of])
    if (np.bincount(of[best], minlength=1) > 1).any():
        best = best[np.lexsort((to[best], ids[to[best]], of[best]))]
        best = best[np.flatnonzero(np.diff(of[best], prepend=-1))]
    nearest = np.full(n, -1, np.int64)
    nearest[of[best]] = to[best]
    return nearest


def _squared_chord(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    d = a - b
    return np.asarray(d[:, 0] ** 2 + d[:, 1] ** 2 + d[:, 2] ** 2)
