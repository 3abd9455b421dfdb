"""Who is in the sky of a mock survey, and what a second release does to them.

A second release adds a tenth (beyond the eastern edge, as a survey grows), and works again on one
field, where it changes objects and withdraws some: files of other fields stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.galaxies import Floats, draw_latents, is_selected, object_rng, photometry
from skyvec.mock.quasars import draw_quasars
from skyvec.mock.stars import draw_stars

LAST_RELEASE = 2
ADDED_SHARE, CHANGED_SHARE, WITHDRAWN_SHARE = 0.10, 0.03, 0.01
"""Of the objects of the first release."""
REVISION = 64
"""Distance between the random streams of an object and those of its changed version."""

_REVISITED_SHARE = 0.15
_KIND_STEP = 1 << 41
_CANDIDATES = 4096
_FATE_STREAM = 17


class Kind(IntEnum):
    """What an object is."""

    GALAXY = 0
    STAR = 1
    QUASAR = 2


class Fate(IntEnum):
    """What a release did to an object since the one before."""

    UNCHANGED = 0
    ADDED = 1
    CHANGED = 2
    WITHDRAWN = 3


class Change(IntEnum):
    """What is new about a changed object."""

    NONE = 0
    PHOTOMETRY = 1
    """Measured again on the same images."""
    DEPTH = 2
    """Deeper images, and measured on them."""
    SPECTRUM = 3
    """Observed again, twice as long."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A patch of sky between two meridians and two parallels, degrees."""

    ra_min: float = 150.0
    ra_max: float = 170.0
    dec_min: float = -5.0
    dec_max: float = 10.0

    def place(self, position: Floats) -> tuple[Floats, Floats]:
        """Turn pairs of numbers between 0 and 1 into (ra, dec), even on the sphere."""
        ra = self.ra_min + position[:, 0] * (self.ra_max - self.ra_min)
        low, high = np.sin(np.radians([self.dec_min, self.dec_max]))
        dec = np.degrees(np.arcsin(low + position[:, 1] * (high - low)))
        return np.mod(ra, 360.0), dec


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Objects of a release, those that it withdrew included; every array has n rows."""

    kind: NDArray[np.int8]
    index: NDArray[np.int64]
    """Number among the objects of its kind: with the seed, all that an object is."""
    position: Floats
    """Place in the footprint, shape (n, 2): 0 to 1, and beyond 1 where a release extends it."""
    ra: Floats
    """True position in degrees, at the epoch of the Legacy Survey."""
    dec: Floats
    fate: NDArray[np.int8]
    change: NDArray[np.int8]

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.index)

    def __getitem__(self, rows: NDArray[np.generic] | slice) -> Sky:
        """Take some of the objects."""
        return Sky(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def key(self) -> NDArray[np.int64]:
        """Number among all objects: the random numbers of an observation hang on it."""
        return self.index + self.kind.astype(np.int64) * _KIND_STEP

    @property
    def held(self) -> Sky:
        """Without the objects that were withdrawn."""
        return self[self.fate != Fate.WITHDRAWN]


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


def draw_sky(
    rows: int,
    *,
    seed: int,
    footprint: Footprint,
    stars: int = 0,
    quasars: int = 0,
    release: int = 1,
) -> Sky:
    """Draw the objects of a release; equal arguments give equal objects.

    Parameters
    ----------
    rows, stars, quasars
        Galaxies, stars and quasars of the first release.
    release
        1, or 2 for the sky a release later; its changes are chosen by `assign_changes`.
    """
    first = {Kind.GALAXY: rows, Kind.STAR: stars, Kind.QUASAR: quasars}
    parts = []
    for kind, count in first.items():
        added = share_of(count, ADDED_SHARE) if release > 1 else 0
        if kind == Kind.GALAXY:
            index, position = select_galaxies(count + added, seed=seed)
        else:
            index = np.arange(count + added, dtype=np.int64)
            draw = draw_stars if kind == Kind.STAR else draw_quasars
            position = draw(index, seed=seed).position
        is_new = np.arange(len(index)) >= count
        position = position.copy()
        position[is_new, 0] = 1 + ADDED_SHARE * position[is_new, 0]
        ra, dec = footprint.place(position)
        parts.append(
            Sky(
                kind=np.full(len(index), kind, np.int8),
                index=index,
                position=position,
                ra=ra,
                dec=dec,
                fate=np.where(is_new, Fate.ADDED, Fate.UNCHANGED).astype(np.int8),
                change=np.zeros(len(index), np.int8),
            )
        )
    names = [field.name for field in fields(Sky)]
    sky = Sky(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    return _with_fates(sky, seed=seed, release=release) if release > 1 else sky


def share_of(count: int, share: float) -> int:
    """A share of a number of objects, rounded half up."""
    return int(count * share + 0.5)


def assign_changes(sky: Sky, *, seed: int, has_spectrum: NDArray[np.bool_]) -> Sky:
    """Say what is new about every changed object: spectra only where there are any.

    Parameters
    ----------
    has_spectrum
        Whether DESI or SDSS holds the object, shape (n,).
    """
    change = np.zeros(len(sky), np.int8)
    for row in np.flatnonzero(sky.fate == Fate.CHANGED):
        rng = object_rng(seed=seed, index=int(sky.key[row]), stream=_FATE_STREAM)
        choices = [Change.PHOTOMETRY, Change.DEPTH, *[Change.SPECTRUM] * int(has_spectrum[row])]
        change[row] = choices[int(rng.integers(len(choices)))]
    parts = {field.name: getattr(sky, field.name) for field in fields(sky)}
    return Sky(**{**parts, "change": change})


def _with_fates(sky: Sky, *, seed: int, release: int) -> Sky:
    """Choose one field of the first release, and in it who is changed and who is withdrawn."""
    old = np.flatnonzero(sky.fate != Fate.ADDED)
    rng = object_rng(seed=seed, index=release, stream=_FATE_STREAM)
    changed, withdrawn = (share_of(len(old), s) for s in (CHANGED_SHARE, WITHDRAWN_SHARE))
    ra, dec = np.radians(sky.ra[old]), np.radians(sky.dec[old])
    centre = int(rng.integers(len(old)))
    cosine = np.sin(dec) * np.sin(dec[centre])
    cosine += np.cos(dec) * np.cos(dec[centre]) * np.cos(ra - ra[centre])
    revisited = max(share_of(len(old), _REVISITED_SHARE), changed + withdrawn)
    nearest = old[np.argsort(-cosine, kind="stable")[:revisited]]
    chosen = rng.permutation(nearest)[: changed + withdrawn]
    fate = sky.fate.copy()
    fate[chosen[:changed]] = Fate.CHANGED
    fate[chosen[changed:]] = Fate.WITHDRAWN
    parts = {field.name: getattr(sky, field.name) for field in fields(sky)}
    return Sky(**{**parts, "fate": fate})
