"""Observe the mock galaxies as the Legacy Surveys would, and write them as a HATS collection.

What is simulated: DECam griz cutouts with PSF, sky and source noise, neighbours and bad pixels;
fluxes, shapes and dust as a catalog states them; the redshift as label; the truth beside it.
What is not: correlated noise, artefacts of the pipeline, blending in the catalog's fluxes, gaps in
the coverage, errors of the redshift.

Positions do not need images, so the partitions are known before the first pixel is drawn: each is
rendered and written in its final order, one row group at a time, with no second copy on disk.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hats.catalog import CollectionProperties
from hats.io import paths
from hats.pixel_math import (
    compute_spatial_index,
    generate_alignment,
    spatial_index_to_healpix,
)
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.mock.catalog import Footprint, survey_schema, survey_table
from skyvec.mock.galaxies import (
    Floats,
    draw_latents,
    is_selected,
    load_templates,
    photometry,
)
from skyvec_schemas.errors import ConfigurationError, InfrastructureError, OutputExistsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY

ROW_GROUP_PIXELS = 256 * 96 * 96
"""Of one band in a row group: 256 rows at 96 pixels, fewer if the cutouts are larger."""

_PARTITION_ORDER = 7
_CANDIDATES = 4096
_PARQUET = {"compression": "zstd", "compression_level": 1, "write_statistics": True}


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One partition to write."""

    path: Path
    indices: NDArray[np.int64]
    seed: int
    size: int
    footprint: Footprint


def write_mock_survey(
    out: Path,
    *,
    rows: int,
    seed: int,
    size: int = 96,
    name: str = "mock_dr1",
    footprint: Footprint | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a HATS collection of galaxies with known truth; return its path.

    The same seed gives the same galaxies, whatever the number of workers; more rows add to them.

    Parameters
    ----------
    out
        Folder of the new collection; must not exist. It appears whole or not at all.
    rows
        Galaxies brighter than z = 21 (dereddened, AB).
    seed
        Not negative; another seed is another sky with other ids.
    size
        Pixels along a side of a cutout.
    name
        Of the collection and its catalog.
    footprint
        Where on the sky; 20 x 15 degrees on the equator by default.
    workers
        Processes; all cores by default. More than one needs a main guard in a script.
    progress
        Called with the number of rows written so far.
    """
    footprint = footprint or Footprint()
    _check_request(rows=rows, seed=seed, size=size, workers=workers)
    _check_name(name)
    with _fresh_folder(out) as draft:
        indices, position = select_galaxies(rows, seed=seed)
        spatial = compute_spatial_index(*footprint.place(position))
        pixels = _partition(spatial, rows=rows)
        leaves = [
            _Leaf(
                path=Path(paths.new_pixel_catalog_file(draft / name, pixel)),
                indices=indices[members],
                seed=seed,
                size=size,
                footprint=footprint,
            )
            for pixel, members in pixels.items()
        ]
        _write_leaves(leaves, workers=workers or cpu_count() or 1, progress=progress)
        finish_catalog(
            draft / name,
            name=name,
            rows={pixel: len(members) for pixel, members in pixels.items()},
            skymap=Counter(spatial_index_to_healpix(spatial, SKYMAP_ORDER).tolist()),
            ra_column=LEGACY_SURVEY.ra_column,
            dec_column=LEGACY_SURVEY.dec_column,
            builder="skyvec mock survey",
            properties={"skyvec_mock_templates": load_templates().provenance},
        )
        CollectionProperties(name=name, hats_primary_table_url=name).to_properties_file(draft)
    return out


def select_galaxies(rows: int, *, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the first indices whose galaxies pass the magnitude limit, and their positions."""
    indices, positions, found, start = [], [], 0, 0
    while found < rows:
        latents = draw_latents(range(start, start + _CANDIDATES), seed=seed)
        chosen = is_selected(latents, photometry(latents))
        indices.append(latents.index[chosen])
        positions.append(latents.position[chosen])
        found += int(chosen.sum())
        start += _CANDIDATES
    return np.concatenate(indices)[:rows], np.concatenate(positions)[:rows]


def _check_request(*, rows: int, seed: int, size: int, workers: int | None) -> None:
    for what, value, least, most in (
        ("rows", rows, 1, 2_000_000),
        ("seed", seed, 0, 2**63 - 1),
        ("size", size, 16, 512),
        ("workers", 1 if workers is None else workers, 1, 1024),
    ):
        if not least <= value <= most:
            raise ConfigurationError(
                f"{what} is {value}",
                where="mock survey",
                remedy=f"Choose a number from {least} to {most}",
            )


def _check_name(name: str) -> None:
    """Refuse what hats-import would refuse as the name of a catalog."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigurationError(
            f"{name!r} cannot name a catalog",
            where="mock survey",
            remedy="Use letters, digits, dots, dashes and underscores",
        )


@contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that becomes ``out`` only if everything went well."""
    if out.exists():
        raise OutputExistsError(
            "something is there already", where=str(out), remedy="Remove it or choose another path"
        )
    draft = out.with_name(f".{out.name}.draft")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    except OSError as error:
        raise ConfigurationError(
            f"cannot be written ({error.strerror})",
            where=str(out),
            remedy="Choose a folder on a disk that you may write to",
        ) from error
    try:
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _partition(spatial: NDArray[np.int64], *, rows: int) -> dict[HealpixPixel, NDArray[np.int64]]:
    """Deal the rows to HEALPix pixels: pixel -> places of its rows in spatial order."""
    fine = spatial_index_to_healpix(spatial, target_order=_PARTITION_ORDER)
    alignment = generate_alignment(
        np.bincount(fine, minlength=12 * 4**_PARTITION_ORDER),
        highest_order=_PARTITION_ORDER,
        threshold=_partition_rows(rows),
        drop_empty_siblings=False,
    )
    members: dict[HealpixPixel, list[int]] = {}
    for place in np.argsort(spatial, kind="stable"):
        order, pixel, _ = alignment[fine[place]]
        members.setdefault(HealpixPixel(int(order), int(pixel)), []).append(int(place))
    return {pixel: np.array(places) for pixel, places in members.items()}


def _partition_rows(rows: int) -> int:
    """Choose the most rows of a partition: several partitions even in a small survey."""
    return int(np.clip(rows // 4, 20, 2000))


def _write_leaves(
    leaves: Sequence[_Leaf], *, workers: int, progress: Callable[[int], None] | None
) -> None:
    done = 0
    if workers == 1 or len(leaves) == 1:
        for leaf in leaves:
            done += _write_leaf(leaf)
            if progress:
                progress(done)
        return
    # Not forked: the caller may hold threads of torch or Dask.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(leaves)), mp_context=context) as pool:
            for count in pool.map(_write_leaf, leaves):
                done += count
                if progress:
                    progress(done)
    except BrokenProcessPool as error:
        raise InfrastructureError(
            "a worker process died",
            where="mock survey",
            remedy="Guard a script by `if __name__ == '__main__'`, or ask for workers=1",
        ) from error


def _write_leaf(leaf: _Leaf) -> int:
    schema = survey_schema()
    step = max(1, min(256, ROW_GROUP_PIXELS // leaf.size**2))
    with pq.ParquetWriter(leaf.path, schema, use_dictionary=["image.band"], **_PARQUET) as writer:
        for first in range(0, len(leaf.indices), step):
            writer.write_table(
                survey_table(
                    leaf.indices[first : first + step],
                    seed=leaf.seed,
                    size=leaf.size,
                    footprint=leaf.footprint,
                )
            )
    return len(leaf.indices)
