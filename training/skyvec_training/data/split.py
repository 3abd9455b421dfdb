"""Which objects are held out: by what they are, not by where they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.data.permutations import mixed
from skyvec_training.recipe.data import DataRun

Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Consecutive objects, split."""

    held_rows: Rows
    """Held out, ascending."""
    held_keys: NDArray[np.uint64]
    without: Rows
    """Not to be trained on, ascending: held out, or with too few tokens."""
    unusable: int
    """Objects with too few tokens."""


def split(
    *,
    start: int,
    keys: NDArray[np.uint64],
    healpix: NDArray[np.int64],
    usable: Bools,
    run: DataRun,
    where: str,
) -> Split:
    """Split consecutive objects.

    Parameters
    ----------
    start
        Row of the first.
    keys
        Hashes of their ids; see `keys_of_ids`.
    healpix
        Pixels at order 29; -1 where not known.
    usable
        Which have enough tokens.

    Raises
    ------
    ConfigurationError
        If it goes by sky and objects have no place on it.
    """
    words = keys
    if run.held_out_by == "sky":
        if (healpix < 0).any():
            raise ConfigurationError(
                "objects have no _healpix_29, so they cannot be held out by sky",
                where=where,
                remedy='Give catalogs that have the column, or set data.held_out_by = "id"',
            )
        words = mixed((healpix >> 2 * (29 - run.sky_order)).astype(np.uint64))
    held = words < np.uint64(run.held_out * 2.0**64)
    rows = start + np.arange(len(keys))
    return Split(
        held_rows=rows[held & usable],
        held_keys=keys[held & usable],
        without=rows[held | ~usable],
        unusable=int((~usable).sum()),
    )


def held_out_rows(parts: Iterable[Split], run: DataRun, *, where: str) -> Rows:
    """All held-out rows in random order, so that the first of them stand for all.

    Raises
    ------
    ConfigurationError
        If some are asked for and there are none.
    """
    parts = list(parts)
    rows = np.concatenate([part.held_rows for part in parts])
    if run.held_out > 0 and not len(rows):
        raise ConfigurationError(
            f"data.held_out ({run.held_out}) holds out no object",
            where=where,
            remedy="Raise it in the recipe, or give more objects",
        )
    keys = np.concatenate([part.held_keys for part in parts])
    # Their own order is by sky and hash; hashed again, the smallest are no longer special.
    ordered: Rows = rows[np.argsort(mixed(keys), kind="stable")]
    return ordered


def keys_of_ids(ids: Iterable[object]) -> NDArray[np.uint64]:
    """Eight bytes of BLAKE2b over each id as text, without padding: equal in all releases."""
    digests = [hashlib.blake2b(str(i).strip().encode(), digest_size=8).digest() for i in ids]
    return np.frombuffer(b"".join(digests), "<u8")
