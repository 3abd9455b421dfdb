"""Why a vector is absent or doubtful: one status word and one bit for each reason."""

from __future__ import annotations

from collections import Counter
from enum import IntFlag, StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Status(StrEnum):
    """What came of one row; stored in ``<name>_status``."""

    OK = "ok"
    """Embedded from every modality that the survey declares."""
    PARTIAL = "partial"
    """Embedded, but from less than the survey declares; the flags say what was missing."""
    FAILED = "failed"
    """Not embedded: the vector is null and the flags say why."""


class Flag(IntFlag):
    """Reasons; stored as bits in ``<name>_flags`` (int32)."""

    IMAGE_MISSING = 1
    """The cutout is null."""
    IMAGE_PADDED = 2
    """The cutout is smaller than the codec's window; the rest was masked, never stretched."""
    IMAGE_BAD_PIXELS = 4
    """Some pixels are NaN, infinite or masked and read as sky; alone it leaves the status ok."""
    IMAGE_UNUSABLE = 8
    """Fewer than half of the cutout's own pixels are good, so no vector was made."""
    IMAGE_WRONG_BANDS = 16
    """The bands are not those of the survey, so no vector was made."""
    IMAGE_MALFORMED = 32
    """The planes of the cutout differ in shape or are empty, so no vector was made."""
    SCALAR_MISSING = 64
    """At least one declared scalar is null, NaN or infinite."""
    NO_INPUT = 128
    """Nothing at all was observed, so no vector was made."""
    ID_MISSING = 256
    """The id is null; the vector cannot be joined back."""
    IMAGE_TOKENS_DROPPED = 512
    """More than half of the pixels under some token are bad, so that token was left out."""
    SPECTRUM_MISSING = 1024
    """No spectrum was found for the object."""
    SPECTRUM_BAD_SAMPLES = 2048
    """Some samples are masked, NaN or without weight; alone it leaves the status ok."""
    SPECTRUM_UNUSABLE = 4096
    """No sample carries information; the spectrum counts as missing."""
    SPECTRUM_MALFORMED = 8192
    """Its parts differ in length, or wavelengths do not ascend in Angstrom, so no vector was made."""
    COEFFICIENTS_MISSING = 16384
    """No coefficients were found, or all are zero."""
    POSITION_INVALID = 32768
    """Right ascension or declination is not a place on the sky, so nothing was joined by position."""
    MATCH_AMBIGUOUS = 65536
    """Several objects of a source lie within the radius; at most the nearest was taken. Alone it
    leaves the status ok."""
    SOURCE_DUPLICATE = 131072
    """The id occurs more than once in a source, so nothing was taken from it."""


FATAL = (
    Flag.IMAGE_UNUSABLE
    | Flag.IMAGE_WRONG_BANDS
    | Flag.IMAGE_MALFORMED
    | Flag.SPECTRUM_MALFORMED
    | Flag.NO_INPUT
    | Flag.ID_MISSING
)
"""Any of these leaves the vector null."""

INFORMATIVE = Flag.IMAGE_BAD_PIXELS | Flag.SPECTRUM_BAD_SAMPLES | Flag.MATCH_AMBIGUOUS
"""These alone do not make a row partial."""


@lru_cache(maxsize=256)
def status_of(flags: int) -> Status:
    """The status that these reasons amount to."""
    if flags & FATAL:
        return Status.FAILED
    return Status.PARTIAL if flags & ~INFORMATIVE else Status.OK


@lru_cache(maxsize=256)
def reason_names(flags: int) -> tuple[str, ...]:
    """Lower-case names of the reasons, as records count them."""
    return tuple(flag.name.lower() for flag in Flag if flag & flags and flag.name)


def reasons(flags: int) -> tuple[str, ...]:
    """Names of the reasons, for people."""
    return tuple(name.replace("_", " ") for name in reason_names(flags))


def count_reasons(flags: NDArray[np.int32]) -> Counter[str]:
    """Rows by `reason_names`."""
    found: Counter[str] = Counter()
    if not flags.any():
        return found
    kinds, counts = np.unique(flags, return_counts=True)
    for bits, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        found.update(dict.fromkeys(reason_names(bits), count))
    return found
