"""How well the image codec gives back held-out cutouts, in physical units, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.codecs.image import ZERO_POINT_SCALE, ImageCodec
from skyvec_training.codecs.codebook import Usage
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.codecs.pictures import new_figure
from skyvec_training.data.pixels import PixelStore

# Shape letters: B object, C band, H W cutout pixels.

ROWS = 32
APERTURE = 12
"""Radius in pixels of the aperture whose flux is compared."""
LEAST_SNR = 10
"""Signal to noise of an aperture's flux above which it is compared."""
MOST = 512
"""Held-out objects of each source that are scored."""


def all_scores(codec: ImageCodec, sources: Sequence[Learnt[PixelStore]]) -> dict[str, object]:
    """`scores` of the first source, and under ``sources`` those of each, by name."""
    each = {s.name: scores(codec, s.store, s.held_out(MOST)) for s in sources}
    return {**next(iter(each.values())), "sources": each}


@torch.inference_mode()
def scores(codec: ImageCodec, store: PixelStore, rows: NDArray[np.int64]) -> dict[str, object]:
    """R^2, chi^2 per pixel and aperture photometry by band, and use of the codebook.

    ``r2`` is over good pixels in flux, so bright pixels decide; ``r2_noise_free`` removes the
    variance of the noise itself from error and total. Of the flux within 12 pixels, where it is
    above 10 sigma, ``aperture_error`` is the median relative error, ``aperture_mag_bias`` the
    median error in magnitudes and ``aperture_mag_error`` the median of its absolute value; None
    where no aperture is that bright.
    """
    sums = {name: np.zeros(len(store.bands)) for name in ("n", "t", "tt", "ee", "chi2", "noise")}
    ratios: list[NDArray[np.float64]] = []
    used = Usage(codec.quantizer.num_codes)
    for start in range(0, len(rows), ROWS):
        images, sigma_BCHW = store.read(rows[start : start + ROWS])
        coded = codec.encode(images)
        used.add(coded)
        found = codec.decode(coded.ids_BN, bands=store.bands).double().numpy()
        true, good = images.flux_BCHW.double().numpy(), images.good_BCHW.numpy()
        sigma = np.where(good, sigma_BCHW.double().numpy(), 1.0)
        error = found - true
        terms = {"n": good, "t": true, "tt": true**2, "ee": error**2,
                 "chi2": (error / sigma) ** 2, "noise": sigma**2}  # fmt: skip
        for name, term in terms.items():
            sums[name] += np.where(good, term, 0.0).sum((0, 2, 3))
        ratios.append(_aperture_ratios(true, found, sigma, good))
    pixels = np.maximum(sums["n"], 1)
    variance = sums["tt"] - sums["t"] ** 2 / pixels
    clean_error = np.maximum(sums["ee"] - sums["noise"], 0.0)
    ratio = np.concatenate(ratios)
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitudes = -2.5 * np.log10(ratio)
        tables = {
            "r2": 1 - sums["ee"] / variance,
            "r2_noise_free": 1 - clean_error / (variance - sums["noise"]),
            "chi2": sums["chi2"] / pixels,
        }
    tables |= {
        "aperture_error": _medians(np.abs(ratio - 1)),
        "aperture_mag_error": _medians(np.abs(magnitudes)),
        "aperture_mag_bias": _medians(magnitudes),
    }
    by_band = {name: _by_band(store.bands, values) for name, values in tables.items()}
    return {"objects": len(rows), **by_band, **used.scores()}


@torch.inference_mode()
def draw(codec: ImageCodec, sources: Sequence[Learnt[PixelStore]], picture: Path) -> None:
    """Draw originals over reconstructions of eight held-out objects of each source."""
    figure = new_figure(16, 4.4 * len(sources))
    panels = figure.subplots(2 * len(sources), 8, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, learnt in enumerate(sources):
        store, rows = learnt.store, learnt.held_out(8)
        images, _ = store.read(rows)
        found_BCHW = codec.decode(codec.encode(images).ids_BN, bands=store.bands)
        for column, row in enumerate(rows):
            for line, flux_BCHW in enumerate((images.flux_BCHW, found_BCHW)):
                colours = _colour(flux_BCHW[column].numpy(), store.bands)
                panels[2 * place + line, column].imshow(colours, origin="lower")
            title = f"{learnt.name} {store.ids[row].decode()}"
            panels[2 * place, column].set_title(title, fontsize=6)
    figure.savefig(picture, dpi=110)


def _colour(flux_CHW: NDArray[np.float32], bands: Sequence[str]) -> NDArray[np.float32]:
    """(H, W, 3) of the z, r and g planes, or of the first plane where one is missing."""
    survey = bands[0].split("-")[0]
    wanted = [f"{survey}-{band}" for band in "ZRG"]
    known = set(wanted) <= set(bands)
    planes = [flux_CHW[bands.index(b)] if known else flux_CHW[0] for b in wanted]
    stretched = [
        np.arcsinh(plane / ZERO_POINT_SCALE[survey] * weight / 0.02)
        for plane, weight in zip(planes, (0.5, 1.0, 1.6), strict=True)
    ]
    return np.clip((np.stack(stretched, axis=-1) + 0.5) / 4.5, 0, 1)


def _aperture_ratios(
    true: NDArray[np.float64],
    found: NDArray[np.float64],
    sigma: NDArray[np.float64],
    good: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Flux again over flux (B, C) within the aperture; NaN where that is too faint."""
    axis = np.arange(true.shape[-1]) - (true.shape[-1] - 1) / 2
    inside = good & (np.hypot(axis[:, None], axis[None, :]) <= APERTURE)
    flux, again = (np.where(inside, x, 0).sum((2, 3)) for x in (true, found))
    noise = np.sqrt(np.where(inside, sigma**2, 0).sum((2, 3)))
    bright = flux > LEAST_SNR * noise
    return np.where(bright, again / np.where(flux > 0, flux, 1), np.nan)


def _medians(values_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each column; NaN in one without numbers."""
    columns = (column[~np.isnan(column)] for column in values_BC.T)
    return np.array([np.median(c) if c.size else np.nan for c in columns])


def _by_band(bands: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    rounded = [round(float(v), 5) if np.isfinite(v) else None for v in values]
    return dict(zip(bands, rounded, strict=True))
