"""Build ``plugin/skyvec/mock/galaxy_templates.npz`` from the kcorrect and speclite wheels.

    python tools/build_galaxy_templates.py plugin/skyvec/mock/galaxy_templates.npz

Needs ``kcorrect==5.1.9`` (templates and 10,000 SDSS galaxies, BSD-3; ``--no-deps`` is enough),
``speclite==1.0.0`` (filter curves, BSD-3) and scipy. skyvec itself needs only the result.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from astropy.io import fits
from scipy.optimize import nnls
from speclite.filters import load_filter

SURVEY_FILTERS = (
    *(f"decamDR1-{band}" for band in "griz"),
    *(f"wise2010-W{band}" for band in "1234"),
)
SDSS_FILTERS = tuple(f"sdss2010-{band}" for band in "ugriz")
REDSHIFTS = np.round(np.arange(0, 1.5001, 0.005), 3)
PRIOR_ROWS = 4000
AB_ZERO_POINT = 3.631e-20  # erg / s / cm2 / Hz
SPEED_OF_LIGHT = 2.99792458e18  # Angstrom / s
# Red and dusty (g - r = 1.26): ugriz cannot tell it from old stars, so red galaxies get some of it
# and its young stars would make them seem to form stars.
DUSTY_TEMPLATE = 0
COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3)
# Relative model errors of ugriz, so that a 1% photometric error does not rule the fit.
MODEL_ERROR = np.array([0.10, 0.03, 0.03, 0.03, 0.05])


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Template spectra as kcorrect ships them, for one solar mass formed, seen at 10 pc."""

    wavelength: np.ndarray
    """Rest frame, Angstrom, shape (wavelength,)."""
    flux: np.ndarray
    """erg / s / cm2 / Angstrom, shape (template, wavelength)."""
    mass_remaining: np.ndarray
    """Mass now in stars and remnants per mass formed."""
    mass_recent: np.ndarray
    """Mass formed in the last Gyr, seen without dust, per mass formed."""


def read_spectra(folder: Path) -> Spectra:
    """Read the five templates of Blanton & Roweis (2007)."""
    with fits.open(folder / "data/templates/kcorrect-default-v4.fits") as hdus:
        recent = np.array(hdus["M1000"].data, dtype=float)
        recent[DUSTY_TEMPLATE] = 0
        return Spectra(
            wavelength=np.asarray(hdus["FLUX"].data["wave"][0], dtype=float),
            flux=np.asarray(hdus["FLUX"].data["flux"][0], dtype=float).reshape(5, -1),
            mass_remaining=np.asarray(hdus["MREMAIN"].data, dtype=float),
            mass_recent=recent,
        )


def broad_band(spectra: Spectra, *, redshift: float, filter_name: str) -> np.ndarray:
    """Nanomaggies of every template, redshifted but not dimmed by distance."""
    band = load_filter(filter_name)
    wavelength = spectra.wavelength * (1 + redshift)
    response = np.interp(wavelength, band.wavelength, band.response, left=0, right=0)
    photons = np.trapezoid(spectra.flux / (1 + redshift) * response * wavelength, wavelength)
    reference = np.trapezoid(response / wavelength, wavelength) * AB_ZERO_POINT * SPEED_OF_LIGHT
    return photons / reference * 1e9


def flux_table(spectra: Spectra, filters: tuple[str, ...]) -> np.ndarray:
    """Shape (redshift, filter, template)."""
    return np.array(
        [[broad_band(spectra, redshift=z, filter_name=name) for name in filters] for z in REDSHIFTS]
    )


def fit_mixes(folder: Path, spectra: Spectra) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative template masses (formed, solar) and redshifts of real SDSS galaxies."""
    galaxies = fits.getdata(folder / "data/test/gst_tests_small.fits")[:PRIOR_ROWS]
    table = flux_table(spectra, SDSS_FILTERS)
    mixes, redshifts = [], []
    for row in galaxies:
        z = float(row["Z"])
        distance = COSMOLOGY.luminosity_distance(z).value * 1e5  # in units of 10 pc
        unredden = 10 ** (0.4 * np.asarray(row["EXTINCTION"], dtype=float))
        flux = np.asarray(row["MODELFLUX"], dtype=float) * unredden
        variance = unredden**2 / np.maximum(row["MODELFLUX_IVAR"], 1e-9)
        error = np.sqrt(variance + (MODEL_ERROR * flux) ** 2)
        model = [
            [np.interp(z, REDSHIFTS, table[:, band, template]) for template in range(5)]
            for band in range(5)
        ]
        mix, _ = nnls(np.array(model) / distance**2 / error[:, None], flux / error)
        if mix.sum() > 0:
            mixes.append(mix)
            redshifts.append(z)
    return np.array(mixes), np.array(redshifts)


def provenance(output: Path) -> str:
    """Say what made the table, from what, under which licence."""
    return (
        f"kcorrect {metadata.version('kcorrect')} (kcorrect-default-v4.fits, "
        f"gst_tests_small.fits; BSD-3-Clause, Blanton & Roweis 2007; SDSS public data), "
        f"speclite {metadata.version('speclite')} (decamDR1, wise2010, sdss2010; BSD-3-Clause); "
        f"made by: python tools/build_galaxy_templates.py {output.name}"
    )


def build(output: Path, *, kcorrect: Path) -> None:
    """Write the table of fluxes and the prior of template mixes."""
    spectra = read_spectra(kcorrect)
    mixes, redshifts = fit_mixes(kcorrect, spectra)
    mass = (mixes * spectra.mass_remaining).sum(axis=1)
    np.savez_compressed(
        output,
        filters=np.array(SURVEY_FILTERS),
        redshift=REDSHIFTS,
        flux=flux_table(spectra, SURVEY_FILTERS).astype(np.float32),
        mass_remaining=spectra.mass_remaining,
        mass_recent=spectra.mass_recent,
        mix=(mixes / mass[:, None]).astype(np.float32),
        mix_log_mass=np.log10(mass).astype(np.float32),
        mix_redshift=redshifts.astype(np.float32),
        provenance=np.array(provenance(output)),
    )


def find_kcorrect() -> Path:
    """Return the folder of the installed package, without importing it (it needs matplotlib)."""
    spec = find_spec("kcorrect")
    if spec is None or not spec.submodule_search_locations:
        message = "kcorrect is not installed: pip install --no-deps kcorrect==5.1.9"
        raise SystemExit(message)
    return Path(spec.submodule_search_locations[0])


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kcorrect", type=Path, help="folder of the package, if not installed")
    arguments = parser.parse_args()
    build(arguments.output, kcorrect=arguments.kcorrect or find_kcorrect())


if __name__ == "__main__":
    main()
