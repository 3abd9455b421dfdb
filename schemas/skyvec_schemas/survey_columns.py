"""Per survey: which columns feed which modality, in which unit.

Layout of images: the struct column of the Multimodal Universe in HATS,
``image: struct<band, flux, ivar, mask, psf_fwhm, scale>`` with one list entry per band; ``mask``
is True where a pixel is good. Sources: Multimodal Universe v1.5 schema; Legacy Surveys DR10
catalog description (fluxes in nanomaggies, AB zero point 22.5).
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalarColumn:
    """One number per object and the modality that it feeds."""

    name: str
    """Column in the catalog."""
    token_key: str
    """Modality, by its AION-1 token key."""
    unit: str
    """Unit of the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """How one survey names its id, its position, its cutouts and its measurements."""

    name: str
    id_column: str = "object_id"
    ra_column: str = "ra"
    """Right ascension in degrees."""
    dec_column: str = "dec"
    """Declination in degrees."""
    image: ImageColumn | None = None
    scalars: tuple[ScalarColumn, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Columns that are never a model input: column -> token key they can teach in training."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that an embedding reads, id and position first."""
        image = (self.image.name,) if self.image else ()
        return (
            self.id_column,
            self.ra_column,
            self.dec_column,
            *image,
            *(scalar.name for scalar in self.scalars),
        )


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

SURVEYS: Mapping[str, Survey] = MappingProxyType({LEGACY_SURVEY.name: LEGACY_SURVEY})
"""Surveys that skyvec knows, by name."""
