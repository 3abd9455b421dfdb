"""What a spectrum file holds, as arrays of one kind whatever the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.io import fits
from numpy.typing import NDArray

from skyvec.releases.fits.files import naming
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.survey_columns import SpectrumColumn

LEAST_IVAR = 1e-6
"""At or below, a sample carries no information (as in the Multimodal Universe)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileObjects:
    """Who is in a spectrum file; n rows in file order."""

    ids: NDArray[Any]
    """As in the file."""
    ra: NDArray[np.float64]
    """Degrees; anything where unknown."""
    dec: NDArray[np.float64]
    z: NDArray[np.float64]
    """Redshift, NaN where the pipeline warns of it or has none."""
    reasons: Mapping[int, str]
    """Row that cannot be used -> why."""
    beside: tuple[Path, ...] = ()
    """Other files that this was read from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumArrays:
    """k spectra of L samples each; wavelength -1 fills a row up."""

    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]
    bad: NDArray[np.bool_]
    """True where a sample must not be used."""
    wavelength: NDArray[np.float32]
    """Angstrom in vacuum."""

    def take(self, rows: NDArray[np.int64]) -> SpectrumArrays:
        """Some of them, in this order."""
        return SpectrumArrays(
            flux=self.flux[rows], ivar=self.ivar[rows], bad=self.bad[rows],
            wavelength=self.wavelength[rows],
        )  # fmt: skip


def stack_spectra(parts: Sequence[SpectrumArrays]) -> SpectrumArrays:
    """Spectra one after the other, shorter ones filled up at their end."""
    longest = max(part.flux.shape[1] for part in parts)
    filling = {"flux": 0, "ivar": 0, "bad": True, "wavelength": -1}
    padded = {
        name: np.concatenate(
            [
                np.pad(values, ((0, 0), (0, longest - values.shape[1])), constant_values=fill)
                for values in (getattr(part, name) for part in parts)
            ]
        )
        for name, fill in filling.items()
    }
    return replace(parts[0], **padded)


def column_of(table: fits.FITS_rec, names: Sequence[str], path: Path) -> NDArray[Any]:
    """The first of these columns that is there, in native byte order.

    Raises
    ------
    MissingColumnError
        If none is; it names them and the file.
    """
    known = {name.upper() for name in table.columns.names}
    for name in names:
        if name.upper() in known:
            with naming(path):
                values = np.asarray(table[name])
                return values.astype(values.dtype.newbyteorder("="))
    raise MissingColumnError(
        f"no column {' or '.join(names)}", where=str(path), remedy="Fetch the right file"
    )


def check_flux_unit(text: object, column: SpectrumColumn, path: Path) -> None:
    """Refuse a flux density in another unit than the survey's; a file may say nothing."""
    if not text:
        return
    try:
        factor = _unit(str(text)).to(_unit(column.unit))
    except (ValueError, TypeError, units.UnitConversionError):
        factor = 0.0
    if abs(factor - 1) > 1e-6:
        raise ContractError(
            f"its flux is in {text!r} where the survey has {column.unit}",
            where=str(path),
            remedy="Choose the right survey, or bring the file to that unit",
        )


@lru_cache(maxsize=64)
def _unit(text: str) -> units.UnitBase:
    with naming(Path()):
        # SDSS writes Ang, which no standard knows.
        words = text.replace("Angstrom", "Ang").replace("Ang", "Angstrom")
        return units.Unit(words)
