"""Build ``plugin/skyvec/mock/survey_bands.npz`` from the kcorrect and speclite wheels.

    python tools/build_survey_bands.py plugin/skyvec/mock/survey_bands.npz

Holds what ``galaxy_templates.npz`` lacks: fluxes of the galaxy templates in the bands of HSC and
SDSS, and the responses of these bands for spectra of stars and quasars. Needs what
``build_galaxy_templates.py`` needs; skyvec itself needs only the result.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path

import numpy as np
from build_galaxy_templates import REDSHIFTS, find_kcorrect, flux_table, read_spectra
from speclite.filters import load_filter

FILTERS = (
    *(f"hsc2017-{band}" for band in "grizy"),
    *(f"sdss2010-{band}" for band in "ugriz"),
)
STEP = 10.0  # Angstrom: the curves of broad bands are smooth on this scale


def responses() -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths in Angstrom, and the response of every filter on them."""
    wavelength = np.arange(2900.0, 11500.0, STEP)
    curves = []
    for name in FILTERS:
        band = load_filter(name)
        curves.append(np.interp(wavelength, band.wavelength, band.response, left=0, right=0))
    return wavelength, np.array(curves)


def provenance(output: Path) -> str:
    """Say what made the table, from what, under which licence."""
    return (
        f"kcorrect {metadata.version('kcorrect')} (kcorrect-default-v4.fits; BSD-3-Clause, "
        f"Blanton & Roweis 2007), speclite {metadata.version('speclite')} (hsc2017, sdss2010; "
        f"BSD-3-Clause); made by: python tools/build_survey_bands.py {output.name}"
    )


def build(output: Path, *, kcorrect: Path) -> None:
    """Write the fluxes of the templates and the responses of the bands."""
    wavelength, response = responses()
    np.savez_compressed(
        output,
        filters=np.array(FILTERS),
        redshift=REDSHIFTS,
        flux=flux_table(read_spectra(kcorrect), FILTERS).astype(np.float32),
        wavelength=wavelength,
        response=response.astype(np.float32),
        provenance=np.array(provenance(output)),
    )


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kcorrect", type=Path, help="folder of the package, if not installed")
    arguments = parser.parse_args()
    build(arguments.output, kcorrect=arguments.kcorrect or find_kcorrect())


if __name__ == "__main__":
    main()
