"""Build ``plugin/skyvec/mock/spectral_templates.npz`` from wheels of PyPI.

    python tools/build_spectral_templates.py plugin/skyvec/mock/spectral_templates.npz --wheels SITE

``SITE`` is a folder that holds, unpacked (``pip install --no-deps --target SITE ...``),
``kcorrect==5.1.9`` (galaxy templates), ``sdss-mangadap==4.5.0`` (MILES, MaStar and STELIB stars,
MIUSCAT populations) and ``desispec==0.70.0`` (lines of the night sky). ``speclite==1.0.0`` (filter
curves), ``gaiaxpy==2.1.5`` with its dependencies (XP bases) and scipy must be importable. skyvec
itself needs only the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import nnls
from speclite.filters import load_filter

FILTERS = (
    *(f"decamDR1-{band}" for band in "griz"),
    *(f"wise2010-W{band}" for band in "1234"),
    *(f"gaiadr3-{band}" for band in ("G", "BP", "RP")),
)
DWARF_TEFF = np.array(
    [
        *(3150.0, 3300.0, 3450.0, 3600.0, 3800.0, 4000.0, 4300.0, 4600.0, 5000.0, 5400.0),
        *(5800.0, 6200.0, 6600.0, 7100.0, 7700.0, 8400.0, 9200.0, 10200.0, 11500.0),
    ]
)
GIANT_TEFF = np.array([3600, 3800, 4000, 4200, 4400, 4650, 4900, 5150, 5400], dtype=float)
FEH = np.array([-1.8, -0.9, -0.3, 0.2])
GALAXY_FINE, GALAXY_STEP = (3300.0, 9900.0), 1.5e-4
STAR_RANGE, STAR_STEP = (3300.0, 10300.0), 2.0e-4
POPULATION_RANGE = (3500.0, 8950.0)  # where MIUSCAT can sharpen kcorrect
MILES_RANGE = (3560.0, 7390.0)
STELLAR_REFERENCE = (5400.0, 5600.0)
HOTTEST_MASTAR = 8400.0
# Blends of kcorrect, Angstrom in vacuum: taken out of the continuum, measured, and put back as
# lines that a spectrograph can resolve.
LINE_WINDOWS = {
    "oii": (3708.0, 3750.0),
    "neiii_h8": (3858.0, 3902.0),
    "h7": (3957.0, 3984.0),
    "hdelta": (4088.0, 4117.0),
    "hgamma_oiii": (4326.0, 4382.0),
    "hbeta": (4843.0, 4883.0),
    "oiii": (4935.0, 5035.0),
    "hei": (5860.0, 5895.0),
    "oi": (6275.0, 6350.0),
    "halpha_nii": (6515.0, 6620.0),
    "sii": (6695.0, 6760.0),
    "ariii": (7120.0, 7155.0),
    "oii_red": (7305.0, 7350.0),
    "ariii_red": (7725.0, 7780.0),
    "siii_blue": (9050.0, 9090.0),
    "siii": (9505.0, 9565.0),
}
# Fitzpatrick (1999) at R_V = 3.1 as Schlafly & Finkbeiner (2011) scale it to SFD: 1/micron and
# magnitudes per E(B-V) before the factor 0.86.
DUST_ANCHORS = np.array(
    [
        *((0.0, 0.0), (0.377, 0.265), (0.820, 0.829), (1.667, 2.688), (1.828, 3.055)),
        *((2.141, 3.806), (2.433, 4.315), (3.704, 6.265), (3.846, 6.591)),
    ]
)
DUST_SCALE = 0.86
SKY_GRIDS = {"desi": 3600 + 0.8 * np.arange(7781), "sdss": 10 ** (3.5785 + 1e-4 * np.arange(3880))}
# Of a coefficient over the first one of its prism, at order n: 0.45 (n + 1)^-1.6, bounded below.
XP_PRIOR = (0.45, 1.6, 3e-4)
XP_NOISE = 5e-3
SPEED_OF_LIGHT = 299792.458  # km/s
SOLAR_LUMINOSITY = 3.828e33  # erg/s
PARSEC = 3.0856776e18  # cm
Reader = Callable[[Path, np.ndarray], np.ndarray]


def log_grid(low: float, high: float, step: float) -> np.ndarray:
    """Wavelengths whose logarithms are ``step`` apart."""
    return np.exp(np.arange(np.log(low), np.log(high), step))


def air_from_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Wavelength in air of a line at this wavelength in vacuum (Morton 1991)."""
    square = wavelength**2
    return wavelength / (1 + 2.735182e-4 + 131.4182 / square + 2.76249e8 / square**2)


def read_linear(path: Path, wavelength: np.ndarray) -> np.ndarray:
    """Read a spectrum with linear steps in air, on a vacuum grid; NaN outside."""
    with fits.open(path) as hdus:
        header, flux = hdus[0].header, np.asarray(hdus[0].data, dtype=float)
    step = header.get("CDELT1", header.get("CD1_1"))
    air = header["CRVAL1"] + step * np.arange(flux.size)
    flux[~(flux > -1e6)] = np.nan
    return np.interp(air_from_vacuum(wavelength), air, flux, left=np.nan, right=np.nan)


def read_logarithmic(path: Path, wavelength: np.ndarray) -> np.ndarray:
    """Read a spectrum with steps in log10 of the vacuum wavelength; NaN outside."""
    with fits.open(path) as hdus:
        header, flux = hdus[0].header, np.asarray(hdus[0].data, dtype=float)
    grid = 10 ** (header["CRVAL1"] + header["CDELT1"] * np.arange(flux.size))
    flux[~(np.abs(flux) < 1e6)] = np.nan
    return np.interp(wavelength, grid, flux, left=np.nan, right=np.nan)


def blurred(flux: np.ndarray, *, sigma: float, step: float) -> np.ndarray:
    """Smooth along the last axis by ``sigma`` km/s."""
    return gaussian_filter1d(flux, sigma / SPEED_OF_LIGHT / step, axis=-1, mode="nearest")


# --- Galaxies ---------------------------------------------------------------------------------


def galaxy_arrays(kcorrect: Path, templates: Path) -> dict[str, np.ndarray]:
    """Sharpened continua of the five kcorrect templates, and the flux of their lines."""
    with fits.open(kcorrect / "data/templates/kcorrect-default-v4.fits") as hdus:
        coarse = np.asarray(hdus["FLUX"].data["wave"][0], dtype=float)
        flux = np.asarray(hdus["FLUX"].data["flux"][0], dtype=float).reshape(5, -1)
    fine = log_grid(*GALAXY_FINE, GALAXY_STEP)
    populations = read_populations(templates / "miuscat_thin", fine)
    continua, lines = [], []
    for template in flux:
        continuum, strengths = sharpen(coarse, template, fine, populations)
        continua.append(continuum)
        lines.append(strengths)
    below = (coarse > 850) & (coarse < fine[0] - 1)
    above = (coarse > fine[-1] + 1) & (coarse < 310_000)
    wavelength = np.concatenate([coarse[below], fine, coarse[above]])
    return {
        "galaxy_wavelength": wavelength,
        "galaxy_continuum": np.concatenate(
            [flux[:, below], np.array(continua), flux[:, above]], axis=1
        ).astype(np.float32),
        "galaxy_halpha_nii": np.array([line["halpha_nii"] for line in lines]),
    }


def read_populations(folder: Path, wavelength: np.ndarray) -> np.ndarray:
    """Read MIUSCAT populations, each behind none, some and much dust."""
    spectra = np.array([read_linear(path, wavelength) for path in sorted(folder.glob("*.fits"))])
    inside = (wavelength > POPULATION_RANGE[0]) & (wavelength < POPULATION_RANGE[1])
    spectra /= np.nanmean(spectra[:, inside], axis=1, keepdims=True)
    dust = [np.exp(-depth * (wavelength / 5500) ** -0.7) for depth in (0.0, 1.0, 2.5)]
    return np.concatenate([spectra * screen / screen[inside].mean() for screen in dust])


def sharpen(
    coarse: np.ndarray, template: np.ndarray, fine: np.ndarray, populations: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """Continuum at the resolution of MIUSCAT, and the fluxes of the lines taken out of it.

    The best mix of populations, divided by itself at the resolution of kcorrect, multiplies the
    template: broad-band light stays, narrow absorption lines come in.
    """
    inside = (fine > POPULATION_RANGE[0]) & (fine < POPULATION_RANGE[1])
    in_line = np.zeros(fine.size, dtype=bool)
    for low, high in LINE_WINDOWS.values():
        in_line |= (fine > low) & (fine < high)
    observed = np.interp(fine, coarse, template)
    scale = observed[inside].mean()
    used = inside & ~in_line
    population = np.nan_to_num(populations)
    best, residual, sigma = None, np.inf, 0.0
    for candidate in (240.0, 300.0, 360.0, 420.0, 480.0, 540.0):
        smooth = blurred(population, sigma=candidate, step=GALAXY_STEP)
        weight = 1 / observed[used]
        mix, rest = nnls((smooth[:, used] * weight)[:, ::4].T, (observed[used] * weight)[::4])
        if rest < residual:
            best, residual, sigma = mix, rest, candidate
    model = best @ population
    smooth = np.where(inside, blurred(model, sigma=sigma, step=GALAXY_STEP), 1.0)
    model = np.where(inside, model, 1.0)
    # What the populations cannot follow: dust, calibration; a slow function without lines.
    ratio = np.interp(fine, fine[used], observed[used] / smooth[used])
    ratio = np.where(inside, blurred(ratio, sigma=1500.0, step=GALAXY_STEP), ratio)
    continuum = np.where(in_line & inside, ratio * smooth, np.where(in_line, np.nan, observed))
    known = np.isfinite(continuum)
    continuum = np.interp(fine, fine[known], continuum[known])
    excess = observed - continuum
    strengths = {
        name: float(np.trapezoid(np.where((fine > low) & (fine < high), excess, 0), fine))
        for name, (low, high) in LINE_WINDOWS.items()
    }
    print(
        f"kcorrect at {sigma:.0f} km/s, rms {residual / np.sqrt(used.sum() / 4):.3f};",
        {name: round(value / scale, 1) for name, value in strengths.items()},
    )
    low, high = POPULATION_RANGE
    edge = np.clip(np.minimum(fine - low, high - fine) / 60, 0, 1)  # no step at the ends
    return continuum * (1 + edge * (model / np.maximum(smooth, 1e-30) - 1)), strengths


# --- Stars ------------------------------------------------------------------------------------


def star_arrays(templates: Path) -> dict[str, np.ndarray]:
    """Spectra on a grid of labels, as one solar luminosity at 10 pc."""
    wavelength = log_grid(*STAR_RANGE, STAR_STEP)
    miles, labels = read_miles(templates / "miles", wavelength)
    red = read_library(templates / "mastarhc_v2", "*.fits.gz", read_logarithmic, wavelength)
    blue = read_library(templates / "stelib", "*.fits", read_linear, wavelength)
    grids = {}
    for branch, teff in (("dwarf", DWARF_TEFF), ("giant", GIANT_TEFF)):
        spectra = np.empty((teff.size, FEH.size, wavelength.size))
        for i, j in np.ndindex(spectra.shape[:2]):
            # Cool metal-poor giants are carbon stars in these libraries: ask for richer ones.
            asked = max(FEH[j], -0.4) if branch == "giant" and teff[i] < 4000 else FEH[j]
            label = np.array([np.log10(teff[i]), surface_gravity(teff[i], branch), asked])
            spectrum, misfit = extend(wavelength, regress(miles, labels, label), red=red, blue=blue)
            if teff[i] > HOTTEST_MASTAR:
                cooler = np.flatnonzero(teff <= HOTTEST_MASTAR)[-1]
                spectrum = borrow_red(wavelength, spectrum, spectra[cooler, j], teff[[i, cooler]])
            spectra[i, j] = spectrum
            if j == 2:
                print(f"{branch} {teff[i]:.0f} K: MaStar misfit {misfit:.3f}")
        for i, j in np.ndindex(spectra.shape[:2]):
            spectra[i, j] /= bolometric(wavelength, spectra[i, j], teff[i])
        grids[branch] = spectra
    flux = np.concatenate([grids["dwarf"], grids["giant"]])
    scale = flux.max(axis=-1)  # half precision has a small range
    return {
        "star_wavelength": wavelength,
        "dwarf_teff": DWARF_TEFF,
        "giant_teff": GIANT_TEFF,
        "star_feh": FEH,
        "star_flux": (flux / scale[..., None]).astype(np.float16),
        "star_scale": scale,
    }


def surface_gravity(teff: float, branch: str) -> float:
    """Log g of the main sequence or the giant branch; the same as in ``stars.py``."""
    if branch == "dwarf":
        return float(
            np.interp(teff, [3000, 4000, 5000, 5800, 6500, 8000], [5, 4.7, 4.55, 4.44, 4.2, 4.1])
        )
    return float(np.interp(teff, [3600, 4000, 4800, 5400], [0.6, 1.4, 2.6, 3.2]))


def read_miles(folder: Path, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log flux of the stars with labels, shape (star, wavelength), and the labels."""
    table = {}
    for line in (folder / "MILES_params.db").read_text().splitlines():
        words = line.split()
        if len(words) >= 4 and not line.startswith("#"):
            table[words[0]] = [float(word) for word in words[1:4]]
    reference = (wavelength > STELLAR_REFERENCE[0]) & (wavelength < STELLAR_REFERENCE[1])
    covered = (wavelength > MILES_RANGE[0]) & (wavelength < MILES_RANGE[1])
    spectra, labels = [], []
    for path in sorted(folder.glob("*.fits")):
        number = path.stem.split("_m")[-1][:4]
        teff, logg, feh = table.get(number, (0.0, 0.0, 0.0))
        flux = read_linear(path, wavelength)
        if teff < 2500 or logg < -1 or feh < -5 or not np.isfinite(flux[covered]).all():
            continue
        flux /= flux[reference].mean()
        spectra.append(np.where(covered, np.log(np.clip(flux, 3e-3, None)), np.nan))
        labels.append([np.log10(teff), logg, feh])
    return np.array(spectra), np.array(labels)


def read_library(folder: Path, pattern: str, read: Reader, wavelength: np.ndarray) -> np.ndarray:
    """Read spectra that are whole where they must be, scaled to one at the reference."""
    reference = (wavelength > STELLAR_REFERENCE[0]) & (wavelength < STELLAR_REFERENCE[1])
    whole = (wavelength > 3640) & (wavelength < MILES_RANGE[1])
    spectra = [read(path, wavelength) for path in sorted(folder.glob(pattern))]
    good = [
        flux / flux[reference].mean()
        for flux in spectra
        if np.isfinite(flux[whole]).all() and flux[reference].mean() > 0
    ]
    return np.array(good)


def regress(spectra: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Flux at the wanted labels: a local linear fit to the stars nearby."""
    width = np.array([0.018, 0.35, 0.30])
    for _ in range(12):
        offset = (labels - wanted) / width
        weight = np.exp(-0.5 * (offset**2).sum(axis=1))
        if weight.sum() ** 2 / (weight**2).sum() >= 8 and weight.sum() > 3:
            break
        width *= 1.2
    near = weight > 1e-3
    design = np.column_stack([np.ones(near.sum()), offset[near]])
    gram = (design * weight[near, None]).T @ design
    gram += np.diag([0, 0.5, 0.5, 0.5])  # a slope only where the stars show one
    fit = np.linalg.solve(gram, (design * weight[near, None]).T @ spectra[near])
    return np.exp(fit[0])


def extend(
    wavelength: np.ndarray, spectrum: np.ndarray, *, red: np.ndarray, blue: np.ndarray
) -> tuple[np.ndarray, float]:
    """Continue a MILES spectrum with mixes of MaStar to the red and of STELIB to the blue."""
    misfit = 0.0
    spectrum = spectrum.copy()
    for library, fitted, join, outside in (
        (red, (3700, 7380), (7150, 7380), wavelength > MILES_RANGE[1]),
        (blue, (3570, 4600), (3570, 3680), wavelength < MILES_RANGE[0]),
    ):
        used = (wavelength > fitted[0]) & (wavelength < fitted[1])
        target = gaussian_filter1d(spectrum[used], 5)[::8]
        smooth = gaussian_filter1d(np.nan_to_num(library), 5, axis=1)[:, used][:, ::8]
        # Relative residuals, and more weight near the join.
        weight = 1 / np.maximum(target, 0.02)
        if library is red:
            weight *= 1 + 3 * (wavelength[used][::8] > 6400)
        mix, rest = nnls((smooth * weight).T, target * weight)
        model = mix @ np.nan_to_num(library)
        at_join = (wavelength > join[0]) & (wavelength < join[1])
        model *= spectrum[at_join].mean() / model[at_join].mean()
        spectrum[outside] = model[outside]
        if library is red:
            misfit = rest / np.sqrt(target.size)
    return np.clip(spectrum, 1e-4, None), float(misfit)


def borrow_red(
    wavelength: np.ndarray, spectrum: np.ndarray, cooler: np.ndarray, teff: np.ndarray
) -> np.ndarray:
    """Give a star hotter than any clean one of MaStar the red part of a cooler one."""
    red = wavelength > MILES_RANGE[1]
    join = (wavelength > 7150) & (wavelength < MILES_RANGE[1])
    shape = cooler * planck(wavelength, teff[0]) / planck(wavelength, teff[1])
    return np.where(red, shape * spectrum[join].mean() / shape[join].mean(), spectrum)


def bolometric(wavelength: np.ndarray, spectrum: np.ndarray, teff: float) -> float:
    """Flux of all wavelengths over that of one solar luminosity at 10 pc.

    Planck's law at the effective temperature continues the spectrum on both sides.
    """
    red = log_grid(wavelength[-1], 300_000, 2e-3)
    blue = log_grid(600, wavelength[0], 2e-3)
    last = wavelength > 10_000
    first = wavelength < 3400
    tail = planck(red, teff) / planck(wavelength[last], teff).mean() * spectrum[last].mean()
    head = planck(blue, teff) / planck(wavelength[first], teff).mean() * spectrum[first].mean()
    total = sum(
        np.trapezoid(flux, grid)
        for flux, grid in ((spectrum, wavelength), (tail, red), (head, blue))
    )
    return float(total / (SOLAR_LUMINOSITY / (4 * np.pi * (10 * PARSEC) ** 2)))


def planck(wavelength: np.ndarray, teff: float) -> np.ndarray:
    """Spectral shape of a black body, arbitrary unit."""
    return wavelength**-5.0 / np.expm1(1.438777e8 / (wavelength * teff))


# --- Dust, filters, sky, XP -------------------------------------------------------------------


def dust_arrays() -> dict[str, np.ndarray]:
    """Galactic extinction in magnitudes per E(B-V)."""
    wavelength = np.concatenate([log_grid(3200, 12_000, 0.01), log_grid(12_500, 320_000, 0.05)])
    spline = CubicSpline(DUST_ANCHORS[:, 0], DUST_ANCHORS[:, 1])
    return {
        "dust_wavelength": wavelength,
        "dust_extinction": DUST_SCALE * spline(1e4 / wavelength),
    }


def filter_arrays() -> dict[str, np.ndarray]:
    """Filter curves one after the other, with the length of each."""
    curves = [load_filter(name) for name in FILTERS]
    return {
        "filter_name": np.array(FILTERS),
        "filter_length": np.array([len(curve.wavelength) for curve in curves]),
        "filter_wavelength": np.concatenate([np.asarray(curve.wavelength) for curve in curves]),
        "filter_response": np.concatenate([np.asarray(curve.response) for curve in curves]).astype(
            np.float32
        ),
    }


def sky_arrays(desispec: Path) -> dict[str, np.ndarray]:
    """Lines of the night sky at the resolution of each spectrograph."""
    wavelength, flux = np.loadtxt(desispec / "data/spec-sky.dat").T
    arrays = {}
    for name, grid in SKY_GRIDS.items():
        # Angstrom to 0.1 Angstrom samples; 0.75 A in DESI, 1.1 of its pixels of 69 km/s in SDSS.
        sigma = 7.5 if name == "desi" else 1.1 * 69 / SPEED_OF_LIGHT * 6500 * 10
        smooth = gaussian_filter1d(flux, sigma)
        arrays[f"sky_{name}"] = np.interp(grid, wavelength, smooth).astype(np.float32)
    return arrays


def xp_arrays() -> dict[str, np.ndarray]:
    """Coefficients -> flux of Gaia XP, and its inverse under a prior that falls with the order."""
    from gaiaxpy.calibrator import calibrator

    grid, merge = calibrator.load_xpmerge_from_xml(bp_model="v375wi")
    sampling = calibrator.load_xpsampling_from_xml(bp_model="v375wi")
    design = np.concatenate(
        [np.asarray(sampling[band], float) * np.asarray(merge[band], float) for band in merge]
    )
    scale, power, least = XP_PRIOR
    order = np.tile(np.arange(55), 2)
    prior = np.maximum(scale * (order + 1.0) ** -power, least)
    unit = np.linalg.norm(design, axis=0).mean()
    forward = design.T / unit
    cover = (forward * prior**2) @ forward.T
    cover += np.eye(len(cover)) * XP_NOISE**2 * np.trace(cover) / len(cover)
    inverse = (prior[:, None] ** 2 * forward.T) @ np.linalg.inv(cover) / unit
    return {
        "xp_wavelength": 10 * np.asarray(grid, float),
        "xp_design": design,
        "xp_inverse": inverse,
    }


def provenance(output: Path) -> str:
    """Say what made the table, from what, under which licence."""
    return (
        "kcorrect 5.1.9 (kcorrect-default-v4.fits; BSD-3-Clause, Blanton & Roweis 2007), "
        "sdss-mangadap 4.5.0 (MILES, Sanchez-Blazquez et al. 2006, Cenarro et al. 2007; MIUSCAT, "
        "Vazdekis et al. 2012; MaStar, Yan et al. 2019; STELIB, Le Borgne et al. 2003; "
        "BSD-3-Clause), desispec 0.70.0 (spec-sky.dat; BSD-3-Clause), "
        f"gaiaxpy {metadata.version('gaiaxpy')} (XP bases; BSD-3-Clause; ESA/Gaia/DPAC), "
        f"speclite {metadata.version('speclite')} (decamDR1, wise2010, gaiadr3; BSD-3-Clause); "
        f"made by: python tools/build_spectral_templates.py {output.name}"
    )


def build(output: Path, *, wheels: Path) -> None:
    """Write all tables into one file."""
    templates = wheels / "mangadap/data/spectral_templates"
    np.savez_compressed(
        output,
        **galaxy_arrays(wheels / "kcorrect", templates),
        **star_arrays(templates),
        **dust_arrays(),
        **filter_arrays(),
        **sky_arrays(wheels / "desispec"),
        **xp_arrays(),
        provenance=np.array(provenance(output)),
    )


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--wheels", type=Path, required=True, help="folder of unpacked wheels")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.wheels))
    build(arguments.output, wheels=arguments.wheels)


if __name__ == "__main__":
    main()
