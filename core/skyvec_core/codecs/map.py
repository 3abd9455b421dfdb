"""Maps of a cutout <-> 12 x 12 tokens: convolutional autoencoder, finite scalar quantizer.

Architecture and tensor names follow the published AION-1 codec of segmentation maps
(``codecs/segmentation_map`` of a model folder); averaged copies of its weights (``ema.*``) are not
used, there as here. It differs on purpose where a map was not measured or is small: such pixels
read as 0, and a token is valid only if half of its pixels were measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.distributions import require_codes
from skyvec_core.codecs.image import MIN_GOOD_FRACTION
from skyvec_core.codecs.quantizers import FiniteScalarQuantizer
from skyvec_core.codecs.scalar import require_floats
from skyvec_core.observations import Observed, Tokens, fit_to_grid

# Shape letters: B object, D latent, H W map pixels, h w tokens down and across.


@dataclass(frozen=True, kw_only=True, slots=True)
class MapCodecConfig:
    """Sizes of a map codec; the defaults are those of the AION-1 paper where it gives them."""

    encoder_output_dim: int = 512
    decoder_input_dim: int | None = None
    """None: as ``encoder_output_dim``."""
    embedding_dim: int = 4
    res_hidden_dims: int = 64
    num_res_layers: int = 2
    num_downsamples: int = 3
    levels: tuple[int, ...] = (8, 5, 5, 5)
    output_activation_extension: float | None = None
    """Share by which decoded values may leave [0, 1] before they are clipped."""

    def __post_init__(self) -> None:
        if len(self.levels) != self.embedding_dim:
            raise ValueError(
                f"embedding_dim ({self.embedding_dim}) must be the number of levels "
                f"({len(self.levels)})"
            )


class MapCodec(Codec):
    """Encodes 96 x 96 maps with values in [0, 1] into codes on a 12 x 12 grid, and back."""

    size = 96
    rows: ClassVar[int] = 32
    """Rows of an `encode` call that the caller pads to."""

    def __init__(self, config: MapCodecConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.encoder_output_dim
        wide_decoder = config.decoder_input_dim or wide
        self.encode_proj = nn.Conv2d(wide, config.embedding_dim, 1)
        self.decode_proj = nn.Conv2d(config.embedding_dim, wide_decoder, 1)
        self._quantizer = FiniteScalarQuantizer(config.levels)
        self.encoder = nn.ModuleDict({"net": nn.Sequential(*_down(config, wide))})
        self.decoder = nn.ModuleDict({"net": nn.Sequential(*_up(config, wide_decoder))})

    @property
    def quantizer(self) -> FiniteScalarQuantizer:
        """The quantizer of the latents."""
        return self._quantizer

    def prepare(self, precision: Literal["float32", "bfloat16"]) -> None:
        """Do nothing: the network is small, and bfloat16 would change many of its codes."""

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Codes (B, 144) of maps (B, H, W), row-major from the first row.

        A map is cropped about its centre, or padded as not measured; NaN and infinities count as
        not measured.

        Parameters
        ----------
        compat
            As the official package: every token is valid. It has no usable codes for maps that are
            small or have pixels without a value, so these are an error.

        Raises
        ------
        TypeError, ValueError
            If it is no float tensor of that shape.
        """
        map_BHW = require_floats(observed, what="a map codec", shape="(B, H, W)")
        if map_BHW.ndim != 3:
            raise ValueError(f"a map codec takes (B, H, W), found {tuple(map_BHW.shape)}")
        value_BHW, measured_BHW = fit_to_grid(map_BHW, torch.isfinite(map_BHW), size=self.size)
        if compat and not bool(measured_BHW.all()):
            raise ValueError(
                f"the official codes are defined for maps of {self.size} x {self.size} pixels or "
                "more, all measured; encode these without compat"
            )
        filled_BHW = torch.where(measured_BHW, value_BHW, 0.0).float()
        codes_Bhw = self.quantizer.codes(self.latents(filled_BHW).movedim(1, -1))
        return Tokens(ids_BN=codes_Bhw.flatten(1), valid_BN=self._valid_cells(measured_BHW))

    def decode(self, ids_BN: Tensor) -> Tensor:
        """Reconstructed map (B, 96, 96) in [0, 1].

        Raises
        ------
        TypeError, ValueError
            If an id is no code, -1 included, or there are not 144.
        """
        side = self.size // 2**self.config.num_downsamples
        if ids_BN.ndim != 2 or ids_BN.shape[1] != side**2:
            raise ValueError(f"a map codec decodes (B, {side**2}), found {tuple(ids_BN.shape)}")
        require_codes(ids_BN, self.quantizer.num_codes, what="map codec")
        latent_BhwD = self.quantizer.latents(ids_BN.reshape(-1, side, side))
        return self.reconstruct(latent_BhwD.movedim(-1, 1))

    def latents(self, map_BHW: Tensor) -> Tensor:
        """Latents (B, D, 12, 12) before quantization."""
        latent_BDhw: Tensor = self.encode_proj(self.encoder["net"](map_BHW[:, None]))
        return latent_BDhw

    def reconstruct(self, latent_BDhw: Tensor) -> Tensor:
        """Map (B, 96, 96) in [0, 1] from quantized latents."""
        value_BHW = self.decoder["net"](self.decode_proj(latent_BDhw))[:, 0].sigmoid()
        extension = self.config.output_activation_extension or 0.0
        reached: Tensor = value_BHW * (1 + 2 * extension) - extension
        return reached.clamp(0, 1)

    def _valid_cells(self, measured_BHW: Tensor) -> Tensor:
        share_Bhw = functional.avg_pool2d(
            measured_BHW.float(), kernel_size=2**self.config.num_downsamples
        )
        return share_Bhw.flatten(1) >= MIN_GOOD_FRACTION


def _down(config: MapCodecConfig, wide: int) -> Iterator[nn.Module]:
    halved = [wide // 2**step for step in range(config.num_downsamples - 1, -1, -1)]
    for narrow, wider in pairwise((1, *halved)):
        yield nn.Conv2d(narrow, wider, 4, stride=2, padding=1)
        yield nn.ReLU()
    yield nn.Conv2d(wide, wide, 3, padding=1)
    yield _ResidualUnits(config, wide)


def _up(config: MapCodecConfig, wide: int) -> Iterator[nn.Module]:
    yield nn.ConvTranspose2d(wide, wide, 3, padding=1)
    yield _ResidualUnits(config, wide)
    # As published: 512, 128, 256, 1 channels, no mirror of the encoder's 1, 128, 256, 512.
    halved = [wide // 2**step for step in range(config.num_downsamples - 1, 0, -1)]
    for wider, narrow in pairwise((wide, *halved, 1)):
        yield nn.ReLU()
        yield nn.ConvTranspose2d(wider, narrow, 4, stride=2, padding=1)


class _ResidualUnits(nn.Module):
    def __init__(self, config: MapCodecConfig, width: int) -> None:
        super().__init__()
        units = [_ResidualUnit(width, config.res_hidden_dims) for _ in range(config.num_res_layers)]
        self.net = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _ResidualUnit(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.net(x)
        return out
