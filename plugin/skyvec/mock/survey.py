"""Observe a mock sky and write it: a HATS collection, and releases of other surveys beside it.

The collection is what the Legacy Surveys would see: DECam griz cutouts with PSF, sky and source
noise, neighbours and bad pixels; fluxes, shapes and dust as a catalog states them; the redshift as
label; the truth beside it. Not simulated: correlated noise, artefacts of the pipeline, blending in
the catalog's fluxes, gaps in the coverage, errors of the redshift.

Positions do not need images, so the files are known before the first pixel is drawn: each is
rendered and written in its final order, a batch at a time, with no second copy on disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hats.catalog import CollectionProperties
from hats.io import paths
from hats.pixel_math import compute_spatial_index, spatial_index_to_healpix
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.mock.catalog import survey_schema, survey_table
from skyvec.mock.drafts import Task, fresh_folder, run
from skyvec.mock.galaxies import load_templates
from skyvec.mock.partitions import partition
from skyvec.mock.releases import Census, shards, take_census
from skyvec.mock.sky import LAST_RELEASE, Fate, Footprint, Sky, assign_changes, draw_sky
from skyvec.mock.truth import TRUTH_FILE, write_truth
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import LEGACY_SURVEY

CATALOG_SIZE = 96
"""Side of a cutout in the main catalog."""
ROW_GROUP_PIXELS = 256 * CATALOG_SIZE**2
"""Of one band in a row group: 256 rows at 96 pixels, fewer if the cutouts are larger."""

_PARQUET = {"compression": "zstd", "compression_level": 1, "write_statistics": True}

WORTH_A_PROCESS = 500
"""Objects that take longer than to start a process."""


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One partition of the collection."""

    path: Path
    sky: Sky
    seed: int
    size: int
    images: bool

    def write(self) -> int:
        """Write it, and count its objects."""
        schema = survey_schema(images=self.images)
        step = max(1, min(256, ROW_GROUP_PIXELS // self.size**2))
        with pq.ParquetWriter(
            self.path,
            schema,
            use_dictionary=["image.band"] if self.images else False,
            **_PARQUET,
        ) as writer:
            for first in range(0, len(self.sky), step):
                part = self.sky[first : first + step]
                table = survey_table(part, seed=self.seed, size=self.size, images=self.images)
                writer.write_table(table)
        return len(self.sky)


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """The truth of all objects."""

    path: Path
    sky: Sky
    seed: int
    release: int
    surveys: tuple[str, ...]

    def write(self) -> int:
        """Write it; the objects are counted where they are observed."""
        write_truth(self.path, self.sky, seed=self.seed, release=self.release, surveys=self.surveys)
        return 0


@dataclass(frozen=True, kw_only=True)
class MockSurvey:
    """A mock survey whose objects are chosen and whose files are not yet written."""

    sky: Sky
    census: Census
    seed: int
    release: int
    surveys: tuple[str, ...]
    size: int
    stamp: int
    name: str
    images: bool

    @property
    def observations(self) -> int:
        """Objects to observe: one for each survey that holds it, and one for the catalog."""
        kept = self.sky.fate != Fate.WITHDRAWN
        others = sum(int((self.census.holds(s) & kept).sum()) for s in self.surveys)
        return int(kept.sum()) + others

    def write(
        self,
        out: Path,
        *,
        workers: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """Write everything; it appears whole or not at all. See `write_mock_survey`."""
        _check("workers", 1 if workers is None else workers, 1, 1024)
        with fresh_folder(out) as draft:
            spatial = compute_spatial_index(self.sky.ra, self.sky.dec)
            pixels = partition(
                spatial,
                is_old=self.sky.fate != Fate.ADDED,
                is_held=self.sky.fate != Fate.WITHDRAWN,
            )
            tasks = [*self._leaves(draft, pixels), *self._releases(draft)]
            worthwhile = min(cpu_count() or 1, -(-self.observations // WORTH_A_PROCESS))
            run(tasks, workers=workers or worthwhile, progress=progress)
            self._finish(draft, pixels, spatial)
        return out

    def _leaves(self, draft: Path, pixels: dict[HealpixPixel, NDArray[np.int64]]) -> list[Task]:
        return [
            _Leaf(
                path=Path(paths.new_pixel_catalog_file(draft / self.name, pixel)),
                sky=self.sky[members],
                seed=self.seed,
                size=self.size,
                images=self.images,
            )
            for pixel, members in pixels.items()
        ]

    def _releases(self, draft: Path) -> list[Task]:
        if not self.surveys and self.release == 1:
            return []
        kept = self.sky.fate != Fate.WITHDRAWN
        census = Census(pixels={s: found[kept] for s, found in self.census.pixels.items()})
        files = shards(
            draft / "mmu",
            self.sky[kept],
            census,
            seed=self.seed,
            size=self.stamp,
            core=self.size,
        )
        truth = _Truth(
            path=draft / "truth" / TRUTH_FILE,
            sky=self.sky,
            seed=self.seed,
            release=self.release,
            surveys=self.surveys,
        )
        return [truth, *files]

    def _finish(
        self,
        draft: Path,
        pixels: dict[HealpixPixel, NDArray[np.int64]],
        spatial: NDArray[np.int64],
    ) -> None:
        dealt = np.concatenate(list(pixels.values()))
        finish_catalog(
            draft / self.name,
            name=self.name,
            rows={pixel: len(members) for pixel, members in pixels.items()},
            skymap=Counter(spatial_index_to_healpix(spatial[dealt], SKYMAP_ORDER).tolist()),
            ra_column=LEGACY_SURVEY.ra_column,
            dec_column=LEGACY_SURVEY.dec_column,
            builder="skyvec mock survey",
            properties={"skyvec_mock_templates": load_templates().provenance},
        )
        collection = CollectionProperties(name=self.name, hats_primary_table_url=self.name)
        collection.to_properties_file(draft)


def plan_mock_survey(
    *,
    rows: int,
    seed: int,
    size: int = CATALOG_SIZE,
    name: str | None = None,
    footprint: Footprint | None = None,
    surveys: tuple[str, ...] = (),
    stamp: int = 160,
    stars: int | None = None,
    quasars: int | None = None,
    release: int = 1,
    images: bool = True,
) -> MockSurvey:
    """Choose the objects of a mock survey; draws no image. See `write_mock_survey`."""
    stars = (rows // 4 if surveys else 0) if stars is None else stars
    quasars = (rows // 20 if surveys else 0) if quasars is None else quasars
    for what, value, least, most in (
        ("rows", rows, 1, 2_000_000),
        ("seed", seed, 0, 2**63 - 1),
        ("size", size, 16, 512),
        ("size of the stamps", stamp, 16, 512),
        ("stars", stars, 0, 2_000_000),
        ("quasars", quasars, 0, 2_000_000),
        ("release", release, 1, LAST_RELEASE),
    ):
        _check(what, value, least, most)
    name = name or f"mock_dr{release}"
    _check_name(name)
    sky = draw_sky(
        rows,
        seed=seed,
        footprint=footprint or Footprint(),
        stars=stars,
        quasars=quasars,
        release=release,
    )
    census = take_census(sky, seed=seed, surveys=surveys)
    has_spectrum = np.zeros(len(sky), dtype=bool)
    for survey in {"desi", "sdss"} & set(surveys):
        has_spectrum |= census.holds(survey)
    return MockSurvey(
        sky=assign_changes(sky, seed=seed, has_spectrum=has_spectrum),
        census=census,
        seed=seed,
        release=release,
        surveys=surveys,
        size=size,
        stamp=stamp,
        name=name,
        images=images,
    )


def write_mock_survey(
    out: Path,
    *,
    rows: int,
    seed: int,
    size: int = CATALOG_SIZE,
    name: str | None = None,
    footprint: Footprint | None = None,
    surveys: tuple[str, ...] = (),
    stamp: int = 160,
    stars: int | None = None,
    quasars: int | None = None,
    release: int = 1,
    images: bool = True,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a HATS collection of objects with known truth, and releases of surveys; return its path.

    The same seed gives the same objects, whatever the number of workers and the surveys; more rows
    add to them.

    Parameters
    ----------
    out
        Folder of the new collection; must not exist. It appears whole or not at all.
    rows
        Galaxies brighter than z = 21 (dereddened, AB).
    seed
        Not negative; another seed is another sky with other ids.
    size
        Pixels along a side of a cutout in the collection.
    name
        Of the collection and its catalog; ``mock_dr1`` by default, ``mock_dr2`` for release 2.
    footprint
        Where on the sky; 20 x 15 degrees on the equator by default.
    surveys
        Releases to write in the files of the Multimodal Universe, under ``mmu/``, with the truth
        under ``truth/``: any of `skyvec.mock.footprints.SURVEYS`; none by default.
    stamp
        Pixels along a side of their cutouts.
    stars, quasars
        In the sky beside the galaxies, and in the collection. By default a quarter and a twentieth
        of ``rows`` if any survey is asked for, none if not.
    release
        1, or 2 for the same sky a release later: a tenth more objects, 3% changed, 1% withdrawn.
    images
        False leaves the cutouts out of the collection, and every other column as it is.
    workers
        Processes; by default one for each `WORTH_A_PROCESS` objects, up to all cores. More than
        one needs a main guard in a script.
    progress
        Called with the number of objects observed so far, each counted once for each survey.
    """
    survey = plan_mock_survey(
        rows=rows,
        seed=seed,
        size=size,
        name=name,
        footprint=footprint,
        surveys=surveys,
        stamp=stamp,
        stars=stars,
        quasars=quasars,
        release=release,
        images=images,
    )
    return survey.write(out, workers=workers, progress=progress)


def _check(what: str, value: int, least: int, most: int) -> None:
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
