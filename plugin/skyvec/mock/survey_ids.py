"""Ids as each survey would give them: unique within it, and known from an object and its place."""

from __future__ import annotations

import numpy as np
from hats.pixel_math.healpix_shim import radec2pix
from numpy.typing import NDArray

from skyvec.mock.galaxies import Floats
from skyvec.mock.sky import Sky

_BRICK = 0.25  # degrees
_FIBRES, _PLATES_PER_KIND = 1000, 5000
_GAIA_ORDER, _GAIA_BITS, _KIND_BITS = 12, 35, 33


def object_ids(keys: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Of the main catalog: unique between surveys of different seeds too (modulo 2^18)."""
    # An odd factor permutes the 44-bit numbers: unique, and as scattered as real ids.
    scattered = (keys * 7_046_029_254_387 + 1_442_695_040_889) & ((1 << 44) - 1)
    return np.asarray(scattered | ((seed + 1) % (1 << 18) << 44), dtype=np.int64)


def bricks(ra: Floats, dec: Floats) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Name and number of the quarter-degree brick of a position, ``1505p022`` and the like."""
    row = np.floor((dec + 90) / _BRICK).astype(np.int64)
    middle = (row + 0.5) * _BRICK - 90
    columns = np.maximum(1, np.floor(360 * np.cos(np.radians(middle)) / _BRICK)).astype(np.int64)
    column = np.minimum(np.floor(ra / 360 * columns).astype(np.int64), columns - 1)
    middle_ra = (column + 0.5) * 360 / columns
    names = [
        f"{int(10 * a):04d}{'p' if d >= 0 else 'm'}{int(10 * abs(d)):03d}"
        for a, d in zip(middle_ra, middle, strict=True)
    ]
    return np.array(names, dtype=np.str_), row * 1440 + column


def legacy_ids(sky: Sky) -> NDArray[np.bytes_]:
    """Brick name and number in it, 16 bytes as the Multimodal Universe stores them."""
    names, _ = bricks(sky.ra, sky.dec)
    texts = [f"{name}-{index}".encode() for name, index in zip(names, sky.index, strict=True)]
    return np.array(texts, dtype="S16")


def hsc_ids(sky: Sky, *, seed: int) -> NDArray[np.int64]:
    """Numbers around 7e16, which no float64 holds exactly."""
    scattered = (sky.key * 5_870_011_262_101 + 2_891_336_453) & ((1 << 44) - 1)
    return np.asarray(70_000_000_000_000_000 + (seed % 256 << 44) + scattered, dtype=np.int64)


def sdss_ids(sky: Sky, *, seed: int) -> NDArray[np.int64]:
    """SPECOBJID: plate, fibre, night and run of the reduction in one number."""
    plate = 266 + sky.kind.astype(np.int64) * _PLATES_PER_KIND + sky.index // _FIBRES
    fibre = 1 + sky.index % _FIBRES
    night = np.int64(1600 + seed % 8000)
    return np.asarray(plate << 50 | fibre << 38 | night << 24 | np.int64(26) << 10)


def padded(ids: NDArray[np.int64]) -> NDArray[np.bytes_]:
    """Ids as SDSS files hold them: 22 bytes, blanks in front."""
    return np.array([f"{number:>22d}".encode() for number in ids], dtype="S22")


def desi_ids(sky: Sky) -> NDArray[np.int64]:
    """TARGETID, with the bit set by which DESI marks simulated targets."""
    _, brick = bricks(sky.ra, sky.dec)
    release = 9010 + sky.kind.astype(np.int64)
    return np.asarray(sky.index | brick << 22 | release << 42 | np.int64(1) << 58)


def gaia_ids(sky: Sky) -> NDArray[np.int64]:
    """The nested HEALPix pixel of order 12 in the upper bits, a number in the lower."""
    pixel = radec2pix(_GAIA_ORDER, sky.ra, sky.dec).astype(np.int64)
    number = sky.kind.astype(np.int64) << _KIND_BITS | sky.index
    return np.asarray(pixel << _GAIA_BITS | number)
