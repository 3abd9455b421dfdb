"""What a page is told: plain values for JSON, ids as text, since numbers there end at 2^53."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from skyvec.explorer.colours import DENSITY, Colour, Numbers
from skyvec.explorer.neighbours import Neighbours
from skyvec.explorer.rasters import CROWDS, RAMP
from skyvec.explorer.scene import Scene
from skyvec.version import __version__

Facts = dict[str, Any]


def page_facts(scene: Scene) -> Facts:
    """What stands on a page from the start."""
    vectors, objects = scene.vectors, scene.objects
    notes = [f"Map: {scene.map.method}"]
    if objects.absent:
        notes.append(f"{objects.absent:,} rows without a vector are not on it.")
    unplaced = int((~np.isfinite(objects.ra) | ~np.isfinite(objects.dec)).sum())
    if unplaced:
        notes.append(f"{unplaced:,} objects without a position are not on the sky.")
    if scene.cutouts.absent:
        notes.append(f"No thumbnails: {scene.cutouts.absent}.")
    notes += [f"{problem[:1].upper()}{problem[1:]}." for problem in scene.columns.problems]
    made = vectors.provenance
    return {
        "extension": vectors.name,
        "catalog": vectors.primary.resolve().name,
        "model": made.model,
        "fingerprint": made.fingerprint()[:12],
        "version": __version__,
        "objects": f"{len(objects):,}",
        "notes": notes,
        "colours": [DENSITY, *scene.columns.names],
        "colour": scene.colour,
        "pictures": not scene.cutouts.absent,
    }


def object_facts(scene: Scene, which: int) -> Facts:
    """One object: where it is, what it is coloured by."""
    objects, pixel = scene.objects, scene.cutouts.pixel_of(which)
    name = objects.name(which)
    return {
        "id": name,
        "ra": degrees(objects.ra[which]),
        "dec": degrees(objects.dec[which], sign="+"),
        "pixel": f"order {pixel.order}, pixel {pixel.pixel}",
        "picture": ""
        if scene.cutouts.absent
        else f"cutout/{pixel.order}/{pixel.pixel}/{quote(name, safe='')}",
    }


def neighbours_facts(scene: Scene, found: Neighbours) -> Facts:
    """Neighbours, nearest first."""
    near = zip(found.which.tolist(), found.similarity, found.distance, strict=True)
    return {
        "neighbours": [
            object_facts(scene, which) | {"similarity": f"{s:.4f}", "distance": f"{d:.4f}"}
            for which, s, d in near
        ],
        "how": f"by cosine, exact among {len(scene.objects):,} vectors, {found.seconds:.1f} s",
    }


def legend_facts(colour: Colour | None) -> Facts:
    """What the colours mean."""
    if colour is None:
        return {
            "name": "objects in a place",
            "ramp": CROWDS,
            "low": "few",
            "high": "many",
            "none": "",
        }
    none = f"{colour.missing:,} have none" if colour.missing else ""
    if isinstance(colour, Numbers):
        low, high = colour.span
        return {
            "name": colour.name, "ramp": RAMP, "low": f"{low:.4g}", "high": f"{high:.4g}", "none": none,
        }  # fmt: skip
    counts = np.bincount(colour.codes[colour.codes >= 0], minlength=len(colour.labels))
    return {
        "name": colour.name, "none": none,
        "labels": [[label, shade, f"{count:,}"] for label, shade, count in
                   zip(colour.labels, colour.colours, counts.tolist(), strict=True)],
    }  # fmt: skip


def degrees(value: float, *, sign: str = "") -> str:
    """An angle for people."""
    return f"{value:{sign}.5f}°" if np.isfinite(value) else "unknown"


def places(which: NDArray[np.int64], xy: NDArray[np.float64]) -> Facts:
    """Coordinates of some objects, null where there are none."""
    known = [[v if np.isfinite(v) else None for v in axis] for axis in xy[which].T.tolist()]
    return dict(zip("xy", known, strict=True))
