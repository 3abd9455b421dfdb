"""Mock surveys in the files of the Multimodal Universe: who goes into which, and writing them.

Folders are those of its own loaders: ``hsc/pdr3_dud_22.5/healpix=583/001-of-001.hdf5``. What lies in
a file depends on its objects alone, so a file whose objects a release left alone keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.fibres import SDSS_SAMPLES, desi_batch, sdss_batch
from skyvec.mock.footprints import SURVEYS, flaws_of, held_by
from skyvec.mock.gaia import gaia_batch
from skyvec.mock.hsc import hsc_batch
from skyvec.mock.legacy_release import legacy_batch
from skyvec.mock.objects import describe
from skyvec.mock.places import positions
from skyvec.mock.sky import Sky
from skyvec.releases.mmu.layout import HEALPIX, ORDER
from skyvec.releases.mmu.writer import write_mmu_file
from skyvec_schemas.errors import ConfigurationError

FOLDERS: Mapping[str, str] = {
    "legacysurvey": "legacysurvey/dr10_south_21",
    "hsc": "hsc/pdr3_dud_22.5",
    "sdss": "sdss/sdss",
    "desi": "desi/dr1_main",
    "gaia": "gaia/gaia",
}
"""Survey -> folder of its release, as in the Multimodal Universe."""

_CHUNK = 4096
_BATCH = {"legacysurvey": 16, "hsc": 16, "sdss": 64, "desi": 64, "gaia": 256}
_NOT_HELD = -1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file to write."""

    survey: str
    path: Path
    pixel: int
    sky: Sky
    seed: int
    size: int
    """Side of a cutout in pixels."""
    core: int
    """Side of the cutouts of the main catalog."""

    def write(self) -> int:
        """Write it, and count its objects."""
        write_mmu_file(self.path, self._batches(), rows=len(self.sky))
        return len(self.sky)

    def _batches(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        step = _BATCH[self.survey]
        for first in range(0, len(self.sky), step):
            columns = self._observe(self.sky[first : first + step], first=first)
            count = len(columns["ra"])
            yield {**columns, HEALPIX: np.full(count, self.pixel, np.int64)}

    def _observe(self, sky: Sky, *, first: int) -> dict[str, NDArray[np.generic]]:
        objects, flaws = describe(sky, seed=self.seed), flaws_of(sky, seed=self.seed)
        if self.survey == "legacysurvey":
            images = {"seed": self.seed, "size": self.size, "core": self.core}
            return legacy_batch(objects, flaws, **images, first=first)
        if self.survey == "hsc":
            return hsc_batch(objects, flaws, seed=self.seed, size=self.size, core=self.core)
        if self.survey == "sdss":
            # Real files differ in length, as their longest spectra do.
            length = SDSS_SAMPLES + self.pixel % 7
            return sdss_batch(objects, flaws, seed=self.seed, length=length)
        if self.survey == "desi":
            return desi_batch(objects, flaws, seed=self.seed)
        return gaia_batch(objects, flaws, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Census:
    """Which survey holds which object of a sky of n."""

    pixels: Mapping[str, NDArray[np.int64]]
    """Survey -> order-4 pixel of the position that it states, -1 where it holds nothing."""

    def holds(self, survey: str) -> NDArray[np.bool_]:
        """Whether a survey holds an object, shape (n,)."""
        return np.asarray(self.pixels[survey] != _NOT_HELD)


def take_census(sky: Sky, *, seed: int, surveys: tuple[str, ...]) -> Census:
    """Find out who is held by these surveys, and in which pixel; draws no image."""
    from hats.pixel_math.healpix_shim import radec2pix

    pixels = {survey: np.full(len(sky), _NOT_HELD, np.int64) for survey in surveys}
    for first in range(0, len(sky) if surveys else 0, _CHUNK):
        chunk = slice(first, first + _CHUNK)
        objects = describe(sky[chunk], seed=seed)
        held = held_by(objects, seed=seed)
        for survey, found in pixels.items():
            places = radec2pix(ORDER, *positions(objects, survey, seed=seed))
            found[chunk] = np.where(held[survey], places, _NOT_HELD)
    return Census(pixels=pixels)


def shards(root: Path, sky: Sky, census: Census, *, seed: int, size: int, core: int) -> list[Shard]:
    """Every file to write under ``root``, in the order of surveys and pixels."""
    return [
        Shard(
            survey=survey,
            path=root / FOLDERS[survey] / f"{HEALPIX}={pixel}" / "001-of-001.hdf5",
            pixel=pixel,
            sky=sky[np.flatnonzero(found == pixel)],
            seed=seed,
            size=size,
            core=core,
        )
        for survey, found in census.pixels.items()
        for pixel in np.unique(found[found != _NOT_HELD]).tolist()
    ]


def chosen_surveys(names: str) -> tuple[str, ...]:
    """Read a list of surveys, separated by commas; ``all`` stands for every one.

    Raises
    ------
    ConfigurationError
        If one is not known or comes twice.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["all"]:
        return SURVEYS
    for name in wanted:
        if name not in SURVEYS or wanted.count(name) > 1:
            what = "comes twice" if name in SURVEYS else "is not known"
            raise ConfigurationError(
                f"{name!r} {what}",
                where="surveys",
                remedy=f"Choose from: {', '.join(SURVEYS)}; or all",
            )
    return tuple(survey for survey in SURVEYS if survey in wanted)
