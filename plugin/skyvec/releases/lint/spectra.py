"""Checks on spectra: wavelengths, mask polarity, flux scale, whether ivar is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec.releases.lint.finding import Finding
from skyvec.releases.lint.subject import Row, Subject, floats, share

Floats = NDArray[np.float64]

MIN_SPECTRA = 3
"""One bad spectrum is no bad release."""
GRID = (3500.0, 10462.4)
"""Angstrom that the codec sees; samples beyond are dropped."""
USUAL_CHI = (0.2, 5.0)
"""Scatter of neighbouring samples over what ivar allows; 0.6 to 1.1 in real DESI and SDSS spectra.
Beyond, another reading of ivar may fit."""
POSSIBLE_CHI = (0.02, 30.0)
"""Beyond, nothing natural is left: oversampling gives less, the lines of bright stars more."""
_FITTING_CHI = (0.5, 1.6)
_FAINTEST, _BRIGHTEST = 1e-8, 1e7  # of 1e-17 erg/s/cm2/A; a star of 12 mag has 1e4


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spectrum:
    row: Row
    flux: Floats
    ivar: Floats | None
    mask: NDArray[Any] | None
    wave: Floats
    """Real samples only, in every array."""
    filled: int


def _spectra(subject: Subject) -> list[_Spectrum]:
    """Spectra whose parts fit each other, without the samples that fill a row up."""
    found = []
    for row, flux in subject.rows("spectrum.flux"):
        wave = row.array("spectrum.lambda")
        if wave is None or wave.shape != flux.shape or flux.ndim != 1:
            continue
        wave = floats(wave)
        real = np.isfinite(wave) & (wave > 0)
        ivar, mask = row.array("spectrum.ivar"), row.array("spectrum.mask")
        found.append(
            _Spectrum(
                row=row,
                flux=floats(flux)[real],
                ivar=None if ivar is None or ivar.shape != flux.shape else floats(ivar)[real],
                mask=None if mask is None or mask.shape != flux.shape else mask[real],
                wave=wave[real],
                filled=int((~real).sum()),
            )
        )
    return found


def lengths(subject: Subject) -> Iterator[Finding]:
    """Parts that are absent, or unlike the flux in length."""
    column = subject.survey.spectrum
    rows = list(subject.rows("spectrum.flux"))
    if not column or not rows:
        return
    for name, needed in (("lambda", True), ("ivar", True), ("mask", False)):
        parts = [(row, flux, row.array(f"spectrum.{name}")) for row, flux in rows]
        if all(part is None for *_, part in parts):
            if needed:
                yield subject.finding(
                    "error", "columns", f"spectra have no {name}", where=rows[0][0].file,
                    column=column.name, remedy="Map a column to it, or leave the spectra out",
                )  # fmt: skip
            continue
        odd = [(r, f, p) for r, f, p in parts if p is not None and p.shape != f.shape]
        if odd:
            row, flux, part = odd[0]
            yield subject.finding(
                "error" if len(odd) == len(rows) else "warning", "spectrum length",
                f"{name} has {part.size} samples where flux has {flux.size}", where=row, column=name,
                remedy="Every sample needs its own", evidence={"rows": len(odd), "of": len(rows)},
            )  # fmt: skip


def wavelengths(subject: Subject) -> Iterator[Finding]:
    """Order, unit, range and filling of the wavelengths."""
    spectra = _spectra(subject)
    if not spectra:
        return
    empty = [s for s in spectra if not len(s.wave)]
    if empty:
        yield subject.finding(
            "error" if len(empty) == len(spectra) >= MIN_SPECTRA else "warning", "wavelength",
            f"{len(empty):,} of {len(spectra):,} spectra have no wavelength above 0",
            where=empty[0].row, column="lambda", remedy="Read as missing",
            evidence={"rows": len(empty)},
        )  # fmt: skip
    spectra = [s for s in spectra if len(s.wave) > 1]
    if not spectra:
        return
    down = [s for s in spectra if (np.diff(s.wave) < 0).all()]
    mixed = [s for s in spectra if (np.diff(s.wave) <= 0).any() and not (np.diff(s.wave) < 0).all()]
    for odd, what in ((down, "descend"), (mixed, "do not ascend")):
        if odd:
            yield subject.finding(
                "error" if len(odd) > 0.5 * len(spectra) else "warning", "wavelength",
                f"wavelengths of {len(odd):,} of {len(spectra):,} spectra {what}",
                where=odd[0].row, column="lambda", remedy="Sort every spectrum by wavelength",
                evidence={"rows": len(odd), "of": len(spectra)},
            )  # fmt: skip
    yield from _wavelength_unit(subject, spectra)


def _wavelength_unit(subject: Subject, spectra: list[_Spectrum]) -> Iterator[Finding]:
    low = float(np.median([s.wave.min() for s in spectra]))
    high = float(np.median([s.wave.max() for s in spectra]))
    evidence = {"from": round(low, 8), "to": round(high, 8), "spectra": len(spectra)}
    unit = _other_unit(low, high)
    if unit:
        yield subject.finding(
            "error", "wavelength", f"wavelengths from {low:.4g} to {high:.4g} look like {unit}, not "
            "Angstrom", where=spectra[0].row.file, column="lambda",
            remedy="Convert them to Angstrom in vacuum", evidence=evidence,
        )  # fmt: skip
        return
    seen = np.array([((s.wave >= GRID[0]) & (s.wave <= GRID[1])).mean() for s in spectra])
    if np.median(seen) < 0.5:
        yield subject.finding(
            "error" if np.median(seen) < 0.02 else "warning", "wavelength",
            f"{np.median(seen):.0%} of the samples lie between {GRID[0]:g} and {GRID[1]:g} Angstrom, "
            "which is all that the codec sees", where=spectra[0].row.file, column="lambda",
            remedy="Is this the right survey?", evidence=evidence,
        )  # fmt: skip


def _other_unit(low: float, high: float) -> str:
    if high < 1e-4:
        return "metres"
    if low >= 2.9 and high <= 4.6:
        return "log10 of Angstrom"
    if high < 60:
        return "micrometres"
    return "nanometres" if high < 2000 and low < 1000 else ""


def mask_polarity(subject: Subject) -> Iterator[Finding]:
    """Whether True marks what the survey says, judged by the samples that have weight."""
    column = subject.survey.spectrum
    spectra = [s for s in _spectra(subject) if s.mask is not None and s.ivar is not None]
    if not column or not spectra:
        return
    bad = [np.asarray(s.mask).astype(np.bool_) != column.mask_is_good for s in spectra]
    weighty = [np.isfinite(s.flux) & (np.nan_to_num(np.asarray(s.ivar)) > 0) for s in spectra]
    with_weight, without = np.concatenate(weighty), ~np.concatenate(weighty)
    marked = np.concatenate(bad)
    bad_with = share(int(marked[with_weight].sum()), int(with_weight.sum()))
    bad_without = share(int(marked[without].sum()), int(without.sum()))
    each = [b[w].mean() > 0.9 for b, w in zip(bad, weighty, strict=True) if w.any()]
    if len(each) < MIN_SPECTRA or not sum(each) > 0.5 * len(each) or bad_with <= 0.9:
        return
    says = f"True is to mean {'good' if column.mask_is_good else 'bad'}"
    inverted = bool(without.any()) and bad_without < 0.1
    yield subject.finding(
        "error", "mask polarity",
        f"{'inverted' if inverted else 'inverted, or all is bad'} ({says}): {bad_with:.0%} of samples "
        "with ivar > 0 are marked bad"
        + (f", and {bad_without:.0%} of those without" if without.any() else ""),
        where=spectra[0].row.file, column="mask", remedy="Invert the mask on import",
        evidence={"bad_with_weight": bad_with, "bad_without_weight": bad_without,
                  "without_weight": int(without.sum()), "spectra": len(spectra)},
    )  # fmt: skip


def weights(subject: Subject) -> Iterator[Finding]:
    """Inverse variances that are never positive, negative or NaN."""
    spectra = [s for s in _spectra(subject) if s.ivar is not None and len(s.wave)]
    dead = [s for s in spectra if not (np.nan_to_num(np.asarray(s.ivar)) > 0).any()]
    if dead:
        everywhere = len(dead) == len(spectra) >= MIN_SPECTRA
        yield subject.finding(
            "error" if everywhere else "warning" if len(dead) > 0.1 * len(spectra) else "note",
            "ivar", f"{len(dead):,} of {len(spectra):,} spectra have no sample with ivar > 0",
            where=dead[0].row, column="ivar", remedy="No tokens are made of them",
            evidence={"rows": len(dead), "of": len(spectra)},
        )  # fmt: skip
    odd = [s for s in spectra if (np.isnan(np.asarray(s.ivar)) | (np.asarray(s.ivar) < 0)).any()]
    if odd:
        yield subject.finding(
            "note", "ivar", f"{len(odd):,} of {len(spectra):,} spectra have negative or NaN ivar; "
            "such samples count as bad", where=odd[0].row, column="ivar",
            evidence={"rows": len(odd)},
        )  # fmt: skip


def flux_scale(subject: Subject) -> Iterator[Finding]:
    """Whether fluxes are in units of 1e-17 erg/s/cm2/A, or empty."""
    column = subject.survey.spectrum
    spectra = [s for s in _spectra(subject) if np.isfinite(s.flux).any()]
    if not column or not spectra:
        return
    high = np.array([np.percentile(np.abs(s.flux[np.isfinite(s.flux)]), 95) for s in spectra])
    blank = int((high == 0).sum())
    if blank:
        yield subject.finding(
            "error" if blank == len(high) >= MIN_SPECTRA else "warning", "empty",
            f"{blank:,} of {len(high):,} spectra are zero nearly throughout",
            where=spectra[int(np.argmin(high))].row, column="flux",
            remedy="Are these empty fibres?", evidence={"rows": blank},
        )  # fmt: skip
    if blank == len(high) or len(high) < MIN_SPECTRA:
        return
    typical = float(np.median(high[high > 0]))
    if not _FAINTEST < typical < _BRIGHTEST:
        yield subject.finding(
            "error", "flux scale", f"fluxes are about {typical:.1e}, not {column.unit}: "
            + ("1e-17 seems to be multiplied in" if 1e-21 < typical < 1e-10 else "another unit"),
            where=spectra[0].row.file, column="flux",
            remedy="Divide fluxes by the unit (ivar by its inverse square) on import",
            evidence={"p95_of_flux": float(f"{typical:.4g}"), "spectra": len(high)},
        )  # fmt: skip


def noise(subject: Subject) -> Iterator[Finding]:
    """Whether ivar is the inverse variance of this flux, by the scatter of neighbouring samples."""
    spectra = [s for s in _spectra(subject) if s.ivar is not None]
    chis = [chi for s in spectra if (chi := _chi(s)) is not None]
    if len(chis) < MIN_SPECTRA:
        return
    chi, as_variance, as_sigma = np.median(chis, axis=0)
    if USUAL_CHI[0] <= chi <= USUAL_CHI[1]:
        return
    readings = {"the variance": as_variance, "one sigma": as_sigma}
    fitting = [n for n, c in readings.items() if _FITTING_CHI[0] <= c <= _FITTING_CHI[1]]
    yield subject.finding(
        "error" if fitting else "warning", "ivar",
        f"the scatter of neighbouring samples is {chi:.3g} times what ivar allows"
        + (f"; it looks like {fitting[0]}" if fitting else "; flux or ivar is in another unit"),
        where=spectra[0].row.file, column="ivar",
        remedy="Store 1 / sigma^2 in the unit of the flux",
        evidence={"chi": float(f"{chi:.4g}"), "chi_if_variance": float(f"{as_variance:.4g}"),
                  "chi_if_sigma": float(f"{as_sigma:.4g}"), "spectra": len(chis)},
    )  # fmt: skip


def _chi(spectrum: _Spectrum) -> tuple[float, float, float] | None:
    """Robust chi of second differences, with ivar as such, as a variance and as a sigma.

    A second difference has no continuum in it, just noise and the narrowest features.
    """
    ivar = np.asarray(spectrum.ivar)
    good = np.isfinite(spectrum.flux) & np.isfinite(ivar) & (ivar > 0)
    if spectrum.mask is not None and (clean := ~spectrum.mask.astype(bool)).mean() > 0.1:
        good &= clean
    trio = good[:-2] & good[1:-1] & good[2:]
    if trio.sum() < 100:
        return None
    flux = spectrum.flux
    change = np.abs(flux[1:-1] - 0.5 * (flux[:-2] + flux[2:]))[trio]
    chis = []
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        for variance in (1 / ivar, ivar, ivar**2):
            expected = np.sqrt(variance[1:-1] + 0.25 * (variance[:-2] + variance[2:]))[trio]
            chis.append(float(1.4826 * np.median(change / expected)))
    return chis[0], chis[1], chis[2]


SPECTRUM_CHECKS = (lengths, wavelengths, mask_polarity, weights, flux_scale, noise)
