"""Objects and their plane in a Parquet file beside the extension, so that they are made once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec.explorer.objects import Objects, read_objects
from skyvec.explorer.projection import SAMPLE, Say, plane_of
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec_schemas.errors import ConfigurationError

FILE = "map.parquet"
KEY = b"skyvec_explorer"
_LAYOUT = 1
"""Of the file; older ones are made anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectMap:
    """Every object, and where it lies on the plane of likeness."""

    objects: Objects
    xy: NDArray[np.float32]
    """(n, 2)."""
    method: str
    """How the plane came about, for people."""


def object_map(
    vectors: VectorCatalog,
    folder: Path | None = None,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    say: Say,
) -> ObjectMap:
    """The map that is kept, if it is still that of these vectors; else a new one, which is kept.

    Parameters
    ----------
    folder
        Of the file; ``<extension>_explorer`` beside the extension by default, never inside it.

    Raises
    ------
    ConfigurationError
        If nothing can be written there, or there are no objects.
    """
    folder = folder or vectors.release.root.parent / f"{vectors.name}_explorer"
    _refuse_inside(folder, vectors)
    bound = _binding(vectors, sample=sample, seed=seed)
    kept = _read(folder / FILE, bound)
    if kept is not None:
        return kept
    _refuse_unwritable(folder)
    objects = read_objects(vectors)
    say(f"{len(objects):,} objects with a vector")
    plane = plane_of(vectors, len(objects), sample=sample, seed=seed, say=say)
    made = ObjectMap(objects=objects, xy=plane.xy, method=plane.method)
    _write(folder / FILE, made, bound)
    say(f"kept in {folder / FILE}: the next start is quick")
    return made


def _binding(vectors: VectorCatalog, *, sample: int, seed: int) -> dict[str, Any]:
    """What the map is a map of; any change makes it stale."""
    release = vectors.release
    return {
        "layout": _LAYOUT,
        "extension": vectors.name,
        "fingerprint": vectors.provenance.fingerprint(),
        "sample": sample,
        "seed": seed,
        "tiles": [[p.order, p.pixel, dict(release.identity(p))] for p in release.pixels],
    }


def _read(path: Path, bound: Mapping[str, Any]) -> ObjectMap | None:
    try:
        told = json.loads(pq.read_schema(path).metadata[KEY])
        if told["bound"] != json.loads(json.dumps(bound)):
            return None
        table = pq.read_table(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid):
        return None  # none, or half of one: made anew
    column = {name: table.column(name).to_numpy() for name in table.column_names if name != "id"}
    return ObjectMap(
        objects=Objects(
            ids=table.column("id").combine_chunks(), ra=column["ra"], dec=column["dec"],
            place=column["place"], row=column["row"], absent=told["absent"],
        ),
        xy=np.stack([column["x"], column["y"]], axis=1),
        method=told["method"],
    )  # fmt: skip


def _write(path: Path, made: ObjectMap, bound: Mapping[str, Any]) -> None:
    objects = made.objects
    table = pa.table(
        {
            "id": objects.ids, "ra": objects.ra, "dec": objects.dec, "place": objects.place,
            "row": objects.row, "x": made.xy[:, 0], "y": made.xy[:, 1],
        }
    )  # fmt: skip
    told = {"bound": bound, "absent": objects.absent, "method": made.method}
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(told)}), aside)
    aside.replace(path)


def _refuse_inside(folder: Path, vectors: VectorCatalog) -> None:
    root = vectors.release.root.resolve()
    if folder.resolve().is_relative_to(root):
        raise ConfigurationError(
            "lies inside a published extension, whose files are sealed",
            where=str(folder),
            remedy="Name another folder with --cache",
        )


def _refuse_unwritable(folder: Path) -> None:
    """Before the minutes that a map takes, not after them."""
    probe = folder / f".{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise ConfigurationError(
            f"cannot keep the map there ({problem.strerror})",
            where=str(folder),
            remedy="Name a folder of your own with --cache",
        ) from problem
