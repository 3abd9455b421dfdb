"""Spectra of a survey, unpacked once into memory-mapped arrays that training reads at random.

Spectra without one good sample are left out: there is nothing to learn from them. Flux stays
float32, since bright stars and faint galaxies together span more than float16 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from skyvec_core.observations import Spectra
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.survey_columns import SpectrumColumn, Survey
from skyvec_training.data import parts
from skyvec_training.data.arrays import ArrayWriter, open_arrays

# Shape letters: B object, L sample of a spectrum.

ROWS_PER_READ = 256
"""Rows in memory at once while unpacking."""
NO_WAVELENGTH = -1.0
"""Fills the rows of shorter spectra up at their end."""
_FIELDS = ("flux", "ivar", "mask", "lambda")
_Samples = dict[str, NDArray[Any]]
"""Fields (B, L) of some rows, filled up with wavelengths that are not positive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumStore:
    """Usable spectra of a survey, memory-mapped."""

    flux_BL: NDArray[np.float32]
    """Flux density in the survey's unit; 0 where not finite."""
    ivar_BL: NDArray[np.float32]
    """Inverse variance; 0 where there is no information."""
    good_BL: NDArray[np.bool_]
    wavelength_BL: NDArray[np.float32]
    """Angstrom, ascending; -1 in the filling at the end."""
    ids: NDArray[np.bytes_]
    left_out: int
    """Spectra that were not usable."""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> Spectra:
        """Spectra of some objects."""
        return Spectra(
            flux_BL=torch.from_numpy(self.flux_BL[rows]),
            ivar_BL=torch.from_numpy(self.ivar_BL[rows]),
            good_BL=torch.from_numpy(self.good_BL[rows]),
            wavelength_BL=torch.from_numpy(self.wavelength_BL[rows]),
        )


def open_store(folder: Path) -> SpectrumStore:
    """Open arrays written by `unpack`."""
    arrays, facts = open_arrays(folder)
    return SpectrumStore(
        flux_BL=arrays["flux"],
        ivar_BL=arrays["ivar"],
        good_BL=arrays["good"],
        wavelength_BL=arrays["wavelength"],
        ids=arrays["ids"],
        left_out=int(facts["left_out"]),
    )


def unpack(source: Path, survey: Survey, folder: Path) -> SpectrumStore:
    """Write the usable spectra of a survey as arrays into ``folder``, in the order of its files.

    Raises
    ------
    ConfigurationError
        If the survey has no spectra, or none of them is usable.
    MissingColumnError, ContractError
        If columns are missing or differ in shape.
    """
    if survey.spectrum is None:
        raise ConfigurationError(
            "it declares no spectra", where=survey.name, remedy="Choose a survey with spectra"
        )
    found = parts.parts_of(source)
    length = max(_longest(part, survey.spectrum) for part in found)
    layout = {
        **dict.fromkeys(("flux", "ivar", "wavelength"), ("<f4", (length,))),
        "good": ("?", (length,)),
        "ids": ("S32", ()),
    }
    left_out = 0
    with ArrayWriter(folder, layout) as writer:
        for part in found:
            for ids, samples in _batches(part, survey, survey.spectrum, length):
                arrays, usable = cleaned(samples, mask_is_good=survey.spectrum.mask_is_good)
                left_out += int((~usable).sum())
                writer.append(
                    **{k: v[usable] for k, v in arrays.items()}, ids=parts.ids_of(ids)[usable]
                )
        writer.commit(left_out=left_out)
    return open_store(folder)


def cleaned(
    samples: _Samples, *, mask_is_good: bool
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Arrays of a store, and which rows (B,) are usable.

    Filling moves to the end of its row; a row whose wavelengths do not ascend, or that has no good
    sample, is not usable.
    """
    wave = samples["lambda"].astype(np.float32)
    flux, ivar = samples["flux"].astype(np.float32), samples["ivar"].astype(np.float32)
    real = np.isfinite(wave) & (wave > 0)
    finite = np.isfinite(flux)
    informed = finite & np.isfinite(ivar) & (ivar > 0)
    good = real & informed & (samples["mask"].astype(bool) == mask_is_good)
    order = np.argsort(~real, axis=1, kind="stable")
    arrays = {
        "flux": np.where(finite & real, flux, 0),
        "ivar": np.where(informed & real, ivar, 0),
        "wavelength": np.where(real, wave, NO_WAVELENGTH).astype(np.float32),
        "good": good,
    }
    arrays = {name: np.take_along_axis(values, order, axis=1) for name, values in arrays.items()}
    wave, kept = arrays["wavelength"], np.take_along_axis(real, order, axis=1)
    ascends = ((np.diff(wave, axis=1) > 0) | ~kept[:, 1:]).all(axis=1)
    return arrays, ascends & good.any(axis=1)


def _longest(part: Path, column: SpectrumColumn) -> int:
    """Most samples of a spectrum in a part."""
    if parts.is_hdf5(part):
        name = f"{column.name}_lambda"
        parts.require(part, [name], remedy="Train the spectrum codec on a survey with spectra")
        return parts.shape_of(part, name)[-1]
    parts.require(part, [column.name], remedy="Train the spectrum codec on a survey with spectra")
    lengths = [0]
    for batch in pq.ParquetFile(part).iter_batches(
        ROWS_PER_READ, columns=[f"{column.name}.lambda"]
    ):
        counts = pc.list_value_length(pc.struct_field(batch[column.name], "lambda"))
        lengths.append(pc.max(counts).as_py() or 0)
    return max(lengths)


def _batches(
    part: Path, survey: Survey, column: SpectrumColumn, length: int
) -> Iterator[tuple[NDArray[Any], _Samples]]:
    remedy = "Training weighs samples by ivar and mask: choose a release that has them"
    if parts.is_hdf5(part):
        names = {key: f"{column.name}_{key}" for key in _FIELDS}
        wanted = [survey.id_column, *names.values()]
        parts.require(part, wanted, remedy=remedy)
        for batch in parts.hdf5_batches(part, wanted, ROWS_PER_READ):
            found = {key: _filled(batch[name], length, key) for key, name in names.items()}
            yield batch[survey.id_column], _equal(found, part)
        return
    wanted = [survey.id_column, column.name]
    parts.require(part, wanted, remedy=remedy)
    for batch in pq.ParquetFile(part).iter_batches(ROWS_PER_READ, columns=wanted):
        spectra = batch[column.name]
        fields = dict(zip((f.name for f in spectra.type), spectra.flatten(), strict=True))
        if missing := sorted(set(_FIELDS) - fields.keys()):
            raise ContractError(
                f"its spectra have no {', '.join(missing)}",
                where=f"{part}, column {column.name!r}",
                remedy=remedy,
            )
        found = {key: _rows(fields[key], length, key) for key in _FIELDS}
        yield batch[survey.id_column].to_numpy(zero_copy_only=False), _equal(found, part)


def _rows(lists: pa.ListArray, length: int, key: str) -> NDArray[Any]:
    """(B, length) of a list column; null and short rows are filled up."""
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    inside = np.arange(length) < counts[:, None]
    if counts.max(initial=0) > length:
        raise ContractError(
            f"{key} is longer than lambda",
            where="spectrum",
            remedy="Every sample needs a flux, an inverse variance and a wavelength",
        )
    out = np.full((len(counts), length), _filling(key), values.dtype)
    out[inside] = values
    return out


def _filled(values: NDArray[Any], length: int, key: str) -> NDArray[Any]:
    if values.ndim != 2:
        raise ContractError(
            f"{key} has {values.ndim} axes where (objects, samples) are needed",
            where="spectrum",
            remedy="Choose a release with one spectrum for each object",
        )
    empty = ((0, 0), (0, length - values.shape[1]))
    return np.pad(values, empty, constant_values=_filling(key)) if empty[1][1] > 0 else values


def _filling(key: str) -> float:
    return NO_WAVELENGTH if key == "lambda" else 0


def _equal(samples: _Samples, part: Path) -> _Samples:
    shapes = {key: values.shape for key, values in samples.items()}
    if len(set(shapes.values())) > 1:
        raise ContractError(
            f"the parts of its spectra differ in shape: {shapes}",
            where=str(part),
            remedy="Every sample needs a flux, an inverse variance and a wavelength",
        )
    return samples
