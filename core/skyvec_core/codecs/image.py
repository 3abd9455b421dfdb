"""Cutouts <-> 24 x 24 tokens: band projection, convolutional autoencoder, finite scalar quantizer.

Architecture, constants and tensor names follow the published AION-1 image codec (paper, appendix;
``codecs/image`` of a model folder), of which `ImageCodecConfig()` is the official size. It differs
on purpose where bad pixels are concerned: the caller's tensors stay untouched, bad pixels and
padding read as sky (0), and a token is valid only if half of its pixels are good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.codecs.quantizers import FiniteScalarQuantizer
from skyvec_core.observations import Images, Tokens, fit_to_grid

# Shape letters: B object, C band of the survey, S codec channel, D latent, H W cutout pixels.

CHANNELS = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y", "DES-G", "DES-R", "DES-I", "DES-Z")
"""Codec channel of each band."""
CLAMP = dict(zip(CHANNELS, (80.0, 110.0, 200.0, 330.0, 500.0, 6.0, 15.0, 20.0, 25.0), strict=True))
"""Absolute flux above which a band saturates, in its survey's unit per pixel."""
ZERO_POINT_SCALE = {"HSC": 10 ** ((27.0 - 22.5) / 2.5), "DES": 1.0}
"""Divisor that brings a survey's flux to nanomaggies."""
MIN_GOOD_FRACTION = 0.5
"""Share of good pixels under which a token is not valid."""


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


class ImageCodec(nn.Module):
    """Encodes 96 x 96 cutouts of either survey into codes on a 24 x 24 grid, and back."""

    size = 96

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        projected = config.multisurvey_projection_dims
        self.subsample_in = nn.Linear(len(CHANNELS), projected)
        self.subsample_out = nn.Linear(projected, len(CHANNELS))
        self.model = _Autoencoder(config)
        self.pre_quant_proj = nn.Conv2d(config.hidden_dims, config.embedding_dim, 1)
        self.post_quant_proj = nn.Conv2d(config.embedding_dim, config.hidden_dims, 1)
        self._quantizer = FiniteScalarQuantizer(config.quantizer_levels)

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        """The quantizer of the latents."""
        return self._quantizer

    def encode(self, images: Images) -> Tokens:
        """Codes (B, 576), row-major from the first row of the cutout."""
        flux_BCHW, good_BCHW = fit_to_grid(images.flux_BCHW, images.good_BCHW, size=self.size)
        channels = channels_of(images.bands)
        latent_BDhw = self.latents(self.compress(flux_BCHW, good_BCHW, images.bands), channels)
        codes_Bhw = self.quantizer.codes(latent_BDhw.movedim(1, -1))
        return Tokens(ids_BN=codes_Bhw.flatten(1), valid_BN=self.valid_cells(good_BCHW))

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
        zero_point = ZERO_POINT_SCALE[bands[0].split("-")[0]]
        factor = self.config.range_compression_factor
        flux = torch.where(good_BCHW, flux_BCHW.float(), 0.0).clamp(-limit, limit) / zero_point
        return torch.asinh(flux / factor) * (factor * self.config.mult_factor)

    def expand(self, compressed_BCHW: Tensor, bands: Sequence[str]) -> Tensor:
        """Inverse of `compress` (without the clamp)."""
        factor = self.config.range_compression_factor
        zero_point = ZERO_POINT_SCALE[bands[0].split("-")[0]]
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


class _Autoencoder(nn.Module):
    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        widths = [config.hidden_dims // 2**step for step in range(config.n_compressions, -1, -1)]
        first, last, repeat = widths[0], widths[-1], config.num_consecutive
        self.conv_in = _Convolution(config.multisurvey_projection_dims, first, 7)
        self.conv_out = _Convolution(first, config.multisurvey_projection_dims, 3)
        down: list[nn.Module] = [_ResidualUnit(first)]
        up: list[nn.Module] = [_ResidualUnit(first)]
        for narrow, wide in pairwise(widths):
            down += [_Convolution(narrow, wide, 3, stride=2), _residual_units(wide, repeat)]
            up += [_Upsample(wide, narrow), _residual_units(wide, repeat)]
        down += [_Convolution(last, last, 7), _residual_units(last, repeat), _channel_norm(last)]
        up += [_Convolution(last, last, 3), _residual_units(last, repeat)]
        self.encoder_layers = nn.ModuleList(down)
        self.decoder_layers = nn.ModuleList(reversed(up))

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in self.encoder_layers:
            x = layer(x)
        return x

    def decode(self, x: Tensor) -> Tensor:
        for layer in self.decoder_layers:
            x = layer(x)
        out: Tensor = self.conv_out(x)
        return out


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _ResidualUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _Convolution(width, width, 3),
            nn.ELU(),
            nn.Conv2d(width, width, 1),
            nn.ELU(),
            _SqueezeExcite(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) + x
        return out


def _residual_units(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_ResidualUnit(width) for _ in range(count)))


class _SqueezeExcite(nn.Module):
    """Channel gate from an attention-weighted mean over the whole cutout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(16, width // 2)
        self.to_k = nn.Conv2d(width, 1, 1)
        self.net = nn.Sequential(
            nn.Conv2d(width, inner, 1), nn.LeakyReLU(0.1), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        weight_B1P = self.to_k(x).flatten(2).softmax(-1)
        mean_BD1 = x.flatten(2) @ weight_B1P.transpose(1, 2)
        gated: Tensor = x * self.net(mean_BD1[..., None])
        return gated


class _Upsample(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 1), nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def _channel_norm(width: int) -> nn.Sequential:
    return nn.Sequential(_Move(1, -1), nn.LayerNorm(width), _Move(-1, 1))


class _Move(nn.Module):
    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.target)
