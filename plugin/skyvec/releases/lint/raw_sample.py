"""The first rows of a few files of a release, as the files hold them, for `skyvec.releases.lint.lint`.

Nothing is converted or masked on the way: a linter that read through the readers would see what
they made of a file, not what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.survey_columns import Survey

if TYPE_CHECKING:
    from skyvec.sources import SourceSpec

KEY_ROWS = 20_000
"""Rows of a file whose ids, positions, scalars and bands are looked at; a few MB."""
COUNTED_FILES = 64
"""Files whose row counts are read; of more, the rest is extrapolated from their sizes."""

IMAGE_FIELDS = ("flux", "ivar", "mask", "band", "psf_fwhm", "scale")
SPECTRUM_FIELDS = ("flux", "ivar", "mask", "lambda")
SMALL_FIELDS = ("band", "psf_fwhm", "scale")
"""Fields with a few values for each object."""

Rows = tuple[NDArray[Any] | None, ...]
"""One array for each object, of any shape; None where it is null, dtype object where ragged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawFile:
    """The first rows of one file."""

    path: str
    rows: int
    """In the whole file."""
    columns: tuple[str, ...]
    """All that the file holds."""
    keys: Mapping[str, NDArray[Any]]
    """``id``, ``ra``, ``dec``, ``healpix``, ``healpix_29`` and scalars by name: the first rows, as
    stored; absent where the file has none."""
    arrays: Mapping[str, Rows]
    """``image.flux``, ``spectrum.lambda``, ``coefficients`` ...: of as many or fewer first rows."""
    pixel: HealpixPixel | None = None
    """Where the file's place in the release says that its objects lie (nested ordering)."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Column -> rows, where a format allows them to differ."""
    facts: Mapping[str, float | str] = field(default_factory=dict)
    """What headers state beside the data, e.g. ``scale``, ``zero_point``, ``band``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRelease:
    """A sample of a release, and its size."""

    files: tuple[RawFile, ...]
    """The sampled ones."""
    rows: int
    """In the release; 0 where objects are not what it consists of."""
    bytes: int
    """On disk."""
    file_count: int
    exact: bool
    """Whether ``rows`` and ``bytes`` were counted rather than extrapolated."""
    largest: int = 0
    """Rows of the largest file known."""
    problems: tuple[SkyvecError, ...] = ()
    """Files that could not be read."""
    stated_rows: int | None = None
    """What the release's own properties say."""
    counted_rows: int | None = None
    """What its footers add up to, where all were read."""
    absent_files: tuple[str, ...] = ()
    """Listed by the release, but not there (of those looked at)."""
    unlisted_files: tuple[str, ...] = ()
    """There, but not listed, so nobody reads them."""


def sample_release(spec: SourceSpec, *, rows: int = 64, files: int = 3) -> RawRelease:
    """Look at a declared source.

    Parameters
    ----------
    rows
        Objects whose pixels and spectra are read, over all sampled files.
    files
        Files to sample, spread over the release.

    Raises
    ------
    SkyvecError
        If nothing of the release can be read.
    """
    return _samplers()[spec.format](spec, rows, files)


def _samplers() -> Mapping[str, Callable[[SourceSpec, int, int], RawRelease]]:
    from skyvec.releases.hats.catalog import HatsRelease
    from skyvec.releases.lint.raw_fits import sample_fits_images, sample_fits_spectra
    from skyvec.releases.lint.raw_hats import sample_hats
    from skyvec.releases.lint.raw_hdf5 import sample_mmu

    return {
        "mmu-hdf5": lambda spec, rows, files: sample_mmu(
            spec.path, spec.survey, rows=rows, files=files
        ),
        "hats": lambda spec, rows, files: sample_hats(
            HatsRelease.open(spec.path), spec.survey, dict(spec.columns), rows=rows, files=files
        ),
        "fits-images": lambda spec, _, files: sample_fits_images(spec.path, files=files),
        "fits-spectra": lambda spec, rows, files: sample_fits_spectra(
            spec.path, rows=rows, files=files
        ),
        "working-copy": lambda spec, _rows, _files: _copied(spec.path),
        "release": _of_release,
    }


def _of_release(spec: SourceSpec, rows: int, files: int) -> RawRelease:
    """The files of a release of a store, in whichever layout they are."""
    from skyvec.releases.versions.manifest import Release
    from skyvec.sources import Format

    release = Release.open(spec.path)
    layout: Format = "hats" if release.manifest.layout == "hats" else "mmu-hdf5"
    held = replace(spec, path=str(release.root), format=layout)
    return _samplers()[layout](held, rows, files)


def _copied(path: str) -> RawRelease:
    """Size alone: what a working copy holds was read and checked as it was made."""
    from skyvec.releases.working_copy.source import CopyMarker

    pixels = CopyMarker.load(Path(path)).pixels.values()
    return RawRelease(
        files=(),
        rows=sum(pixel.rows for pixel in pixels),
        bytes=sum(pixel.bytes for pixel in pixels),
        file_count=len(pixels),
        exact=True,
        largest=max((pixel.rows for pixel in pixels), default=0),
    )


def spread(count: int, wanted: int) -> list[int]:
    """Places of at most ``wanted`` of ``count`` things: first, last and evenly between."""
    places = np.linspace(0, count - 1, min(count, wanted)).round().astype(int)
    return sorted(set(places.tolist()))


def choose(counted: Mapping[int, int], *, rows: int, files: int) -> dict[int, int]:
    """Which files to sample and how many rows of each, from the rows that they have.

    At least ``files``, spread evenly, and as many more as it takes to see ``rows`` objects.
    """
    filled = [place for place, count in counted.items() if count]
    first = [filled[i] for i in spread(len(filled), files)]
    share = -(-rows // max(1, len(first)))
    chosen: dict[int, int] = {}
    for place in (*first, *(place for place in filled if place not in first)):
        left = rows - sum(chosen.values())
        if left <= 0 and len(chosen) >= len(first):
            break
        chosen[place] = min(counted[place], share, max(1, left))
    left = max(0, rows - sum(chosen.values()))
    for place, taken in chosen.items():
        more = min(counted[place] - taken, left)
        chosen[place], left = taken + more, left - more
    return chosen


def extrapolate(sizes: Sequence[int], counted: Mapping[int, int]) -> int:
    """Rows of all files from the rows of some (place -> rows) and all sizes."""
    known = sum(sizes[place] for place in counted)
    rows = sum(counted.values())
    return rows if len(counted) == len(sizes) or not known else round(rows * sum(sizes) / known)


def logical_columns(survey: Survey) -> dict[str, str]:
    """Logical name of every array -> where HATS keeps it (``column.field``)."""
    names: dict[str, str] = {}
    if survey.image:
        names |= {f"image.{f}": f"{survey.image.name}.{f}" for f in IMAGE_FIELDS}
    if survey.spectrum:
        names |= {f"spectrum.{f}": f"{survey.spectrum.name}.{f}" for f in SPECTRUM_FIELDS}
    if survey.coefficients:
        names["coefficients"] = survey.coefficients.name
    return names


def is_small(logical: str) -> bool:
    """Whether an array has just a few values for each object."""
    return logical.rpartition(".")[2] in SMALL_FIELDS
