"""Cutouts <-> 24 x 24 tokens: band projection, convolutional autoencoder, finite scalar quantizer.

Architecture, constants and tensor names follow the published AION-1 image codec (paper, appendix;
``codecs/image`` of a model folder), of which `ImageCodecConfig()` is the official size. It differs
on purpose where bad pixels are concerned: the caller's tensors stay untouched, bad pixels and
padding read as sky (0), and a token is valid only if half of its pixels are good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.codecs.autoencoder import Autoencoder
from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.fast_autoencoder import FastEncoder
from skyvec_core.codecs.quantizers import FiniteScalarQuantizer
from skyvec_core.observations import Images, Observed, Tokens, fit_to_grid

# Shape letters: B object, C band of the survey, S codec channel, D latent, H W cutout pixels.

CHANNELS = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y", "DES-G", "DES-R", "DES-I", "DES-Z")
"""Codec channel of each band."""
CLAMP = dict(zip(CHANNELS, (80.0, 110.0, 200.0, 330.0, 500.0, 6.0, 15.0, 20.0, 25.0), strict=True))
"""Absolute flux above which a band saturates, in its survey's unit per pixel."""
ZERO_POINT_SCALE = {"HSC": 10 ** ((27.0 - 22.5) / 2.5), "DES": 1.0}
"""Divisor that brings a survey's flux to nanomaggies."""
MIN_GOOD_FRACTION = 0.5
"""Share of good pixels under which a token is not valid."""
NOT_A_CODE = torch.iinfo(torch.int32).min
"""What the official package makes of a latent that is NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCodecConfig:
    """Sizes of an image codec; the defaults are those of AION-1."""

    quantizer_levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    embedding_dim: int = 5
    hidden_dims: int = 512
    multisurvey_projection_dims: int = 54
    n_compressions: int = 2
    num_consecutive: int = 4
    range_compression_factor: float = 0.01
    mult_factor: float = 10.0

    def __post_init__(self) -> None:
        if len(self.quantizer_levels) != self.embedding_dim:
            raise ValueError(
                f"embedding_dim ({self.embedding_dim}) must be the number of quantizer_levels "
                f"({len(self.quantizer_levels)})"
            )


class ImageCodec(Codec):
    """Encodes 96 x 96 cutouts of either survey into codes on a 24 x 24 grid, and back."""

    size = 96
    rows: ClassVar[int] = 8
    """Cutouts that a call of `encode` is best made with: more gain no speed and take memory."""

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        projected = config.multisurvey_projection_dims
        self.subsample_in = nn.Linear(len(CHANNELS), projected)
        self.subsample_out = nn.Linear(projected, len(CHANNELS))
        self.model = Autoencoder(
            inputs=projected,
            hidden=config.hidden_dims,
            compressions=config.n_compressions,
            repeats=config.num_consecutive,
        )
        self.pre_quant_proj = nn.Conv2d(config.hidden_dims, config.embedding_dim, 1)
        self.post_quant_proj = nn.Conv2d(config.embedding_dim, config.hidden_dims, 1)
        self._quantizer = FiniteScalarQuantizer(config.quantizer_levels)
        self._fast: FastEncoder | None = None

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        """The quantizer of the latents."""
        return self._quantizer

    def prepare(self, precision: Literal["float32", "bfloat16"]) -> None:
        """Let `encode` use a fast copy of the weights, on the device where they are now.

        Later changes of the weights do not reach the copy. Codes in float32 are those of the plain
        network but for rounding; bfloat16 changes about one in twenty (random weights).

        Raises
        ------
        ValueError
            If ``precision`` is neither of the two.
        """
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if precision not in types:
            raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(types)}")
        self._fast = None  # frees an earlier copy before the new one is made
        self._fast = FastEncoder(
            self.subsample_in, self.model, self.pre_quant_proj, precision=types[precision]
        )

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Codes (B, 576), row-major from the first row of the cutout.

        Parameters
        ----------
        observed
            Cutouts of one survey in its unit. Larger ones are cropped to their middle, smaller ones
            padded with bad pixels; a pixel that is not finite is bad.
        compat
            The official package's codes: every pixel counts as good and every token as valid, and
            one NaN turns all codes of its cutout into `NOT_A_CODE`.

        Raises
        ------
        TypeError
            If ``observed`` is not `Images` with a bool mask.
        ValueError
            If the cutouts are not (B, C, H, W) or bands are unknown, repeated or of two surveys;
            with ``compat`` also if they are smaller than 96 pixels, which the official package
            crops wrongly.
        """
        flux_BCHW, good_BCHW, bands = _checked(observed)
        if compat:
            if min(flux_BCHW.shape[-2:]) < self.size:
                raise ValueError(
                    f"cutouts of {flux_BCHW.shape[-2]} x {flux_BCHW.shape[-1]} pixels have no "
                    f"official codes; give {self.size} x {self.size} or more, or drop compat"
                )
            good_BCHW = torch.ones_like(good_BCHW)
        else:
            good_BCHW = good_BCHW & flux_BCHW.isfinite()
        flux_BCHW, good_BCHW = fit_to_grid(flux_BCHW, good_BCHW, size=self.size)
        encoder = self.latents if self._fast is None else self._fast
        latent_BDhw = encoder(self.compress(flux_BCHW, good_BCHW, bands), channels_of(bands))
        latent_BND = latent_BDhw.flatten(2).transpose(1, 2)
        ids_BN = self.quantizer.codes(latent_BND)
        if compat:
            ids_BN = ids_BN.masked_fill(latent_BND.isnan().any(-1), NOT_A_CODE)
        return Tokens(ids_BN=ids_BN, valid_BN=self.valid_cells(good_BCHW))

    def decode(self, ids_BN: Tensor, *, bands: Sequence[str]) -> Tensor:
        """Reconstructed flux (B, C, 96, 96) in the survey's unit."""
        side = self.size // 2**self.config.n_compressions
        latent_BhwD = self.quantizer.latents(ids_BN.view(-1, side, side))
        compressed_BCHW = self.reconstruct(latent_BhwD.movedim(-1, 1), channels_of(bands))
        return self.expand(compressed_BCHW, bands)

    def valid_cells(self, good_BCHW: Tensor) -> Tensor:
        """(B, N) True where at least half of a token's pixels are good."""
        cell = 2**self.config.n_compressions
        good_fraction_B1hw = functional.avg_pool2d(
            good_BCHW.float().mean(1, keepdim=True), kernel_size=cell
        )
        return good_fraction_B1hw.flatten(1) >= MIN_GOOD_FRACTION

    def compress(self, flux_BCHW: Tensor, good_BCHW: Tensor, bands: Sequence[str]) -> Tensor:
        """Clamp, bring to nanomaggies and arcsinh-compress; bad pixels become 0."""
        limit = torch.tensor([CLAMP[b] for b in bands], device=flux_BCHW.device)[:, None, None]
        zero_point = ZERO_POINT_SCALE[_survey_of(bands)]
        factor = self.config.range_compression_factor
        flux = torch.where(good_BCHW, flux_BCHW.float(), 0.0).clamp(-limit, limit) / zero_point
        return torch.asinh(flux / factor) * (factor * self.config.mult_factor)

    def expand(self, compressed_BCHW: Tensor, bands: Sequence[str]) -> Tensor:
        """Inverse of `compress` (without the clamp)."""
        factor = self.config.range_compression_factor
        zero_point = ZERO_POINT_SCALE[_survey_of(bands)]
        flux = torch.sinh(compressed_BCHW / (factor * self.config.mult_factor)) * factor
        return flux * zero_point

    def latents(self, compressed_BCHW: Tensor, channels: Sequence[int]) -> Tensor:
        """Latents (B, D, 24, 24) before quantization."""
        # The scale keeps the sum over bands comparable between surveys; it covers the bias too.
        scale = (len(CHANNELS) / len(channels)) ** 0.5
        weight = self.subsample_in.weight[:, list(channels), None, None]
        projected = functional.conv2d(compressed_BCHW, weight, self.subsample_in.bias) * scale
        latent: Tensor = self.pre_quant_proj(self.model.encode(projected))
        return latent

    def reconstruct(self, latent_BDhw: Tensor, channels: Sequence[int]) -> Tensor:
        """Compressed flux (B, C, 96, 96) from quantized latents."""
        hidden = self.model.decode(self.post_quant_proj(latent_BDhw))
        weight = self.subsample_out.weight[list(channels), :, None, None]
        return functional.conv2d(hidden, weight, self.subsample_out.bias[list(channels)])


def channels_of(bands: Sequence[str]) -> list[int]:
    """Codec channels of band names; an unknown band is an error that lists the known ones."""
    unknown = [band for band in bands if band not in CHANNELS]
    if unknown:
        raise ValueError(f"unknown bands {unknown}; the image codec knows {', '.join(CHANNELS)}")
    return [CHANNELS.index(band) for band in bands]


def _survey_of(bands: Sequence[str]) -> str:
    surveys = {band.split("-")[0] for band in bands}
    if len(surveys) != 1:
        raise ValueError(
            f"bands {list(bands)} are not of one survey; encode or decode each survey by itself"
        )
    return surveys.pop()


def _checked(images: Observed) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Flux, mask and bands in the codec's order of channels, so that no other order matters."""
    if not isinstance(images, Images):
        raise TypeError(f"the image codec takes Images, found {type(images).__name__}")
    if images.good_BCHW.dtype != torch.bool:
        raise TypeError(f"good_BCHW must be bool, found {images.good_BCHW.dtype}")
    if images.flux_BCHW.ndim != 4:
        raise ValueError(f"flux_BCHW must be (B, C, H, W), found {tuple(images.flux_BCHW.shape)}")
    channels = channels_of(images.bands)
    if len(set(channels)) < len(channels):
        raise ValueError(f"bands {images.bands} repeat; give each band once")
    order = sorted(range(len(channels)), key=channels.__getitem__)
    bands = tuple(images.bands[i] for i in order)
    return images.flux_BCHW[:, order], images.good_BCHW[:, order], bands
