"""Cutouts of a catalog, unpacked once into memory-mapped arrays that training reads at random.

Flux and noise are kept as float16: its rounding (5e-4) is far below the noise of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from skyvec_training.data.leaves import leaves_of, require_columns

# Shape letters: B object, C band, H W cutout pixels.

ROWS_PER_READ = 256
"""Rows in memory at once while unpacking."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStore:
    """Cutouts of all objects of a survey, memory-mapped."""

    flux_BCHW: NDArray[np.float16]
    """Flux in the survey's unit, clamped where the codec saturates."""
    sigma_BCHW: NDArray[np.float16]
    """Noise in the same unit; 0 where the pixel is bad."""
    ids: NDArray[np.int64]
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
    return PixelStore(
        flux_BCHW=np.load(folder / "flux.npy", mmap_mode="r"),
        sigma_BCHW=np.load(folder / "sigma.npy", mmap_mode="r"),
        ids=np.load(folder / "ids.npy"),
        bands=tuple((folder / "bands.txt").read_text().split()),
    )


def unpack(catalog: Path, survey: Survey, folder: Path, *, size: int = 96) -> PixelStore:
    """Write the cutouts of a catalog as arrays into ``folder``, in the order of its leaves."""
    leaves = leaves_of(catalog)
    column = _image_column(survey)
    for leaf in leaves:
        require_columns(leaf, [survey.id_column, column.name],
                        remedy="Train the image codec on a catalog with cutouts")  # fmt: skip
    shape = (sum(pq.read_metadata(leaf).num_rows for leaf in leaves), len(column.bands), size, size)
    folder.mkdir(parents=True, exist_ok=True)
    flux = np.lib.format.open_memmap(folder / "flux.npy", "w+", np.float16, shape)
    sigma = np.lib.format.open_memmap(folder / "sigma.npy", "w+", np.float16, shape)
    ids: list[NDArray[np.int64]] = []
    start = 0
    for leaf in leaves:
        for batch in pq.ParquetFile(leaf).iter_batches(
            ROWS_PER_READ, columns=[survey.id_column, column.name]
        ):
            stop = start + len(batch)
            flux[start:stop], sigma[start:stop] = cutouts(batch[column.name], column, size=size)
            ids.append(batch[survey.id_column].to_numpy(zero_copy_only=False))
            start = stop
    flux.flush()
    sigma.flush()
    np.save(folder / "ids.npy", np.concatenate(ids))
    (folder / "bands.txt").write_text(" ".join(column.bands.values()))
    return open_store(folder)


def cutouts(
    images: pa.StructArray, column: ImageColumn, *, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flux and noise (B, C, size, size) of an image column; a null cutout is bad throughout."""
    fields = dict(zip((f.name for f in images.type), images.flatten(), strict=True))
    clamp = np.array([CLAMP[b] for b in column.bands.values()], np.float32)[:, None, None]
    flux_out = np.zeros((len(images), len(column.bands), size, size), np.float32)
    sigma_out = np.zeros_like(flux_out)
    planes = zip(
        fields["band"].to_pylist(),
        _planes(fields["flux"]),
        _planes(fields["ivar"]),
        _planes(fields["mask"]),
        strict=True,
    )
    for row, (bands, flux, ivar, mask) in enumerate(planes):
        if flux is None or ivar is None or mask is None:
            continue
        order = _order(bands, column)
        good = mask[order] & np.isfinite(flux[order]) & (ivar[order] > 0)
        sigma = np.where(good, 1 / np.sqrt(np.where(good, ivar[order], 1)), 0)
        clean = np.clip(np.where(good, flux[order], 0), -clamp, clamp).astype(np.float32)
        fitted, kept = fit_to_grid(torch.from_numpy(clean), torch.from_numpy(good), size=size)
        noise, _ = fit_to_grid(torch.from_numpy(sigma), torch.from_numpy(good), size=size)
        flux_out[row], sigma_out[row] = fitted.numpy(), torch.where(kept, noise, 0.0).numpy()
    return flux_out, sigma_out


def _image_column(survey: Survey) -> ImageColumn:
    if survey.image is None:
        raise ContractError(
            "it declares no image column", where=survey.name, remedy="Choose a survey with cutouts"
        )
    return survey.image


def _order(bands: Sequence[str], column: ImageColumn) -> list[int]:
    missing = [band for band in column.bands if band not in bands]
    if missing:
        raise BandError(
            f"bands {', '.join(missing)} are missing; it has {', '.join(bands)}",
            where=column.name,
            remedy=f"Give cutouts in {', '.join(column.bands)}",
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
