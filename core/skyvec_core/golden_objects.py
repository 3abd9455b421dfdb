"""Made-up objects and codes that every machine makes alike: the inputs of golden vectors.

Nothing here depends on a library's random numbers or transcendental functions: noise is drawn from
SHAKE-256, profiles are made by sums, products and quotients, which IEEE 754 fixes to the last bit.
Scalars and coefficients lie in the middle of a code's interval, so that the last bit of a logarithm
does not decide their code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from skyvec_core.codecs.catalog import CatalogCodec
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.coefficients import CoefficientsCodec
from skyvec_core.codecs.distributions import middles
from skyvec_core.codecs.image import CHANNELS, ZERO_POINT_SCALE
from skyvec_core.codecs.scalar import ScalarCodec
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES, Kind, Modality
from skyvec_core.model.config import TransformerConfig
from skyvec_core.observations import CutoutCatalogs, Images, Observed, Spectra, Tokens

# Shape letters: B object, C band, H W cutout pixels, L wavelength sample, O object of a cutout,
# N tokens of one modality, V code.

INPUTS_VERSION = 2
"""Raised by every change of these inputs: golden vectors of other inputs say nothing."""
OBJECTS = 4
LONG, SHORT = 320, 32
"""About the most tokens of the first object and of the others: on a processor the first is a batch of
its own, the others share a padded one. AION-1's base size encodes them in a second on one core."""

_PIXELS = 96
_SAMPLES, _FILLING = 2048, 40
_IN_CUTOUT, _PRESENT = 12, 9


def golden_observations(model: Model) -> dict[str, Observed]:
    """Four objects for every codec of the model, in the units and bands that the codec takes.

    Each modality lacks something: one object has no scalar, five coefficients are NaN, and of an
    image, spectrum, map or cutout catalog, which cost much to tokenize, only one object has any,
    with bad pixels in it. Of two modalities that share a codec only the first is there.
    """
    first: dict[int, str] = {}
    for key, codec in model.codecs.items():
        first.setdefault(id(codec), key)
    return {key: _observed(MODALITIES[key], model.codecs[key]) for key in first.values()}


def golden_tokens(config: TransformerConfig) -> dict[str, Tokens]:
    """Codes of four objects over all domains that the model encodes, drawn and not observed.

    Vectors are computed from these, so that a token on the edge between two codes neither hides a
    wrong vector nor makes one. The first object has every domain; of the others, each domain leaves
    one out.
    """
    domains = [MODALITIES[key] for key in config.domains_in]
    arrays = [m for m in domains if m.num_tokens > 1]
    shares = [_share(most, len(domains) - len(arrays), len(arrays)) for most in (LONG, SHORT)]
    tokens = {}
    for turn, modality in enumerate(domains):
        count = modality.num_tokens
        ids = _integers(f"codes of {modality.token_key}", OBJECTS * count) % modality.vocabulary
        valid_BN = torch.zeros((OBJECTS, count), dtype=torch.bool)
        for row in range(OBJECTS):
            some = min(count, shares[min(row, 1)])
            valid_BN[row, torch.arange(some) * count // some] = row == 0 or turn % 3 != row - 1
        tokens[modality.token_key] = Tokens(ids_BN=ids.view(OBJECTS, count), valid_BN=valid_BN)
    return tokens


def _share(most: int, scalars: int, arrays: int) -> int:
    """Tokens of each domain that has many, so that all of an object's are about ``most``."""
    return max(1, (most - scalars) // max(1, arrays))


def _observed(modality: Modality, codec: Codec) -> Observed:
    place = list(MODALITIES).index(modality.token_key) % OBJECTS
    return _MAKERS[modality.kind](modality, codec, place)


def _images(modality: Modality, _: Codec, place: int) -> Images:
    prefix = "HSC" if modality.survey == "hsc" else "DES"
    bands = tuple(band for band in CHANNELS if band.startswith(prefix))
    count = len(bands) * _PIXELS**2
    noise_CHW = _uniforms(f"noise of {modality.token_key}", count).view(-1, _PIXELS, _PIXELS) - 0.5
    brightness_C11 = 0.2 + _uniforms(f"light of {modality.token_key}", len(bands))[:, None, None]
    flux_BCHW = torch.zeros((OBJECTS, *noise_CHW.shape))
    good_BCHW = torch.zeros((OBJECTS, *noise_CHW.shape), dtype=torch.bool)
    observed_CHW = _blob() * brightness_C11 + 0.05 * noise_CHW
    flux_BCHW[place] = observed_CHW * ZERO_POINT_SCALE[prefix]
    good_BCHW[place] = True
    good_BCHW[place, :, 8:22, 60:75] = False
    flux_BCHW[place, 0, 70, 30] = torch.nan
    return Images(flux_BCHW=flux_BCHW, good_BCHW=good_BCHW, bands=bands)


def _spectra(modality: Modality, _: Codec, place: int) -> Spectra:
    wavelength_L = 3600 + 3.2 * torch.arange(_SAMPLES)
    flux_L = 1 + torch.arange(_SAMPLES) / _SAMPLES
    for line, strength in ((4102, 3.0), (5007, 12.0), (6563, 8.0), (8190, -1.5)):
        flux_L += strength / (1 + ((wavelength_L - line) / 6) ** 2)
    flux_L += _uniforms(f"noise of {modality.token_key}", _SAMPLES) - 0.5
    flux_L[700] = torch.nan
    good_BL = torch.zeros((OBJECTS, _SAMPLES), dtype=torch.bool)
    good_BL[place] = True
    good_BL[place, 1200:1290] = False
    good_BL[place, -_FILLING:] = False
    wavelength_L[-_FILLING:] = torch.nan
    ivar_L = 1 + 4 * _uniforms(f"error of {modality.token_key}", _SAMPLES)
    return Spectra(
        flux_BL=flux_L.repeat(OBJECTS, 1),
        ivar_BL=ivar_L.repeat(OBJECTS, 1),
        good_BL=good_BL,
        wavelength_BL=wavelength_L.repeat(OBJECTS, 1),
    )


def _scalars(modality: Modality, codec: Codec, place: int) -> Tensor:
    assert isinstance(codec, ScalarCodec)  # noqa: S101 - what the kind says
    values_V = codec.centers().cpu()
    # A quarter of the range each, so that both ends of the table are near.
    quarter = len(values_V) // OBJECTS
    codes_B = torch.arange(OBJECTS) * quarter + _integers(modality.token_key, OBJECTS) % quarter
    values_B = values_V[codes_B]
    values_B[place] = torch.nan
    return values_B


def _coefficients(modality: Modality, codec: Codec, place: int) -> Tensor:
    assert isinstance(codec, CoefficientsCodec)  # noqa: S101 - what the kind says
    values_NV = codec.centers().cpu()
    count, size = values_NV.shape
    codes_NB = (_integers(modality.token_key, count * OBJECTS) % size).view(count, OBJECTS)
    values_BN = values_NV.gather(1, codes_NB).T.contiguous()
    values_BN[place, -5:] = torch.nan
    return values_BN


def _maps(modality: Modality, _: Codec, place: int) -> Tensor:
    map_BHW = torch.full((OBJECTS, _PIXELS, _PIXELS), torch.nan)
    noise_HW = _uniforms(f"noise of {modality.token_key}", _PIXELS**2).view(_PIXELS, _PIXELS)
    map_BHW[place] = (1.5 * _blob() + 0.1 * noise_HW).clamp(0, 1)
    map_BHW[place, 8:30, 60:90] = torch.nan
    return map_BHW


def _catalogs(modality: Modality, codec: Codec, place: int) -> CutoutCatalogs:
    assert isinstance(codec, CatalogCodec)  # noqa: S101 - what the kind says
    places = _integers(f"places of {modality.token_key}", 2 * _IN_CUTOUT) % _PIXELS
    codes = _integers(f"shapes of {modality.token_key}", 3 * _IN_CUTOUT).view(3, _IN_CUTOUT)
    shapes = [
        middles(table.values.cpu())[codes_O % table.values.numel()]
        for table, codes_O in zip(codec.tables, codes, strict=True)
    ]
    x, y, e1, e2, radius = (
        part.float().repeat(OBJECTS, 1) for part in (*places.view(2, -1), *shapes)
    )
    present_BO = torch.zeros((OBJECTS, _IN_CUTOUT), dtype=torch.bool)
    present_BO[place, :_PRESENT] = True
    e1[:, 2] = torch.nan
    return CutoutCatalogs(
        x_BO=x, y_BO=y, e1_BO=e1, e2_BO=e2, radius_BO=radius, present_BO=present_BO
    )


_MAKERS: dict[Kind, Callable[[Modality, Codec, int], Observed]] = {
    "image": _images,
    "spectrum": _spectra,
    "coefficients": _coefficients,
    "map": _maps,
    "catalog": _catalogs,
    "scalar": _scalars,
}


def _blob() -> Tensor:
    """A galaxy off the centre, (H, W): an elongated Moffat profile with peak 1."""
    across = torch.arange(_PIXELS) - 50.0
    down = (torch.arange(_PIXELS) - 44.0)[:, None]
    profile: Tensor = 1 / (1 + (across * across + 2 * down * down) / 60)
    return profile * profile


def _uniforms(name: str, count: int) -> Tensor:
    """Multiples of 2^-24 in [0, 1), which float32 holds exactly."""
    return _integers(name, count) / 2**24


def _integers(name: str, count: int) -> Tensor:
    """Drawn integers (count,) below 2^24, the same on every machine."""
    drawn = bytearray(hashlib.shake_256(name.encode()).digest(3 * count))
    low, middle, high = torch.frombuffer(drawn, dtype=torch.uint8).view(count, 3).long().unbind(1)
    return low + middle * 2**8 + high * 2**16
