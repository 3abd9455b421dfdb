"""How well a codec gives back held-out cutouts, in physical units, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.codecs.image import ImageCodec
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.data.pixels import PixelStore

# Shape letters: B object, C band, H W cutout pixels.

ROWS = 32
APERTURE = 12
"""Radius in pixels of the aperture whose flux is compared."""


@torch.inference_mode()
def scores(codec: ImageCodec, store: PixelStore, rows: NDArray[np.int64]) -> dict[str, object]:
    """R^2, chi^2 per pixel and aperture flux error by band, and use of the codebook.

    ``r2`` is over good pixels in flux, so bright pixels decide; ``r2_noise_free`` removes the
    variance of the noise itself from error and total; ``aperture_error`` is the median relative
    error of the flux within 12 pixels where that flux is above 10 sigma.
    """
    sums = {name: np.zeros(len(store.bands)) for name in ("n", "t", "tt", "ee", "chi2", "noise")}
    apertures: list[NDArray[np.float64]] = []
    used = torch.zeros(codec.quantizer.num_codes, dtype=torch.int64)
    for start in range(0, len(rows), ROWS):
        images, sigma_BCHW = store.read(rows[start : start + ROWS])
        coded = codec.encode(images)
        used += torch.bincount(coded.ids_BN[coded.valid_BN], minlength=len(used))
        found = codec.decode(coded.ids_BN, bands=store.bands).double().numpy()
        true, good = images.flux_BCHW.double().numpy(), images.good_BCHW.numpy()
        sigma = np.where(good, sigma_BCHW.double().numpy(), 1.0)
        error = found - true
        terms = {"n": good, "t": true, "tt": true**2, "ee": error**2,
                 "chi2": (error / sigma) ** 2, "noise": sigma**2}  # fmt: skip
        for name, term in terms.items():
            sums[name] += np.where(good, term, 0.0).sum((0, 2, 3))
        apertures.append(_aperture_errors(true, found, sigma, good))
    variance = sums["tt"] - sums["t"] ** 2 / sums["n"]
    clean_error = np.maximum(sums["ee"] - sums["noise"], 0.0)
    frequency = (used / used.sum()).double()
    entropy = -(frequency * torch.where(frequency > 0, frequency, 1.0).log()).sum()
    return {
        "objects": len(rows),
        "r2": _by_band(store.bands, 1 - sums["ee"] / variance),
        "r2_noise_free": _by_band(store.bands, 1 - clean_error / (variance - sums["noise"])),
        "chi2": _by_band(store.bands, sums["chi2"] / sums["n"]),
        "aperture_error": _by_band(store.bands, np.nanmedian(np.concatenate(apertures), axis=0)),
        "codes_used": int((used > 0).sum()),
        "codes": codec.quantizer.num_codes,
        "perplexity": float(entropy.exp()),
    }


@torch.inference_mode()
def draw(codec: ImageCodec, store: PixelStore, rows: NDArray[np.int64], picture: Path) -> None:
    """Draw originals over reconstructions of some objects (r band, arcsinh); needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "matplotlib is not installed", where="picture", remedy="pip install matplotlib"
        ) from error
    images, _ = store.read(rows)
    found_BCHW = codec.decode(codec.encode(images).ids_BN, bands=store.bands)
    figure = Figure(figsize=(2 * len(rows), 4.4), layout="constrained")
    panels = figure.subplots(2, len(rows), squeeze=False)
    for column in range(len(rows)):
        for line, flux_BCHW in enumerate((images.flux_BCHW, found_BCHW)):
            panels[line, column].imshow(_colour(flux_BCHW[column].numpy()), origin="lower")
            panels[line, column].set_axis_off()
        panels[0, column].set_title(str(store.ids[rows[column]]), fontsize=6)
    figure.savefig(picture, dpi=110)


def _colour(flux_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 3) of the z, r and g planes, or of the first plane where there are fewer."""
    planes = [flux_CHW[i] for i in ((3, 1, 0) if len(flux_CHW) >= 4 else (0, 0, 0))]
    stretched = np.stack([np.arcsinh(p * w / 0.02) for p, w in zip(planes, (0.5, 1.0, 1.6),
                                                                  strict=True)], axis=-1)  # fmt: skip
    return np.clip((stretched + 0.5) / 4.5, 0, 1)


def _aperture_errors(
    true: NDArray[np.float64],
    found: NDArray[np.float64],
    sigma: NDArray[np.float64],
    good: NDArray[np.bool_],
) -> NDArray[np.float64]:
    axis = np.arange(true.shape[-1]) - (true.shape[-1] - 1) / 2
    inside = good & (np.hypot(axis[:, None], axis[None, :]) <= APERTURE)
    flux, again = (np.where(inside, x, 0).sum((2, 3)) for x in (true, found))
    noise = np.sqrt(np.where(inside, sigma**2, 0).sum((2, 3)))
    return np.where(flux > 10 * noise, np.abs(again - flux) / np.where(flux > 0, flux, 1), np.nan)


def _by_band(bands: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {band: round(float(value), 5) for band, value in zip(bands, values, strict=True)}
