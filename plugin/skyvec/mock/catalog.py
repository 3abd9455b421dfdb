"""What a catalog states about the mock galaxies: cutouts, measured numbers, label and truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hats.pixel_math import compute_spatial_index
from numpy.typing import NDArray

from skyvec.mock.galaxies import (
    BANDS,
    Floats,
    GalaxyLatents,
    Photometry,
    draw_latents,
    object_rng,
    photometry,
)
from skyvec.mock.render import (
    IMAGE,
    IMAGE_BANDS,
    PIXEL_SCALE,
    PSF_DEPTH,
    PSF_FWHM,
    Cutout,
    galaxy_components,
    half_light_radius,
    neighbours,
    observe,
    one_sigma,
)
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct

WISE_DEPTH = np.array([21.0, 20.3, 16.9, 14.9])
"""Forced photometry in W1-W4 at 5 sigma, AB."""

_FIELD_STREAM, _CATALOG_STREAM = 1, 3
_TRUTH = ("TRUE_LOGMASS", "TRUE_SSFR", "TRUE_BT")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A patch of sky between two meridians and two parallels, degrees."""

    ra_min: float = 150.0
    ra_max: float = 170.0
    dec_min: float = -5.0
    dec_max: float = 10.0

    def place(self, position: Floats) -> tuple[Floats, Floats]:
        """Turn pairs of numbers between 0 and 1 into (ra, dec), even on the sphere."""
        ra = self.ra_min + position[:, 0] * (self.ra_max - self.ra_min)
        low, high = np.sin(np.radians([self.dec_min, self.dec_max]))
        dec = np.degrees(np.arcsin(low + position[:, 1] * (high - low)))
        return np.mod(ra, 360.0), dec


def object_ids(indices: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Unique within a survey, and between surveys of different seeds (modulo 2^18)."""
    # An odd factor permutes the 44-bit numbers: unique, and as scattered as real ids.
    scattered = (indices * 7_046_029_254_387 + 1_442_695_040_889) & ((1 << 44) - 1)
    return np.asarray(scattered | ((seed + 1) % (1 << 18) << 44), dtype=np.int64)


def survey_schema() -> pa.Schema:
    """Columns of the catalog in their order."""
    numbers = [scalar.name for scalar in LEGACY_SURVEY.scalars]
    return pa.schema(
        [
            ("_healpix_29", pa.int64()),
            (LEGACY_SURVEY.id_column, pa.int64()),
            (LEGACY_SURVEY.ra_column, pa.float64()),
            (LEGACY_SURVEY.dec_column, pa.float64()),
            (IMAGE.name, image_struct()),
            *((column, pa.float32()) for column in (*numbers, *LEGACY_SURVEY.labels, *_TRUTH)),
        ]
    )


def survey_table(
    indices: NDArray[np.int64], *, seed: int, size: int, footprint: Footprint
) -> pa.Table:
    """Observe the galaxies with these indices, in this order; about 330 kB each at 96 pixels."""
    latents = draw_latents(indices, seed=seed)
    truth = photometry(latents)
    ra, dec = footprint.place(latents.position)
    cutouts, measured = [], []
    for row, index in enumerate(indices):
        rng = object_rng(seed=seed, index=int(index), stream=_FIELD_STREAM)
        psf_fwhm = PSF_FWHM * latents.seeing[row] * np.exp(0.03 * rng.standard_normal(4))
        depth = PSF_DEPTH + 0.15 * rng.standard_normal() - 2.5 * np.log10(latents.seeing[row])
        components = [
            *galaxy_components(latents, truth, row=row),
            *neighbours(rng, width=size * PIXEL_SCALE),
        ]
        cutouts.append(
            observe(
                int(index),
                seed=seed,
                components=components,
                psf_fwhm=psf_fwhm,
                depth=depth,
                size=size,
            )
        )
        measured.append(
            _measure(latents, truth, row=row, seed=seed, psf_fwhm=psf_fwhm, depth=depth)
        )
    columns = {
        "_healpix_29": compute_spatial_index(ra, dec),
        LEGACY_SURVEY.id_column: object_ids(indices, seed=seed),
        LEGACY_SURVEY.ra_column: ra,
        LEGACY_SURVEY.dec_column: dec,
        IMAGE.name: image_array(cutouts),
        **{key: [row[key] for row in measured] for key in measured[0]},
        "Z": latents.redshift,
        "TRUE_LOGMASS": latents.log_mass,
        "TRUE_SSFR": latents.log_ssfr,
        "TRUE_BT": truth.bulge_fraction,
    }
    schema = survey_schema()
    arrays = [
        columns[field.name] if field.name == IMAGE.name else _array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[float] | NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    return pa.array(np.asarray(values).astype(kind.to_pandas_dtype()), type=kind)


def image_array(cutouts: Sequence[Cutout]) -> pa.StructArray:
    """Pack cutouts into the struct of the Multimodal Universe without a Python list of pixels."""
    count = len(cutouts)
    scale = np.full((count, len(IMAGE_BANDS)), PIXEL_SCALE, dtype=np.float32)
    names = pa.array(IMAGE_BANDS * count)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(IMAGE_BANDS))
    children = [
        pa.ListArray.from_arrays(offsets, names),
        _nested(np.stack([cutout.flux for cutout in cutouts])),
        _nested(np.stack([cutout.ivar for cutout in cutouts])),
        _nested(np.stack([cutout.mask for cutout in cutouts])),
        _nested(np.stack([cutout.psf_fwhm for cutout in cutouts])),
        _nested(scale),
    ]
    return pa.StructArray.from_arrays(children, fields=list(image_struct()))


def _nested(values: NDArray[np.generic]) -> pa.Array:
    """Lists of lists, one level for every axis after the first."""
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        ends = np.arange(np.prod(values.shape[:axis]) + 1, dtype=np.int32) * values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(ends), array)
    return array


def _measure(
    latents: GalaxyLatents,
    truth: Photometry,
    *,
    row: int,
    seed: int,
    psf_fwhm: Floats,
    depth: Floats,
) -> dict[str, float]:
    """Catalog numbers of one galaxy: the truth with the errors of its size and depth.

    SHAPE_E1 and SHAPE_E2 are (1 - q) / (1 + q) times cosine and sine of twice the position angle,
    which runs from north through east.
    """
    rng = object_rng(seed=seed, index=int(latents.index[row]), stream=_CATALOG_STREAM)
    share = float(truth.bulge_fraction[row])
    radius = half_light_radius(
        bulge_fraction=share,
        bulge_radius=float(latents.bulge_radius[row]),
        disc_radius=float(latents.disc_radius[row]),
    )
    spread = np.sqrt(1 + (2 * radius / psf_fwhm) ** 2)
    error = np.concatenate([one_sigma(depth) * spread, one_sigma(WISE_DEPTH)])
    flux = truth.total[row] * (1 + 0.01 * rng.standard_normal(len(BANDS)))
    flux = flux + error * rng.standard_normal(len(BANDS))
    # Shapes are worse where the PSF is larger than the galaxy.
    blur = 1 + (psf_fwhm[1] / (2 * radius)) ** 2
    relative = min(0.3, 1.2 * blur * error[1] / truth.total[row, 1])
    bulge_e, disc_e = ((1 - q) / (1 + q) for q in _axis_ratios(latents, row=row))
    ellipticity = share * bulge_e + (1 - share) * disc_e
    angle = 2 * latents.position_angle[row]
    e1 = ellipticity * np.cos(angle) + 0.5 * relative * rng.standard_normal()
    e2 = ellipticity * np.sin(angle) + 0.5 * relative * rng.standard_normal()
    return {
        **{f"FLUX_{band.upper()}": value for band, value in zip(BANDS, flux, strict=True)},
        "SHAPE_R": radius * np.exp(relative * rng.standard_normal()),
        "SHAPE_E1": np.clip(e1, -0.95, 0.95),
        "SHAPE_E2": np.clip(e2, -0.95, 0.95),
        "EBV": latents.ebv[row],
    }


def _axis_ratios(latents: GalaxyLatents, *, row: int) -> tuple[float, float]:
    return float(latents.bulge_axis_ratio[row]), float(latents.disc_axis_ratio[row])
