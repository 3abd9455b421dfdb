"""One image or spectrum in a file of its own -> observations, as the stage makes them of a catalog.

``.npz`` and HDF5: arrays by the names of the Multimodal Universe, with or without their prefix
(``image_flux`` or ``flux``; ``spectrum_lambda`` or ``wavelength``), for one object. FITS: a cube of
bands, or a table with one row for each wavelength.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray

from skyvec.releases.hats.column_map import band_order
from skyvec.releases.observing import observe_images, observe_scalars, observe_spectra
from skyvec_core.codecs.image import ImageCodec
from skyvec_core.observations import Observed
from skyvec_schemas.errors import BandError, ContractError
from skyvec_schemas.quality_flags import FATAL, Flag
from skyvec_schemas.survey_columns import ImageColumn, SpectrumColumn, Survey

Arrays = Mapping[str, NDArray[Any]]

_SAME_SCALE = 0.02
"""Share by which a pixel may differ from the survey's."""
_NAMES = {
    "flux": ("image_array", "image_flux", "spectrum_flux", "flux", "image"),
    "band": ("image_band", "band", "bands"),
    "mask": ("image_mask", "spectrum_mask", "mask", "and_mask"),
    "ivar": ("spectrum_ivar", "ivar"),
    "lambda": ("spectrum_lambda", "lambda", "wavelength", "wave"),
}
_KINDS = ".npz, .h5, .hdf5, .fits or .fits.gz"


def read_upload(path: Path, survey: Survey) -> dict[str, Observed]:
    """Token key -> observations of one object.

    Parameters
    ----------
    survey
        Whose bands, units and masks the file has.

    Raises
    ------
    ContractError
        If the file cannot be read, or holds neither an image nor a spectrum of this survey, or
        nothing of it can be used.
    BandError
        If its bands are not the survey's.
    """
    arrays = _arrays(path)
    observed: dict[str, Observed] = {}
    flags = np.zeros(1, np.int32)
    flux = _pick(arrays, "flux")
    if flux is not None and flux.ndim == 3 and survey.image:
        observed, flags = _image(arrays, flux, survey.image, path)
    elif flux is not None and flux.ndim == 1 and survey.spectrum:
        observed, flags = _spectrum(arrays, flux, survey.spectrum, path)
    elif flux is not None:
        raise _refused(
            path,
            f"its flux has shape {flux.shape}, which is nothing that {survey.name} has",
            "Give one cutout (bands, height, width) or one spectrum (samples,)",
        )
    numbers = {s.name: arrays[s.name].reshape(1) for s in survey.scalars if s.name in arrays}
    if numbers:
        observed |= _scalars(survey, numbers)
    if not observed:
        raise _refused(
            path,
            f"holds none of {', '.join(_NAMES['flux'])}, and no column of {survey.name}",
            "Name its arrays so",
        )
    if fatal := int(flags[0]) & FATAL:
        names = ", ".join(str(flag.name).lower() for flag in Flag if flag & fatal)
        raise _refused(path, f"cannot be used ({names})", "Give a better observation")
    return observed


def _image(
    arrays: Arrays, flux: NDArray[Any], image: ImageColumn, path: Path
) -> tuple[dict[str, Observed], NDArray[np.int32]]:
    bands = _pick(arrays, "band")
    names = [] if bands is None else [_band(name, image) for name in bands.ravel().tolist()]
    order = band_order(names, image)
    if len(names) != len(flux) or order is None:
        raise BandError(
            f"has {len(flux)} planes of bands {', '.join(names) or 'that it does not name'}, the "
            f"survey has {', '.join(image.bands)}",
            where=str(path),
            remedy="Give all bands, and their names in an array `band` (FITS: header BANDS)",
        )
    mask = _pick(arrays, "mask")
    good = None if mask is None else mask[None] if mask.ndim == 2 else mask[order][None]
    images, flags = observe_images(
        np.ascontiguousarray(flux[order][None], np.float32), good, image, size=ImageCodec.size
    )
    scale = arrays.get("pixel_scale")
    if scale is not None and abs(float(scale) / image.pixel_scale - 1) > _SAME_SCALE:
        raise _refused(
            path,
            f"has pixels of {float(scale):.3f} arcsec, the survey's are {image.pixel_scale}",
            "Resample it, or cut it out of the survey that the model knows",
        )
    return {image.token_key: images}, flags


def _spectrum(
    arrays: Arrays, flux: NDArray[Any], spectrum: SpectrumColumn, path: Path
) -> tuple[dict[str, Observed], NDArray[np.int32]]:
    wave = _pick(arrays, "lambda")
    wave = 10 ** arrays["loglam"] if wave is None and "loglam" in arrays else wave
    ivar, mask = _pick(arrays, "ivar"), _pick(arrays, "mask")
    if wave is None or ivar is None:
        raise _refused(
            path,
            "a spectrum without wavelengths or inverse variances",
            f"Add arrays {_NAMES['lambda'][1]} (Angstrom, vacuum) and {_NAMES['ivar'][1]}",
        )
    # Masks of pipelines are bits; any of them is a bad sample.
    bad = None if mask is None else (mask.astype(np.bool_) if mask.dtype == bool else mask != 0)
    spectra, flags = observe_spectra(
        flux[None].astype(np.float32),
        ivar[None].astype(np.float32),
        None if bad is None else bad[None],
        wave[None].astype(np.float32),
        spectrum,
    )
    return {spectrum.token_key: spectra}, flags


def _scalars(survey: Survey, numbers: Arrays) -> dict[str, Observed]:
    known = tuple(scalar for scalar in survey.scalars if scalar.name in numbers)
    observed, _ = observe_scalars(numbers, replace(survey, scalars=known))
    return dict(observed)


def _band(name: object, image: ImageColumn) -> str:
    """A band as the survey calls it; its letter alone will do."""
    text = name.decode() if isinstance(name, bytes) else str(name)
    return next(
        (known for known in image.bands if known.endswith(f"-{text.strip()}")), text.strip()
    )


def _pick(arrays: Arrays, what: str) -> NDArray[Any] | None:
    return next((arrays[name] for name in _NAMES[what] if name in arrays), None)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    readers: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
        ".npz": _of_npz, ".h5": _of_hdf5, ".hdf5": _of_hdf5, ".fits": _of_fits, ".gz": _of_fits,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise _refused(path, "is no kind of file that is known", f"Give {_KINDS}")
    try:
        return {name: _one(array, path) for name, array in reader(path).items()}
    except (OSError, ValueError, KeyError, EOFError) as problem:
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise _refused(
            path, f"cannot be read ({line})", f"Give a whole file: {_KINDS}"
        ) from problem


def _one(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Without the axis of objects that columns of the Multimodal Universe have."""
    if array.ndim in {2, 4} and len(array) == 1:
        return array[0]
    if array.ndim == 4:
        raise _refused(path, f"holds {len(array)} objects", "Give one")
    return array


def _of_npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _of_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(path, "r") as file:
        return {name: np.asarray(item) for name, item in file.items()
                if isinstance(item, h5py.Dataset)}  # fmt: skip


def _of_fits(path: Path) -> dict[str, NDArray[Any]]:
    with fits.open(path, memmap=False) as file:
        for unit in file:
            if isinstance(unit, fits.BinTableHDU) and "flux" in map(str.lower, unit.columns.names):
                return {name.lower(): _native(unit.data[name]) for name in unit.columns.names}
            if unit.data is not None and not isinstance(unit, fits.BinTableHDU):
                return _of_cube(unit)
    raise ValueError("neither a cube of bands nor a table with a column of flux")


def _of_cube(unit: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401
    header = unit.header
    letters = str(header.get("BANDS", "")).replace(",", "").replace(" ", "")
    bands = [str(header[f"BAND{n}"]) for n in range(len(unit.data)) if f"BAND{n}" in header]
    arrays = {"flux": _native(unit.data), "band": np.array(bands or list(letters), np.str_)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header, naxis=2)
    if wcs.has_celestial:
        arrays["pixel_scale"] = np.array(proj_plane_pixel_scales(wcs).mean() * 3600)
    return arrays


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(array).astype(array.dtype.newbyteorder("="))


def _refused(path: Path, what: str, remedy: str) -> ContractError:
    return ContractError(what, where=str(path), remedy=remedy)
