"""How well the spectrum codec gives back held-out spectra, in physical units, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from skyvec_core.codecs.spectrum import SpectrumCodec
from skyvec_training.codecs.codebook import Usage
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.codecs.pictures import new_figure
from skyvec_training.data.spectra import SpectrumStore

# Shape letters: B object, L sample of a spectrum.

ROWS = 32
MOST = 512
"""Held-out spectra of each source that are scored."""
LINE_REACH = 8.0
"""Angstrom to either side of a line that its flux is summed over."""
CONTINUUM = 60.0
"""Angstrom to either side within which the median is a line's continuum."""
LEAST_SNR = 15
"""Signal to noise of a line's flux above which it is compared."""
_KMS = 299_792.458
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The strongest emission line of a spectrum."""

    wavelength: float
    """Flux-weighted, in Angstrom."""
    width: float
    """Equivalent width in Angstrom, positive in emission."""
    snr: float


def all_scores(codec: SpectrumCodec, sources: Sequence[Learnt[SpectrumStore]]) -> dict[str, object]:
    """`scores` of each source, by name, and use of the codebook by all of them."""
    used = Usage(codec.quantizer.num_codes)
    each = {s.name: scores(codec, s.store, s.held_out(MOST), used) for s in sources}
    return {"sources": each, **used.scores()}


@torch.inference_mode()
def scores(
    codec: SpectrumCodec, store: SpectrumStore, rows: NDArray[np.int64], used: Usage
) -> dict[str, object]:
    """Scores on good samples that the codec's grid covers, at the survey's own wavelengths.

    ``r2`` pools all samples, so bright spectra decide; ``r2_noise_free`` removes the variance of
    the noise from error and total; ``r2_median`` is the median over spectra. ``chi2`` is per
    sample; 1 would be a perfect guess of the noiseless spectrum, below 1 noise is copied.
    ``mask_auc`` is the area under the curve of bad samples; None if there are none.
    Of emission lines above 15 sigma ``line_width_error`` is the median relative error of the
    equivalent width and ``line_shift`` the median shift in km/s (absolute values), ``lines``
    their number.

    Parameters
    ----------
    used
        Counts the codes of the latents.
    """
    sums = dict.fromkeys(("n", "t", "tt", "ee", "chi2", "noise"), 0.0)
    each: list[float] = []
    bad: list[NDArray[np.bool_]] = []
    chance: list[NDArray[np.float32]] = []
    lines: list[tuple[float, float]] = []
    first, last = (float(codec.latent_grid.wavelength_G[i]) for i in (0, -1))
    for start in range(0, len(rows), ROWS):
        spectra = store.read(rows[start : start + ROWS])
        tokens = codec.encode(spectra)
        used.counts_V += torch.bincount(
            tokens.ids_BN[:, 1:][tokens.valid_BN[:, 1:]], minlength=len(used.counts_V)
        )
        decoded = codec.decode(tokens.ids_BN, spectra.wavelength_BL)
        wave = spectra.wavelength_BL.double().numpy()
        inside = (wave >= first) & (wave <= last)
        good = spectra.good_BL.numpy() & inside
        true, found = spectra.flux_BL.double().numpy(), decoded.flux_BL.double().numpy()
        ivar = np.where(good, spectra.ivar_BL.double().numpy(), 1.0)
        bad.append(~spectra.good_BL.numpy()[inside])
        chance.append(decoded.bad_probability_BL.numpy()[inside])
        for row in range(len(true)):
            kept = good[row]
            if not kept.any():
                continue
            t, f, w = true[row, kept], found[row, kept], ivar[row, kept]
            terms = {"n": np.ones_like(t), "t": t, "tt": t**2, "ee": (f - t) ** 2,
                     "chi2": (f - t) ** 2 * w, "noise": 1 / w}  # fmt: skip
            for name, term in terms.items():
                sums[name] += float(term.sum())
            each.append(1 - terms["ee"].sum() / max(((t - t.mean()) ** 2).sum(), 1e-30))
            line = strongest_line(wave[row, kept], t, w)
            if line is not None and line.snr > LEAST_SNR:
                lines.append(_line_errors(line, wave[row, kept], f))
    variance = sums["tt"] - sums["t"] ** 2 / max(sums["n"], 1)
    clean = max(sums["ee"] - sums["noise"], 0.0)
    is_bad = np.concatenate(bad)
    both = is_bad.any() and not is_bad.all()
    return {
        "objects": len(rows),
        "left_out": store.left_out,
        "r2": _rounded(1 - sums["ee"] / variance),
        "r2_noise_free": _rounded(1 - clean / (variance - sums["noise"])),
        "r2_median": _rounded(float(np.median(each))),
        "chi2": _rounded(sums["chi2"] / max(sums["n"], 1)),
        "mask_auc": _rounded(float(roc_auc_score(is_bad, np.concatenate(chance))))
        if both
        else None,
        "lines": len(lines),
        "line_width_error": _rounded(float(np.median([e for e, _ in lines]))) if lines else None,
        "line_shift": _rounded(float(np.median([s for _, s in lines]))) if lines else None,
    }


def strongest_line(wave: _Floats, flux: _Floats, ivar: _Floats) -> Line | None:
    """The emission line of highest signal to noise; None in too short a spectrum.

    Parameters
    ----------
    wave, flux, ivar
        Good samples of one spectrum (L,), ascending.
    """
    if len(wave) < 2 or wave[-1] - wave[0] < 2 * CONTINUUM:
        return None
    step = np.gradient(wave)
    # A running median on a coarse grid is the continuum well enough to find where the line is.
    knots = np.arange(wave[0], wave[-1], CONTINUUM / 2)
    windows = [flux[slice(*np.searchsorted(wave, (k - CONTINUUM, k + CONTINUUM)))] for k in knots]
    known = [bool(len(w)) for w in windows]
    levels = [float(np.median(w)) for w in windows if len(w)]
    continuum = np.interp(wave, knots[known], levels)
    signal, noise = _running((flux - continuum) * step, wave), _running(step**2 / ivar, wave)
    snr = signal / np.sqrt(noise)
    at = int(np.argmax(snr))
    center = _center(wave, flux - continuum, wave[at])
    return Line(wavelength=center, width=_width(wave, flux, center), snr=float(snr[at]))


@torch.inference_mode()
def draw(codec: SpectrumCodec, sources: Sequence[Learnt[SpectrumStore]], picture: Path) -> None:
    """Draw four held-out spectra of each source, and over them what the codec makes of them."""
    figure = new_figure(12, 8 * len(sources))
    panels = figure.subplots(4 * len(sources), 1, squeeze=False)[:, 0]
    for place, learnt in enumerate(sources):
        rows = learnt.held_out(4)
        spectra = learnt.store.read(rows)
        decoded = codec.decode(codec.encode(spectra).ids_BN, spectra.wavelength_BL)
        for line, row in enumerate(rows):
            axes = panels[4 * place + line]
            good = spectra.good_BL[line].numpy()
            wave = spectra.wavelength_BL[line].numpy()[good]
            flux, found = (x[line].numpy()[good] for x in (spectra.flux_BL, decoded.flux_BL))
            axes.plot(wave, flux, color="0.7", lw=0.5)
            axes.plot(wave, found, color="C3", lw=0.8)
            low, high = np.percentile(flux, (0.5, 99.7))
            axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
            axes.set_title(f"{learnt.name} {learnt.store.ids[row].decode()}", fontsize=7)
            axes.tick_params(labelsize=6)
    panels[-1].set_xlabel("wavelength (Angstrom)", fontsize=7)
    figure.savefig(picture, dpi=110)


def _line_errors(line: Line, wave: _Floats, found: _Floats) -> tuple[float, float]:
    """Relative error of the width and shift in km/s (absolute) of a line in the decoded flux."""
    width = _width(wave, found, line.wavelength)
    near = np.abs(wave - line.wavelength) <= CONTINUUM
    center = _center(wave, found - np.median(found[near]), line.wavelength)
    shift = (center / line.wavelength - 1) * _KMS
    return abs(width / line.width - 1), abs(shift)


def _width(wave: _Floats, flux: _Floats, center: float) -> float:
    """Equivalent width in Angstrom, over `LINE_REACH` to either side."""
    distance = np.abs(wave - center)
    line, near = distance <= LINE_REACH, distance <= CONTINUUM
    level = max(float(np.median(flux[near])), 1e-3)
    return float(((flux[line] - level) * np.gradient(wave)[line]).sum() / level)


def _center(wave: _Floats, excess: _Floats, guess: float) -> float:
    """Mean wavelength of the flux above the continuum near a guess; the guess if there is none."""
    line = np.abs(wave - guess) <= LINE_REACH
    weight = np.maximum(excess[line], 0)
    return float((weight * wave[line]).sum() / weight.sum()) if weight.sum() > 0 else guess


def _running(values: _Floats, wave: _Floats) -> _Floats:
    """Sum of the values within `LINE_REACH` of each wavelength."""
    total = np.concatenate([[0.0], values.cumsum()])
    low = np.searchsorted(wave, wave - LINE_REACH)
    high = np.searchsorted(wave, wave + LINE_REACH, side="right")
    return np.asarray(total[high] - total[low])


def _rounded(value: float) -> float:
    return round(value, 5)
