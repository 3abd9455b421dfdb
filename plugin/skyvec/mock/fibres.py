"""Objects as the fibres of DESI and SDSS see them, in the columns of the Multimodal Universe.

True in a mask is a bad sample. A fibre that failed has no weight anywhere and a redshift that its
warning disowns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skyvec.mock.footprints import Flaws
from skyvec.mock.galaxies import BANDS, Floats, object_rng
from skyvec.mock.objects import Objects
from skyvec.mock.places import positions
from skyvec.mock.sky import REVISION, Change
from skyvec.mock.spectra import Kind, SpectrumObservation, observe_spectrum
from skyvec.mock.survey_ids import desi_ids, padded, sdss_ids

LONGER_EXPOSURE = 2.0
"""Of a spectrum that a second release took again, over the first."""
SDSS_SAMPLES = 3880
"""No SDSS spectrum has more."""
FAILED_WARNING = 1 << 9 | 1 << 2
"""ZWARN: no data, and a small difference to the second-best fit."""

_STREAMS = {"desi": 8, "sdss": 9}
_REDSHIFT_STREAMS = {"desi": 10, "sdss": 11}
_LINE_STREAM = 12
_REDSHIFT_ERROR = {"desi": 3e-5, "sdss": 6e-5}
_ABSENT = -99.0
_Columns = dict[str, NDArray[np.generic]]


def desi_batch(objects: Objects, flaws: Flaws, *, seed: int) -> _Columns:
    """Columns of these objects, ids and positions first; 133 kB each."""
    ra, dec = positions(objects, "desi", seed=seed)
    spectra = _observe(objects, "desi", flaws.desi_failed, seed=seed)
    redshift, error, warning = _redshifts(objects, "desi", flaws.desi_failed, seed=seed)
    return {
        "object_id": desi_ids(objects.sky),
        "ra": ra,
        "dec": dec,
        **_samples(spectra, length=len(spectra[0].flux)),
        "Z": redshift,
        "ZERR": error,
        "ZWARN": warning,
        "EBV": objects.ebv.astype(">f4"),
        **_desi_photometry(objects, flaws),
    }


def sdss_batch(objects: Objects, flaws: Flaws, *, seed: int, length: int) -> _Columns:
    """Columns of these objects, ids and positions first; 66 kB each.

    Parameters
    ----------
    length
        Samples of every row, at least `SDSS_SAMPLES`; what a spectrum lacks is filled up with
        wavelengths of -1.
    """
    ra, dec = positions(objects, "sdss", seed=seed)
    spectra = _observe(objects, "sdss", flaws.sdss_failed, seed=seed)
    redshift, error, warning = _redshifts(objects, "sdss", flaws.sdss_failed, seed=seed)
    rng = [_rng(objects, row, _LINE_STREAM, seed=seed) for row in range(len(objects))]
    dispersion = np.where(objects.is_point, 0.0, 10 ** (2.07 + 0.3 * (objects.log_mass - 10.26)))
    dispersion_error = np.maximum(0.07 * dispersion, 5.0) * ~objects.is_point
    noise = np.array([one.standard_normal() for one in rng])
    in_fibre = objects.sdss * objects.fibre_fractions("sdss")[:, None]
    flux_error = np.hypot(0.02 * in_fibre, 0.3)
    measured = in_fibre + flux_error * np.array([one.standard_normal(5) for one in rng])
    numbers = {
        "VDISP": np.maximum(dispersion + dispersion_error * noise, 0.0),
        "VDISP_ERR": dispersion_error,
        "Z": redshift,
        "Z_ERR": error,
        "SPECTROFLUX": measured,
        "SPECTROFLUX_IVAR": flux_error**-2,
        "SPECTROSYNFLUX": in_fibre,
        "SPECTROSYNFLUX_IVAR": flux_error**-2,
    }
    return {
        "object_id": padded(sdss_ids(objects.sky, seed=seed)),
        "ra": ra,
        "dec": dec,
        **_samples(spectra, length=length),
        "ZWARNING": warning.astype(">i4"),
        **{name: values.astype(">f4") for name, values in numbers.items()},
    }


def _observe(
    objects: Objects, survey: Kind, failed: NDArray[np.bool_], *, seed: int
) -> list[SpectrumObservation]:
    shares = objects.fibre_fractions(survey)
    found = []
    for row, sed in enumerate(objects.seds()):
        again = objects.sky.change[row] == Change.SPECTRUM
        rng = _rng(objects, row, _STREAMS[survey] + (REVISION if again else 0), seed=seed)
        one = observe_spectrum(
            survey,
            sed,
            rng=rng,
            fibre_fraction=float(shares[row]),
            exposure=LONGER_EXPOSURE if again else 1.0,
        )
        if failed[row]:
            one.flux[:], one.ivar[:], one.mask[:] = 0, 0, True
        found.append(one)
    return found


def _samples(spectra: list[SpectrumObservation], *, length: int) -> _Columns:
    """Spectra side by side; flux and line spread go on as their last value where there is none."""
    count = len(spectra)
    flux, lsf = np.empty((2, count, length), np.float32)
    ivar = np.zeros((count, length), np.float32)
    wavelength = np.full((count, length), -1, np.float32)
    mask = np.ones((count, length), dtype=bool)
    for row, one in enumerate(spectra):
        end = len(one.flux)
        flux[row, :end], flux[row, end:] = one.flux, one.flux[-1]
        lsf[row, :end], lsf[row, end:] = one.lsf_sigma, one.lsf_sigma[-1]
        ivar[row, :end], mask[row, :end], wavelength[row, :end] = one.ivar, one.mask, one.wavelength
    return {
        "spectrum_flux": flux,
        "spectrum_ivar": ivar,
        "spectrum_lambda": wavelength,
        "spectrum_lsf_sigma": lsf,
        "spectrum_mask": mask,
    }


def _redshifts(
    objects: Objects, survey: Kind, failed: NDArray[np.bool_], *, seed: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Measured redshift, its error, and the warning: 0 if all is well."""
    truth = objects.redshift
    error = _REDSHIFT_ERROR[survey] * (1 + truth)
    drawn = []
    for row in range(len(objects)):
        again = objects.sky.change[row] == Change.SPECTRUM
        stream = _REDSHIFT_STREAMS[survey] + (REVISION if again else 0)
        rng = _rng(objects, row, stream, seed=seed)
        drawn.append((rng.standard_normal(), 1.6 * rng.random()))
    noise, nonsense = np.array(drawn).T
    redshift = np.where(failed, nonsense, truth + error * noise)
    return redshift, error, np.where(failed, FAILED_WARNING, 0)


def _desi_photometry(objects: Objects, flaws: Flaws) -> _Columns:
    """Fluxes of the target, whole and within the fibre; -99 for targets of other lists."""
    total = objects.legacy.total
    shares = objects.fibre_fractions("desi")
    found: _Columns = {}
    for band in "grz":
        flux = total[:, BANDS.index(band)]
        for name, values in (
            (f"FLUX_{band.upper()}", flux),
            (f"FLUX_IVAR_{band.upper()}", 1 / (0.01 * flux) ** 2),
            (f"FIBERFLUX_{band.upper()}", flux * shares),
            (f"FIBERTOTFLUX_{band.upper()}", flux * shares),
        ):
            found[name] = np.where(flaws.desi_no_photometry, _ABSENT, values).astype(">f4")
    return found


def _rng(objects: Objects, row: int, stream: int, *, seed: int) -> np.random.Generator:
    return object_rng(seed=seed, index=int(objects.sky.key[row]), stream=stream)
