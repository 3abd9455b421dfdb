"""What the files of the Multimodal Universe call things and how its builders type them.

Sources: builders and loaders of the Multimodal Universe v1 (legacysurvey, hsc, sdss, desi, gaia).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from skyvec_schemas.survey_columns import Survey

ORDER = 4
"""HEALPix order of the ``healpix=P`` folders (NSIDE 16, nested)."""
PIXELS = 12 * 4**ORDER
"""Folders that there can be."""
SUFFIXES = frozenset({".hdf5", ".h5"})
"""How the names of files with objects end."""
HEALPIX = "healpix"
"""Column that repeats the number of the folder, and the folder's own prefix."""
IDS = ("object_id", "source_id", "TARGETID")
"""Names of the id, the usual one first."""

_SPECTRUM = {"flux": "<f4", "ivar": "<f4", "mask": "?", "lambda": "<f4", "lsf_sigma": "<f4"}
_STAMPS = {"array": "<f4", "ivar": "<f4", "mask": "?", "psf_fwhm": "<f4",
           "scale": "<f4"}  # fmt: skip
_STAMP_COLUMNS = {f"image_{name}": dtype for name, dtype in _STAMPS.items()}
_SPECTRUM_COLUMNS = {f"spectrum_{name}": dtype for name, dtype in _SPECTRUM.items()}

DTYPES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "legacysurvey": {**_STAMP_COLUMNS},
        "hsc": {"object_id": "<i8", **_STAMP_COLUMNS},
        "sdss": {**_SPECTRUM_COLUMNS, "Z": ">f4"},
        "desi": {"object_id": "<i8", **_SPECTRUM_COLUMNS, "Z": "<f8"},
        "gaia": {"source_id": "<i8", "coeff": "<f4", "coeff_error": "<f4"},
    }
)
"""Survey -> column -> dtype, where the builders fix one. Text keeps the width that it comes with."""


def id_name(survey: Survey, names: Collection[str]) -> str | None:
    """The id column of a file that holds ``names``; None if it has none."""
    return pick((survey.id_column, *IDS), names)


def image_name(survey: Survey, names: Collection[str]) -> str | None:
    """The dataset of the cutouts: ``image_array``, or ``image_flux`` as in JWST."""
    if survey.image is None:
        return None
    return pick((f"{survey.image.name}_array", f"{survey.image.name}_flux"), names)


def pick(wanted: Sequence[str], names: Collection[str]) -> str | None:
    """First of ``wanted`` that is there; an exact name before one that differs in case only.

    Files hold both ``ra`` and ``RA``, and builders of different years wrote ``z`` and ``Z``.
    """
    for name in wanted:
        if name in names:
            return name
    lowered: dict[str, str] = {}
    for name in sorted(names):
        lowered.setdefault(name.lower(), name)
    return next((lowered[name.lower()] for name in wanted if name.lower() in lowered), None)


def dtype_of(survey: Survey, column: str, found: np.dtype) -> np.dtype:
    """The dtype under which a column is written: the builder's, else the one it came with."""
    fixed = DTYPES.get(survey.name, {}).get(column)
    return found if fixed is None else np.dtype(fixed)
