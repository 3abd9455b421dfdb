"""Objects -> the HEALPix pixels of a HATS catalog."""

from __future__ import annotations

import numpy as np
from hats.pixel_math import generate_alignment, spatial_index_to_healpix
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

ORDER = 7
"""Of the smallest pixels."""

_Places = NDArray[np.int64]


def partition(
    spatial: NDArray[np.int64], *, is_old: NDArray[np.bool_], is_held: NDArray[np.bool_]
) -> dict[HealpixPixel, _Places]:
    """Deal the rows to pixels: pixel -> places of its rows in spatial order.

    Parameters
    ----------
    spatial
        HEALPix numbers of order 29, shape (n,).
    is_old
        Rows of the first release, held or not: they alone say which pixels there are, so that a
        later release keeps them. Rows beyond these get the largest pixels that are free.
    is_held
        Rows to deal.
    """
    fine = spatial_index_to_healpix(spatial, target_order=ORDER)
    threshold = _partition_rows(int(is_old.sum()))
    alignment = generate_alignment(
        np.bincount(fine[is_old], minlength=12 * 4**ORDER),
        highest_order=ORDER,
        threshold=threshold,
        drop_empty_siblings=False,
    )
    taken = {(int(a[0]), int(a[1])) for a in alignment if a is not None}
    ancestors = {(o, p >> 2 * (order - o)) for order, p in taken for o in range(order)}
    members: dict[tuple[int, int], list[int]] = {}
    for place in np.argsort(spatial, kind="stable"):
        if is_held[place]:
            pixel = _leaf(int(fine[place]), taken, ancestors)
            members.setdefault(pixel, []).append(int(place))
    dealt: dict[HealpixPixel, _Places] = {}
    for (order, number), rows in members.items():
        places = np.array(rows)
        parts = [((order, number), places)]
        if (order, number) not in taken:
            parts = _split((order, number), places, fine, threshold)
        dealt |= {HealpixPixel(*pixel): part for pixel, part in parts}
    return dealt


def _partition_rows(rows: int) -> int:
    """Choose the most rows of a partition: several partitions even in a small survey."""
    return int(np.clip(rows // 4, 20, 2000))


def _leaf(
    fine: int, taken: set[tuple[int, int]], ancestors: set[tuple[int, int]]
) -> tuple[int, int]:
    """The pixel that holds a fine one: one that is taken, else the largest that is free."""
    for order in range(ORDER + 1):
        pixel = (order, fine >> 2 * (ORDER - order))
        if pixel in taken or pixel not in ancestors:
            return pixel
    return ORDER, fine


def _split(
    pixel: tuple[int, int], places: _Places, fine: _Places, threshold: int
) -> list[tuple[tuple[int, int], _Places]]:
    order, number = pixel
    if len(places) <= threshold or order == ORDER:
        return [(pixel, places)]
    children = fine[places] >> 2 * (ORDER - order - 1)
    return [
        part
        for child in range(4 * number, 4 * number + 4)
        if (children == child).any()
        for part in _split((order + 1, child), places[children == child], fine, threshold)
    ]
