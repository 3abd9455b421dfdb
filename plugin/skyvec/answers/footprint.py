"""Where a catalog has objects, as a MOC."""

from __future__ import annotations

import numpy as np
from hats.io import file_io, paths
from mocpy import MOC

from skyvec.releases.hats.catalog import HatsRelease

FILLED = 4
"""Objects in a cell on average: with fewer a footprint falls apart into the objects themselves."""


def footprint(release: HatsRelease) -> MOC:
    """Cells that hold objects, by the catalog's count map; its partitions where it has none."""
    try:
        counts = file_io.read_fits_image(paths.get_point_map_file_pointer(release.root))
    except (OSError, ValueError):
        pixels = release.pixels
        return MOC.from_healpix_cells(
            np.array([p.pixel for p in pixels], np.uint64),
            np.array([p.order for p in pixels], np.uint8),
            max_depth=max(p.order for p in pixels),
        )
    order = int(np.log2(len(counts) / 12)) // 2
    while order and counts.sum() < FILLED * np.count_nonzero(counts):
        counts, order = counts.reshape(-1, 4).sum(axis=1), order - 1
    cells = np.flatnonzero(counts).astype(np.uint64)
    return MOC.from_healpix_cells(cells, np.full(len(cells), order, np.uint8), max_depth=order)
