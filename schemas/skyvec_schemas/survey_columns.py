"""Per survey: which columns feed which modality, in which unit, and what no file says.

Names are those of the Multimodal Universe: in HATS ``image: struct<band, flux, ivar, mask,
psf_fwhm, scale>`` with one list entry per band and ``spectrum: struct<flux, ivar, mask, lambda,
lsf_sigma>``; in HDF5 one dataset for each field (``image_array``, ``spectrum_flux``, ...). The
meaning of True in a mask differs (good pixel in images, bad sample in spectra) and is declared
here. Sources: Multimodal Universe v1.5 schema and builders; Legacy Surveys DR10 catalog
description (nanomaggies, AB zero point 22.5); HSC PDR3 (zero point 27); Gaia DR3 data model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageColumn:
    """One struct column of cutouts and the modality that it feeds."""

    name: str
    """Column in the catalog."""
    token_key: str
    """Modality, by its AION-1 token key."""
    bands: Mapping[str, str]
    """Band name in the file -> band name of the codec, in the codec's order."""
    unit: str
    """Unit of the flux of one cutout pixel."""
    pixel_scale: float
    """Arcseconds per cutout pixel."""
    zero_point: float = 22.5
    """AB magnitude of one unit of flux."""
    mask_is_good: bool = True
    """Whether True in the mask marks a good pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumColumn:
    """One struct column of spectra and the modality that it feeds."""

    name: str
    """Column in the catalog; in HDF5 the prefix of its datasets."""
    token_key: str
    """Modality, by its AION-1 token key."""
    unit: str
    """Unit of the flux density."""
    wavelength_unit: str = "Angstrom"
    """Unit of ``lambda``, in vacuum."""
    mask_is_good: bool = False
    """Whether True in the mask marks a good sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoefficientsColumn:
    """One list of coefficients per object, cut into equal parts that feed one modality each."""

    name: str
    """Column in the catalog."""
    token_keys: tuple[str, ...]
    """Modalities in the order of their parts."""
    unit: str
    """Unit of the coefficients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalarColumn:
    """One number per object and the modality that it feeds."""

    name: str
    """Column in the catalog."""
    token_key: str
    """Modality, by its AION-1 token key."""
    unit: str
    """Unit of the number."""
    missing: tuple[float, ...] = ()
    """Values that stand for "not measured", beside NaN, infinity and null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """How one survey names its id, its position, its pixels, spectra and measurements."""

    name: str
    id_column: str = "object_id"
    ra_column: str = "ra"
    """Right ascension in degrees."""
    dec_column: str = "dec"
    """Declination in degrees."""
    pm_ra_column: str | None = None
    """Proper motion in right ascension times cos(dec), mas/yr."""
    pm_dec_column: str | None = None
    """Proper motion in declination, mas/yr."""
    epoch: float | None = None
    """Julian year of the positions."""
    image: ImageColumn | None = None
    spectrum: SpectrumColumn | None = None
    coefficients: CoefficientsColumn | None = None
    scalars: tuple[ScalarColumn, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Columns that are never a model input: column -> token key they can teach in training."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that an embedding reads, id and position first."""
        arrays = (self.image, self.spectrum, self.coefficients)
        return (
            self.id_column,
            self.ra_column,
            self.dec_column,
            *(column.name for column in arrays if column),
            *(scalar.name for scalar in self.scalars),
        )

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        """(column, token key) of everything that a vector is made of, in the order of `columns`."""
        pairs = [
            (column.name, column.token_key) for column in (self.image, self.spectrum) if column
        ]
        if self.coefficients:
            pairs += [(self.coefficients.name, key) for key in self.coefficients.token_keys]
        return (*pairs, *((scalar.name, scalar.token_key) for scalar in self.scalars))


def image_struct(*, with_ivar: bool = True) -> pa.StructType:
    """Arrow type of an image column: one list entry per band, mask True = good pixel.

    LSDB reads it as a nested column, for which every field of a row must have the same length; a
    release without inverse variances leaves the field out.
    """
    plane = pa.list_(pa.list_(pa.float32()))
    ivar = [("ivar", pa.list_(plane))] if with_ivar else []
    return pa.struct(
        [
            ("band", pa.list_(pa.string())),
            ("flux", pa.list_(plane)),
            *ivar,
            ("mask", pa.list_(pa.list_(pa.list_(pa.bool_())))),
            ("psf_fwhm", pa.list_(pa.float32())),
            ("scale", pa.list_(pa.float32())),
        ]
    )


LEGACY_IMAGE = ImageColumn(
    name="image",
    token_key="tok_image",
    bands=MappingProxyType(
        {"des-g": "DES-G", "des-r": "DES-R", "des-i": "DES-I", "des-z": "DES-Z"}
    ),
    unit="nanomaggy",
    pixel_scale=0.262,
)

LEGACY_SURVEY = Survey(
    name="legacysurvey",
    image=LEGACY_IMAGE,
    scalars=(
        ScalarColumn(name="FLUX_G", token_key="tok_flux_g", unit="nanomaggy"),
        ScalarColumn(name="FLUX_R", token_key="tok_flux_r", unit="nanomaggy"),
        ScalarColumn(name="FLUX_I", token_key="tok_flux_i", unit="nanomaggy"),
        ScalarColumn(name="FLUX_Z", token_key="tok_flux_z", unit="nanomaggy"),
        ScalarColumn(name="FLUX_W1", token_key="tok_flux_w1", unit="nanomaggy"),
        ScalarColumn(name="FLUX_W2", token_key="tok_flux_w2", unit="nanomaggy"),
        ScalarColumn(name="FLUX_W3", token_key="tok_flux_w3", unit="nanomaggy"),
        ScalarColumn(name="FLUX_W4", token_key="tok_flux_w4", unit="nanomaggy"),
        ScalarColumn(name="SHAPE_R", token_key="tok_shape_r", unit="arcsec"),
        ScalarColumn(name="SHAPE_E1", token_key="tok_shape_e1", unit="1"),
        ScalarColumn(name="SHAPE_E2", token_key="tok_shape_e2", unit="1"),
        ScalarColumn(name="EBV", token_key="tok_ebv", unit="mag"),
    ),
    labels=MappingProxyType({"Z": "tok_z"}),
)

HSC = Survey(
    name="hsc",
    image=ImageColumn(
        name="image",
        token_key="tok_image_hsc",
        bands=MappingProxyType({f"hsc-{band}": f"HSC-{band.upper()}" for band in "grizy"}),
        unit="counts at zero point 27",
        pixel_scale=0.168,
        zero_point=27.0,
    ),
    scalars=(
        *(
            ScalarColumn(name=f"a_{band}", token_key=f"tok_a_{band}", unit="mag")
            for band in "grizy"
        ),
        *(
            ScalarColumn(name=f"{band}_cmodel_mag", token_key=f"tok_mag_{band}", unit="mag")
            for band in "grizy"
        ),
        *(
            ScalarColumn(name=f"i_sdssshape_shape{a}", token_key=f"tok_shape{a}", unit="arcsec2")
            for a in (11, 22, 12)
        ),
    ),
)

_FLUX_DENSITY = "1e-17 erg/s/cm2/Angstrom"

SDSS = Survey(
    name="sdss",
    spectrum=SpectrumColumn(name="spectrum", token_key="tok_spectrum_sdss", unit=_FLUX_DENSITY),
    labels=MappingProxyType({"Z": "tok_z"}),
)

DESI = Survey(
    name="desi",
    spectrum=SpectrumColumn(name="spectrum", token_key="tok_spectrum_desi", unit=_FLUX_DENSITY),
    labels=MappingProxyType({"Z": "tok_z"}),
)

GAIA = Survey(
    name="gaia",
    id_column="source_id",
    pm_ra_column="pmra",
    pm_dec_column="pmdec",
    epoch=2016.0,
    coefficients=CoefficientsColumn(
        name="coeff", token_keys=("tok_xp_bp", "tok_xp_rp"), unit="XP basis coefficient"
    ),
    scalars=(
        ScalarColumn(name="phot_g_mean_flux", token_key="tok_flux_g_gaia", unit="electron/s"),
        ScalarColumn(name="phot_bp_mean_flux", token_key="tok_flux_bp_gaia", unit="electron/s"),
        ScalarColumn(name="phot_rp_mean_flux", token_key="tok_flux_rp_gaia", unit="electron/s"),
        ScalarColumn(name="parallax", token_key="tok_parallax", unit="mas"),
    ),
)

OBJECTS = Survey(name="objects")
"""Ids and positions alone: whatever is known of the objects comes from sources."""

SURVEYS: Mapping[str, Survey] = MappingProxyType(
    {survey.name: survey for survey in (LEGACY_SURVEY, HSC, SDSS, DESI, GAIA, OBJECTS)}
)
"""Surveys that skyvec knows, by name."""
