"""The 40 token domains of AION-1 as data: key, survey, kind, token grid, vocabulary, codec folder.

Source: the AION-1 paper (arXiv 2510.17960) and the published layout of its model folders. Image,
spectrum, map and scalar domains have a fixed token grid; ``catalog`` is a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["image", "spectrum", "coefficients", "map", "catalog", "scalar"]
Quantizer = Literal[
    "image", "spectrum", "field", "catalog", "multi_scalar", "grid_scalar", "log_scalar", "scalar"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """One token domain."""

    token_key: str
    """Name of the domain in token dictionaries and weights."""
    survey: str
    """Survey that it belongs to; ``any`` where several share it."""
    kind: Kind
    quantity: str
    """What is measured, with its unit."""
    grid: tuple[int, int]
    """Tokens down and across; a sequence has its longest length by 1."""
    vocabulary: int
    """Number of codes, the transformer's special codes included."""
    quantizer: Quantizer
    codec: str
    """Folder under ``codecs/`` of a model folder."""

    @property
    def num_tokens(self) -> int:
        """Positions that one object occupies at most."""
        return self.grid[0] * self.grid[1]


def _scalar(
    key: str, survey: str, codec: str, quantity: str, quantizer: Quantizer = "scalar"
) -> Modality:
    return Modality(
        token_key=key,
        survey=survey,
        kind="scalar",
        quantity=quantity,
        grid=(1, 1),
        vocabulary=1025 if quantizer == "grid_scalar" else 1024,
        quantizer=quantizer,
        codec=codec,
    )


def _array(
    key: str,
    survey: str,
    kind: Kind,
    codec: str,
    quantity: str,
    *,
    grid: tuple[int, int],
    vocabulary: int,
    quantizer: Quantizer,
) -> Modality:
    return Modality(
        token_key=key,
        survey=survey,
        kind=kind,
        quantity=quantity,
        grid=grid,
        vocabulary=vocabulary,
        quantizer=quantizer,
        codec=codec,
    )


_LS, _HSC, _GAIA = "legacysurvey", "hsc", "gaia"
_FLUX, _GAIA_FLUX, _MAG = "flux in nanomaggies", "mean flux in e-/s", "cmodel magnitude (AB)"

_ALL = (
    _array("catalog", _LS, "catalog", "catalog", "positions and shapes of objects in the cutout",
           grid=(512, 1), vocabulary=3468, quantizer="catalog"),
    *(_scalar(f"tok_a_{b}", _HSC, f"a_{b}", f"Galactic extinction in {b}, mag") for b in "giryz"),
    _scalar("tok_dec", "any", "dec", "declination in degrees"),
    _scalar("tok_ebv", _LS, "EBV", "Galactic E(B-V) in mag"),
    _scalar("tok_flux_bp_gaia", _GAIA, "phot_bp_mean_flux", _GAIA_FLUX, "log_scalar"),
    _scalar("tok_flux_g", _LS, "FLUX_G", _FLUX, "log_scalar"),
    _scalar("tok_flux_g_gaia", _GAIA, "phot_g_mean_flux", _GAIA_FLUX, "log_scalar"),
    _scalar("tok_flux_i", _LS, "FLUX_I", _FLUX, "log_scalar"),
    _scalar("tok_flux_r", _LS, "FLUX_R", _FLUX, "log_scalar"),
    _scalar("tok_flux_rp_gaia", _GAIA, "phot_rp_mean_flux", _GAIA_FLUX, "log_scalar"),
    *(_scalar(f"tok_flux_w{i}", _LS, f"FLUX_W{i}", _FLUX, "log_scalar") for i in (1, 2, 3, 4)),
    _scalar("tok_flux_z", _LS, "FLUX_Z", _FLUX, "log_scalar"),
    _array("tok_image", _LS, "image", "image", "cutout flux in nanomaggies per pixel",
           grid=(24, 24), vocabulary=4375, quantizer="image"),
    _array("tok_image_hsc", _HSC, "image", "image", "cutout flux, zero point 27",
           grid=(24, 24), vocabulary=4375, quantizer="image"),
    *(_scalar(f"tok_mag_{b}", _HSC, f"{b}_cmodel_mag", _MAG) for b in "giryz"),
    _scalar("tok_parallax", _GAIA, "parallax", "parallax in mas", "log_scalar"),
    _scalar("tok_ra", "any", "ra", "right ascension in degrees"),
    _array("tok_segmap", _LS, "map", "segmentation_map", "segmentation map in [0, 1]",
           grid=(12, 12), vocabulary=1000, quantizer="field"),
    *(_scalar(f"tok_shape{a}", _HSC, f"i_sdssshape_shape{a}", f"second moment {a}, arcsec^2")
      for a in (11, 12, 22)),
    _scalar("tok_shape_e1", _LS, "SHAPE_E1", "ellipticity component 1"),
    _scalar("tok_shape_e2", _LS, "SHAPE_E2", "ellipticity component 2"),
    _scalar("tok_shape_r", _LS, "SHAPE_R", "half-light radius in arcsec", "log_scalar"),
    _array("tok_spectrum_desi", "desi", "spectrum", "spectrum", "flux in 1e-17 erg/s/cm2/A",
           grid=(273, 1), vocabulary=1024, quantizer="spectrum"),
    _array("tok_spectrum_sdss", "sdss", "spectrum", "spectrum", "flux in 1e-17 erg/s/cm2/A",
           grid=(273, 1), vocabulary=1024, quantizer="spectrum"),
    _array("tok_xp_bp", _GAIA, "coefficients", "bp_coefficients", "XP BP coefficients",
           grid=(55, 1), vocabulary=1024, quantizer="multi_scalar"),
    _array("tok_xp_rp", _GAIA, "coefficients", "rp_coefficients", "XP RP coefficients",
           grid=(55, 1), vocabulary=1024, quantizer="multi_scalar"),
    _scalar("tok_z", "any", "Z", "redshift", "grid_scalar"),
)  # fmt: skip

MODALITIES: Mapping[str, Modality] = MappingProxyType({m.token_key: m for m in _ALL})
"""All domains by token key; the order is fixed, since bit i of a modality mask is the i-th."""


def modality_bits(token_keys: list[str] | tuple[str, ...]) -> int:
    """Bit mask of these domains, bit i for the i-th entry of `MODALITIES` (40 bits)."""
    order = {key: index for index, key in enumerate(MODALITIES)}
    return sum(1 << order[key] for key in set(token_keys))


def modalities_of(bits: int) -> tuple[str, ...]:
    """Token keys of a bit mask made by `modality_bits`."""
    return tuple(key for index, key in enumerate(MODALITIES) if bits >> index & 1)
