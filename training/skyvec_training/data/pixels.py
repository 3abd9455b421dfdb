"""Cutouts of a survey, unpacked once into memory-mapped arrays that training reads at random.

Flux and noise are kept as float16: its rounding (5e-4) is far below the noise of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.codecs.image import CLAMP
from skyvec_core.observations import Images, fit_to_grid
from skyvec_schemas.errors import BandError, ContractError
from skyvec_schemas.survey_columns import ImageColumn, Survey
from skyvec_training.data import parts
from skyvec_training.data.arrays import ArrayWriter, open_arrays

# Shape letters: B object, C band, H W cutout pixels.

ROWS_PER_READ = 256
"""Rows in memory at once while unpacking."""
_Planes = NDArray[Any]
_Cutout = tuple[Sequence[str], _Planes, _Planes, _Planes] | None
"""Band names, flux, inverse variance and mask (C, H, W) of one object; None if it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStore:
    """Cutouts of all objects of a survey, memory-mapped."""

    flux_BCHW: NDArray[np.float16]
    """Flux in the survey's unit, clamped where the codec saturates."""
    sigma_BCHW: NDArray[np.float16]
    """Noise in the same unit; 0 where the pixel is bad."""
    ids: NDArray[np.bytes_]
    bands: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> tuple[Images, Tensor]:
        """Cutouts of some objects, and their noise (B, C, H, W)."""
        sigma_BCHW = torch.from_numpy(self.sigma_BCHW[rows].astype(np.float32))
        images = Images(
            flux_BCHW=torch.from_numpy(self.flux_BCHW[rows].astype(np.float32)),
            good_BCHW=sigma_BCHW > 0,
            bands=self.bands,
        )
        return images, sigma_BCHW


def open_store(folder: Path) -> PixelStore:
    """Open arrays written by `unpack`."""
    arrays, facts = open_arrays(folder)
    return PixelStore(
        flux_BCHW=arrays["flux"],
        sigma_BCHW=arrays["sigma"],
        ids=arrays["ids"],
        bands=tuple(facts["bands"]),
    )


def unpack(
    source: Path, survey: Survey, folder: Path, *, size: int = 96, bands: Sequence[str] = ()
) -> PixelStore:
    """Write the cutouts of a survey as arrays into ``folder``, in the order of its files.

    Parameters
    ----------
    source
        HATS catalog or collection, or a survey folder of the Multimodal Universe.
    bands
        Codec bands to keep, all of which every cutout must have; all of the survey's if absent.

    Raises
    ------
    BandError
        If the survey does not have these bands, or a cutout lacks one.
    MissingColumnError, ContractError
        If cutouts or their inverse variances are missing or malformed.
    """
    column = _column(survey, bands)
    layout = {
        "flux": ("<f2", (len(column.bands), size, size)),
        "sigma": ("<f2", (len(column.bands), size, size)),
        "ids": ("S32", ()),
    }
    with ArrayWriter(folder, layout) as writer:
        for part in parts.parts_of(source):
            batches = _hdf5(part, survey, column) if parts.is_hdf5(part) else _parquet(
                part, survey, column)  # fmt: skip
            for ids, cutouts in batches:
                flux, sigma = fitted(cutouts, column, size=size)
                writer.append(flux=flux, sigma=sigma, ids=parts.ids_of(ids))
        writer.commit(bands=list(column.bands.values()))
    return open_store(folder)


def fitted(
    cutouts: Sequence[_Cutout], column: ImageColumn, *, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flux and noise (B, C, size, size); a pixel without a measurement has neither."""
    clamp = np.array([CLAMP[b] for b in column.bands.values()], np.float32)[:, None, None]
    flux_out = np.zeros((len(cutouts), len(column.bands), size, size), np.float32)
    sigma_out = np.zeros_like(flux_out)
    for row, cutout in enumerate(cutouts):
        if cutout is None:
            continue
        bands, flux, ivar, mask = cutout
        order = _order(bands, column)
        flux, ivar = flux[order], ivar[order]
        good = (mask[order] == column.mask_is_good) & np.isfinite(flux) & (ivar > 0)
        sigma = np.where(good, 1 / np.sqrt(np.where(good, ivar, 1)), 0)
        # HSC files write the largest float as inverse variance where there is no data.
        good &= sigma.astype(np.float16) > 0
        clean = np.clip(np.where(good, flux, 0), -clamp, clamp).astype(np.float32)
        seen = torch.from_numpy(good)
        placed, kept = fit_to_grid(torch.from_numpy(clean), seen, size=size)
        noise, _ = fit_to_grid(torch.from_numpy(sigma.astype(np.float32)), seen, size=size)
        flux_out[row], sigma_out[row] = placed.numpy(), torch.where(kept, noise, 0.0).numpy()
    return flux_out, sigma_out


def _column(survey: Survey, bands: Sequence[str]) -> ImageColumn:
    if survey.image is None:
        raise ContractError(
            "it declares no image column", where=survey.name, remedy="Choose a survey with cutouts"
        )
    known = survey.image.bands
    unknown = sorted(set(bands) - set(known.values()))
    if unknown:
        raise BandError(
            f"it has no band {', '.join(unknown)}",
            where=survey.name,
            remedy=f"Choose among {', '.join(known.values())}",
        )
    kept = {file: band for file, band in known.items() if not bands or band in bands}
    return replace(survey.image, bands=kept)


def _parquet(
    part: Path, survey: Survey, column: ImageColumn
) -> Iterator[tuple[NDArray[Any], list[_Cutout]]]:
    wanted = [survey.id_column, column.name]
    parts.require(part, wanted, remedy="Train the image codec on a catalog with cutouts")
    for batch in pq.ParquetFile(part).iter_batches(ROWS_PER_READ, columns=wanted):
        images = batch[column.name]
        fields = dict(zip((f.name for f in images.type), images.flatten(), strict=True))
        if "ivar" not in fields:
            raise ContractError(
                "its cutouts have no inverse variance",
                where=f"{part}, column {column.name!r}",
                remedy="Training weighs pixels by it: choose a release that has it",
            )
        planes = (_planes(fields[name]) for name in ("flux", "ivar", "mask"))
        found = zip(fields["band"].to_pylist(), *planes, strict=True)
        cutouts = [None if any(x is None for x in cutout) else cutout for cutout in found]
        yield batch[survey.id_column].to_numpy(zero_copy_only=False), cutouts


def _hdf5(
    part: Path, survey: Survey, column: ImageColumn
) -> Iterator[tuple[NDArray[Any], list[_Cutout]]]:
    names = {key: f"{column.name}_{key}" for key in ("band", "array", "ivar", "mask")}
    wanted = [survey.id_column, *names.values()]
    parts.require(part, wanted, remedy="Train the image codec on a survey with cutouts")
    for batch in parts.hdf5_batches(part, wanted, ROWS_PER_READ):
        flux, ivar, mask = (batch[names[key]] for key in ("array", "ivar", "mask"))
        if mask.ndim == 3:  # one for all bands
            mask = np.broadcast_to(mask[:, None], flux.shape)
        if not flux.shape == ivar.shape == mask.shape:
            raise ContractError(
                f"flux, inverse variance and mask are {flux.shape}, {ivar.shape}, {mask.shape}",
                where=f"{part}, column {column.name!r}",
                remedy="Leave malformed cutouts out of training",
            )
        bands = [[str(b, "utf-8") for b in row] for row in batch[names["band"]]]
        yield batch[survey.id_column], list(zip(bands, flux, ivar, mask, strict=True))


def _order(bands: Sequence[str], column: ImageColumn) -> list[int]:
    missing = [band for band in column.bands if band not in bands]
    if missing:
        raise BandError(
            f"bands {', '.join(missing)} are missing; it has {', '.join(bands)}",
            where=column.name,
            remedy=f"Give cutouts in {', '.join(column.bands)}, or name the bands of the source",
        )
    return [list(bands).index(band) for band in column.bands]


def _planes(lists: pa.ListArray) -> Iterator[NDArray[Any] | None]:
    """(C, H, W) of every row of a list<list<list<value>>>, None where null."""
    rows, planes = lists.offsets.to_numpy(), lists.values.offsets.to_numpy()
    lines = lists.values.values.offsets.to_numpy()
    values = lists.values.values.values.to_numpy(zero_copy_only=False)
    absent = lists.is_null().to_numpy(zero_copy_only=False)
    for row in range(len(lists)):
        first, last = rows[row], rows[row + 1]
        if absent[row] or first == last:
            yield None
            continue
        top, bottom = planes[first], planes[last]
        height = planes[first + 1] - top
        flat = values[lines[top] : lines[bottom]]
        shape = (last - first, height, len(flat) // max(1, (last - first) * height))
        if flat.size == 0 or flat.size != shape[0] * shape[1] * shape[2]:
            raise ContractError(
                f"the planes of row {row} differ in shape or are empty",
                where="image",
                remedy="Leave malformed cutouts out of training",
            )
        yield flat.reshape(shape)
