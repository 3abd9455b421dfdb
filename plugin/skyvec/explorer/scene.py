"""What is explored: objects on two planes, their columns and pictures; shared by all who look."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyvec.explorer.colours import DENSITY, Colour, Columns
from skyvec.explorer.cutouts import Cutouts
from skyvec.explorer.kept_map import ObjectMap, object_map
from skyvec.explorer.objects import Objects
from skyvec.explorer.projection import SAMPLE, Say
from skyvec.explorer.rasters import Cloud, Window
from skyvec.explorer.sky_plane import Line, SkyPlane
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec_schemas.errors import ConfigurationError

LIKENESS, SKY = "likeness", "sky"
REACH = 24.0
"""Screen pixels within which a click finds an object."""
_CANDIDATES = 16
_HELD = 6
"""Columns, of 8 bytes for each object."""
_AROUND = 0.05
"""Share of a plane that is left free around its points."""


class Points:
    """Objects on one plane: to be drawn, to be picked."""

    def __init__(self, xy: NDArray[np.floating], *, lines: list[Line] | None = None) -> None:
        self.xy = np.asarray(xy, np.float64)
        self.lines = lines or []
        self.cloud = Cloud(xy)
        self._known = np.flatnonzero(np.isfinite(self.xy).all(axis=1))
        self._tree = cKDTree(self.xy[self._known], balanced_tree=False, compact_nodes=False)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of all points, with a margin."""
        if not len(self._known):
            return (-1.0, 1.0, -1.0, 1.0)
        low, high = self.xy[self._known].min(axis=0), self.xy[self._known].max(axis=0)
        free = np.maximum(_AROUND * (high - low), 1e-3)
        (left, bottom), (right, top) = low - free, high + free
        return (float(left), float(right), float(bottom), float(top))

    def fitted(self, width: int, height: int) -> Window:
        """All points, in a window of this many pixels and of one scale."""
        left, right, bottom, top = self.bounds
        scale = max((right - left) / width, (top - bottom) / height)
        x, y, w, h = (left + right) / 2, (bottom + top) / 2, scale * width / 2, scale * height / 2
        return Window(x=(x - w, x + w), y=(y - h, y + h), width=width, height=height)

    def pick(self, x: float, y: float, window: Window) -> int | None:
        """The object nearest to a place on the screen; None if none is within `REACH`."""
        if not len(self._known):
            return None
        count = min(_CANDIDATES, len(self._known))
        _, near = self._tree.query([x, y], k=range(1, count + 1))
        which = self._known[near]
        scale = np.array([
            window.width / (window.x[1] - window.x[0]), window.height / (window.y[1] - window.y[0]),
        ])  # fmt: skip
        away = np.hypot(*((self.xy[which] - [x, y]) * scale).T)
        best = int(np.argmin(away))
        return int(which[best]) if away[best] <= REACH else None

    def inside(self, outline: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which objects (n,) lie in a polygon (corners, 2)."""
        low, high = outline.min(axis=0), outline.max(axis=0)
        with np.errstate(invalid="ignore"):
            within = np.asarray(((self.xy >= low) & (self.xy <= high)).all(axis=1), np.bool_)
        rows = np.flatnonzero(within)
        within[rows] = Outline(outline).contains_points(self.xy[rows])
        return within


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One extension, ready to be looked at."""

    vectors: VectorCatalog
    map: ObjectMap
    planes: dict[str, Points]
    """`LIKENESS` and `SKY`."""
    columns: Columns
    cutouts: Cutouts
    colour: str
    """The first choice."""
    _read: dict[str, Colour] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        catalog: str | Path,
        extension: str | None = None,
        *,
        colour: str = DENSITY,
        cache: Path | None = None,
        sample: int = SAMPLE,
        seed: int = 0,
        say: Say,
    ) -> Scene:
        """Open an extension and its map, which is made where there is none; see `skyvec.explore`.

        Raises
        ------
        ConfigurationError
            No such extension, or one without vectors.
        MissingColumnError
            No such column to colour by.
        """
        vectors = VectorCatalog.open(catalog, extension)
        _refuse_without_vectors(vectors)
        found = object_map(vectors, cache, sample=sample, seed=seed, say=say)
        objects = found.objects
        columns = Columns(vectors, objects)
        read = {colour: columns.read(colour)} if colour != DENSITY else {}
        plane = SkyPlane.of(objects.ra, objects.dec)
        planes = {
            LIKENESS: Points(found.xy),
            SKY: Points(plane.project(objects.ra, objects.dec), lines=plane.grid()),
        }
        return cls(
            vectors=vectors, map=found, planes=planes, columns=columns,
            cutouts=Cutouts(vectors, objects), colour=colour, _read=read,
        )  # fmt: skip

    @property
    def objects(self) -> Objects:
        """All that are shown."""
        return self.map.objects

    def column(self, name: str) -> Colour | None:
        """Values of a column, of which the last few are held; None for the density."""
        if name == DENSITY:
            return None
        if name not in self._read:
            while len(self._read) >= _HELD:
                self._read.pop(next(iter(self._read)))
            self._read[name] = self.columns.read(name)
        return self._read[name]


def _refuse_without_vectors(vectors: VectorCatalog) -> None:
    if vectors.name not in vectors.release.schema.names:
        raise ConfigurationError(
            f"has no column of vectors {vectors.name!r}",
            where=f"{vectors.primary}, extension {vectors.name}",
            remedy="Name an extension that `skyvec embed` wrote with --extension; columns of this "
            "one can be its colours",
        )
