"""The explorer as one file: some objects, some pictures, and all that is needed to look at them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.models import ColumnDataSource, CustomJS, DataRange1d
from bokeh.plotting import figure
from bokeh.resources import INLINE
from matplotlib.colors import LinearSegmentedColormap, to_hex
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from skyvec.explorer import facts
from skyvec.explorer.colours import DENSITY, OTHER, Colour, Numbers
from skyvec.explorer.figures import add_marks, plane_figure
from skyvec.explorer.neighbours import K
from skyvec.explorer.objects import unit_vectors
from skyvec.explorer.projection import Say
from skyvec.explorer.rasters import RAMP
from skyvec.explorer.scene import REACH, Scene
from skyvec.explorer.serving import page_template, script

OBJECTS = 10_000
"""On a page that has no server; more make it heavy for a browser."""
PICTURES = 1_000
"""Of some 4 kB each."""
COLUMNS = 16
"""That can be chosen there, unless they are named."""
_SIDE, _QUALITY = 96, 80
"""Pixels along a side, and of JPEG's scale."""
_STEPS = 64
_PLAIN = "#0072b2"


def export_page(
    scene: Scene,
    path: Path,
    *,
    objects: int = OBJECTS,
    pictures: int = PICTURES,
    colours: Sequence[str] = (),
    seed: int = 0,
    say: Say,
) -> Path:
    """Write a page that loads nothing from elsewhere.

    Parameters
    ----------
    objects
        At most so many, a random sample of a larger extension; the page says so.
    pictures
        Of as many of them, at random.
    colours
        Columns to choose from; by default the first choice of the scene and the first others.

    Raises
    ------
    MissingColumnError
        No such column.
    """
    count = len(scene.objects)
    rng = np.random.default_rng(seed)
    which = np.sort(rng.choice(count, min(objects, count), replace=False))
    seen = np.sort(rng.choice(len(which), min(pictures, len(which)), replace=False))
    names = list(colours) or _first(scene)
    chosen = [(name, scene.column(name)) for name in names]
    say(f"{len(which):,} objects, {0 if scene.cutouts.absent else len(seen):,} pictures")
    plots = _planes(scene, which, chosen[0][1])
    told = json.dumps(_told(scene, which, seen, chosen))
    html = file_html(
        plots,
        resources=INLINE,
        title=f"{scene.vectors.name}: skyvec explorer",
        template=page_template(),
        template_variables={
            "standalone": True, "script": script(), "data": told.replace("<", "\\u003c"),
        },
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(html, encoding="utf-8")
    aside.replace(path)
    return path


def _planes(scene: Scene, which: NDArray[np.int64], colour: Colour | None) -> list[figure]:
    """One source for both planes, so that what is selected on one is so on the other."""
    shades, codes = _shades(colour, which)
    data: dict[str, Any] = {"colour": [shades[code] for code in codes]}
    for name, plane in scene.planes.items():
        data |= {f"{name}_x": plane.xy[which, 0], f"{name}_y": plane.xy[which, 1]}
    points = ColumnDataSource(data, name="points")
    plots = []
    for name, plane in scene.planes.items():
        ranges = {"x_range": DataRange1d(), "y_range": DataRange1d()}
        plot = plane_figure(name, plane, match_aspect=True, **ranges)
        dots = plot.scatter(
            f"{name}_x", f"{name}_y", source=points, size=4, color="colour", alpha=0.7,
            nonselection_color="#c9c5bb", nonselection_alpha=0.4,
        )  # fmt: skip
        for own in ranges.values():
            own.renderers = [dots]
        add_marks(plot)
        code = f"window.skyvecExplorer.tapped({name!r}, cb_obj.x, cb_obj.y)"
        plot.js_on_event("tap", CustomJS(code=code))
        plots.append(plot)
    return plots


def _told(
    scene: Scene,
    which: NDArray[np.int64],
    seen: NDArray[np.int64],
    chosen: Sequence[tuple[str, Colour | None]],
) -> facts.Facts:
    """What the page knows of each object, by its row on the page."""
    count, objects = len(scene.objects), scene.objects.take(which)
    page = facts.page_facts(scene)
    if len(which) < count:
        page["objects"] = f"{len(which):,} of {count:,}"
        page["notes"].append(
            f"This file holds a random sample of {len(which):,} of {count:,} objects; neighbours are "
            "those of the sample. `skyvec explore` serves them all."
        )
    page |= {"colours": [name for name, _ in chosen], "colour": chosen[0][0]}
    pictures = {}
    if not scene.cutouts.absent:
        for row, picture in zip(seen.tolist(), scene.cutouts.of_all(which[seen]), strict=True):
            if isinstance(picture, bytes):
                pictures[row] = _jpeg(picture)
    columns, shades = {}, {}
    for name, colour in chosen:
        shades[name], codes = _shades(colour, which)
        columns[name] = {
            "codes": codes.tolist(),
            "texts": [colour.text(int(w)) for w in which] if colour else [],
            "legend": facts.legend_facts(colour) if colour else _PLAIN_LEGEND,
        }
    pixels = [scene.cutouts.pixel_of(int(w)) for w in which]
    return {
        "page": page, "ids": [objects.name(row) for row in range(len(which))],
        "ra": [facts.degrees(a) for a in objects.ra],
        "dec": [facts.degrees(a, sign="+") for a in objects.dec],
        "pixel": [f"order {p.order}, pixel {p.pixel}" for p in pixels],
        "pictures": pictures, "columns": columns, "shades": shades, "reach": REACH,
        "why": scene.cutouts.absent or "not in this file",
        "near": _near(scene, which),
        "how": f"by cosine, exact among the {len(which):,} objects of this page",
    }  # fmt: skip


def _near(scene: Scene, which: NDArray[np.int64]) -> list[list[tuple[int, str, str]]]:
    """Row, similarity and distance of each object's neighbours on the page."""
    if len(which) < 2:
        return [[] for _ in which]
    vectors = unit_vectors(scene.vectors, which).astype(np.float64)
    count = min(K, len(which) - 1)
    finder = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(vectors)
    away, rows = finder.kneighbors()
    return [
        [(int(r), f"{1 - d:.4f}", f"{d:.4f}") for r, d in zip(*pair, strict=True)]
        for pair in zip(rows, away, strict=True)
    ]


def _shades(colour: Colour | None, which: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Colours, and which of them each object has; the last is for those without a value."""
    if colour is None:
        return [_PLAIN], np.zeros(len(which), np.int64)
    if isinstance(colour, Numbers):
        ramp = LinearSegmentedColormap.from_list("ramp", RAMP, N=_STEPS)
        shades = [to_hex(ramp(step)) for step in range(_STEPS)]
        values, (low, high) = colour.values[which], colour.span
        known = np.isfinite(values)
        steps = np.clip((np.where(known, values, low) - low) / (high - low) * _STEPS, 0, _STEPS - 1)
        return [*shades, OTHER], np.where(known, steps, _STEPS).astype(np.int64)
    codes = colour.codes[which].astype(np.int64)
    shades = list(colour.colours)
    return [*shades, OTHER], np.where(codes < 0, len(shades), codes)


def _jpeg(png: bytes) -> str:
    """A picture in the page itself; noise takes an eighth of the bytes that it takes as PNG."""
    buffer = BytesIO()
    with Image.open(BytesIO(png)) as image:
        small = image.convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        small.save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_PLAIN_LEGEND = {
    "name": "one colour for all",
    "ramp": (_PLAIN, _PLAIN),
    "low": "",
    "high": "",
    "none": "",
}


def _first(scene: Scene) -> list[str]:
    names = [scene.colour, DENSITY, *scene.columns.names]
    return list(dict.fromkeys(names))[:COLUMNS]
