"""Opens what a user calls a release, a manifest's or a bare folder, as a source with its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.source import HatsSource
from skyvec.releases.mmu.layout import ORDER
from skyvec.releases.mmu.release import MmuRelease
from skyvec.releases.source import Source
from skyvec.releases.versions.files import discover
from skyvec.releases.versions.manifest import Release
from skyvec.surveys import named_survey
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.release_manifest import CURRENT, MANIFEST, Layout
from skyvec_schemas.survey_columns import LEGACY_SURVEY, Survey


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFolder:
    """A source, and what is known of it as a whole."""

    source: Source
    pixels: tuple[HealpixPixel, ...]
    """Where it has objects or rows that it refuses; of any order, some inside others."""
    rows: int
    """Objects, 0 if unknown."""
    provenance: Mapping[str, str]
    """Release and digest, as far as there are, and folder."""
    withdrawn: frozenset[str] = frozenset()
    """Ids that the files hold and the release does not."""


def open_folder(path: Path, survey: Survey | None, *, window: int) -> SourceFolder:
    """Open a release of a store, a Multimodal Universe folder, or a HATS collection or catalog.

    Parameters
    ----------
    survey
        What the files hold; by default what the manifest says, else the Legacy Survey.

    Raises
    ------
    ConfigurationError
        If it is none of these, or a release whose files lie in several folders.
    """
    if any((path / name).is_file() for name in (MANIFEST, CURRENT)) or path.name == MANIFEST:
        return _of_manifest(Release.open(path), survey, window)
    layout, _ = discover(path)
    source, pixels = _open(path, layout, survey or LEGACY_SURVEY, window)
    return SourceFolder(
        source=source, pixels=pixels, rows=0, provenance={"folder": str(path.resolve())}
    )


def _of_manifest(release: Release, survey: Survey | None, window: int) -> SourceFolder:
    if any(file.held_by for file in release.files):
        raise ConfigurationError(
            "its files lie in several releases",
            where=str(release.folder),
            remedy="Make the release with --link, which brings them into one folder",
        )
    chosen = survey or named_survey(release.manifest.survey)
    source, pixels = _open(release.root, release.manifest.layout, chosen, window)
    cells: set[int] = set()
    for batch in release.object_batches(columns=["_healpix_29"]):
        healpix = batch.column(0).to_numpy()
        cells.update(np.unique(healpix[healpix >= 0] >> 2 * (29 - ORDER)).tolist())
    gone = release.withdrawn.column("object_id").combine_chunks()
    return SourceFolder(
        source=source,
        pixels=(*pixels, *(HealpixPixel(ORDER, cell) for cell in sorted(cells))),
        rows=release.manifest.counts["objects"],
        provenance={"release": release.name, "digest": release.manifest.digest()},
        withdrawn=frozenset(gone.to_pylist()),
    )


def _open(
    root: Path, layout: Layout, survey: Survey, window: int
) -> tuple[Source, tuple[HealpixPixel, ...]]:
    if layout == "hats":
        return (
            HatsSource.open(root, survey, window=window),
            tuple(HatsRelease.open(root).pixels),
        )
    mmu = MmuRelease.open(root, survey, window=window)
    return mmu, tuple(HealpixPixel(ORDER, pixel) for pixel in sorted(mmu.folders))
