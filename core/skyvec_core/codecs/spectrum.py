"""Spectra <-> 273 tokens: their level, and signs of latents on a grid of wavelengths.

A spectrum is divided by its mean flux, whose code is the first token, and interpolated to one grid
for all surveys (3500 to 10462.4 Angstrom, step 0.8); a one-dimensional ConvNeXt V2 turns each 32
pixels of it into a latent. Architecture, constants and tensor names follow the published AION-1
spectrum codec (paper, appendix; ``codecs/spectrum`` of a model folder), of which
`SpectrumCodecConfig()` is the official size. On purpose different are the samples that fill a short
row up, which change nothing here, and flux that is not finite, which counts as bad.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from skyvec_core.codecs.codec import Codec
from skyvec_core.codecs.convnext import ConvNeXtDecoder, ConvNeXtEncoder
from skyvec_core.codecs.fast_convnext import FastConvNeXtEncoder
from skyvec_core.codecs.quantizers import LookupFreeQuantizer, QuantileTable
from skyvec_core.observations import Observed, Spectra, Tokens

# Shape letters: B object, L sample of a spectrum, G pixel of the codec's grid, C channel, N token,
# D latent.

MIN_LEVEL = 0.1
"""Least flux that a spectrum is divided by."""
MIN_COVERED_FRACTION = 0.5
"""Share of a token's pixels that the spectrum must cover for it to be valid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectrumCodecConfig:
    """Sizes of a spectrum codec; the defaults are those of AION-1."""

    encoder_depths: tuple[int, ...] = (3, 3, 27, 3)
    encoder_dims: tuple[int, ...] = (64, 128, 256, 512)
    decoder_depths: tuple[int, ...] = (3, 9, 3, 3)
    decoder_dims: tuple[int, ...] = (256, 128, 64, 2)
    latent_channels: int = 512
    embedding_dim: int = 10
    dim: int = 10
    codebook_size: int = 1024
    clip_ivar: float | None = 100.0
    clip_flux: float | None = None
    input_scaling: float = 0.2
    lambda_min: float = 3500.0
    resolution: float = 0.8
    num_pixels: int = 8704
    normalization_range: tuple[float, float] = (-1.0, 5.0)

    def __post_init__(self) -> None:
        if not self.embedding_dim == self.dim == self.codebook_size.bit_length() - 1:
            raise ValueError(
                f"embedding_dim ({self.embedding_dim}) and dim ({self.dim}) must both be the "
                f"number of bits of codebook_size ({self.codebook_size})"
            )
        if self.encoder_dims[-1] != self.latent_channels or self.decoder_dims[-1] != 2:
            raise ValueError(
                f"encoder_dims {self.encoder_dims} must end in latent_channels "
                f"({self.latent_channels}), and decoder_dims {self.decoder_dims} in 2"
            )
        stages = (self.encoder_depths, self.encoder_dims, self.decoder_depths, self.decoder_dims)
        if len({len(sizes) for sizes in stages}) > 1 or self.num_pixels % self.cell:
            raise ValueError(
                f"depths and dims {stages} must be equally many, and num_pixels "
                f"({self.num_pixels}) a multiple of {self.cell}"
            )

    @property
    def cell(self) -> int:
        """Grid pixels of one token."""
        return int(2 ** (len(self.encoder_dims) + 1))

    @property
    def num_tokens(self) -> int:
        """Codes of a spectrum: its level and one for each cell."""
        return 1 + self.num_pixels // self.cell


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedSpectra:
    """Spectra as their tokens tell them."""

    wavelength_BL: Tensor
    """Wavelength in Angstrom."""
    flux_BL: Tensor
    """Flux density in the survey's unit."""
    bad_probability_BL: Tensor
    """Probability that the sample was bad; AION-1 calls it bad above 0.5."""


class SpectrumCodec(Codec):
    """Encodes spectra of any survey into one code for their level and 272 for their shape.

    Notes
    -----
    A bad sample is left out of the mean flux but is interpolated like a good one, as in AION-1.
    Flux that is not finite reads as 0 without information and is bad. The token of the level is
    valid if any sample is good. Another token is valid if the wavelengths from the first to the
    last sample of the row, good or bad, cover at least half of its 32 grid pixels, and the nearest
    sample of at least one of those pixels is good.
    """

    rows: ClassVar[int] = 8
    """Spectra per call that the caller fills a batch up to."""

    def __init__(self, config: SpectrumCodecConfig) -> None:
        super().__init__()
        self.config = config
        width, dimensions = config.latent_channels, config.embedding_dim
        self._quantizer = nn.ModuleDict({"_quantizer": LookupFreeQuantizer(dimensions)})
        self.encoder = ConvNeXtEncoder(2, depths=config.encoder_depths, widths=config.encoder_dims)
        self.decoder = ConvNeXtDecoder(
            width, depths=config.decoder_depths, widths=config.decoder_dims
        )
        self.normalization_quantizer = QuantileTable(config.codebook_size, name="buckets")
        self.normalization_quantizer.values.copy_(
            torch.linspace(*config.normalization_range, config.codebook_size)
        )
        self.latent_grid = WavelengthGrid(config)
        self.pre_quant_norm = nn.LayerNorm(width)
        self.quant_conv = nn.Conv1d(width, dimensions, 1)
        self.post_quant_conv = nn.Conv1d(dimensions, width, 1)
        self._fast_encoder: FastConvNeXtEncoder | None = None

    @property
    def quantizer(self) -> LookupFreeQuantizer:
        """The quantizer of the latents."""
        return cast("LookupFreeQuantizer", self._quantizer["_quantizer"])

    def prepare(self, precision: Literal["float32", "bfloat16"]) -> None:
        """Make `encode` fast; for a codec on its final device whose weights no longer change.

        The products inside the encoder's blocks take the precision, everything else is float32.
        """
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, found {precision!r}")
        dtype: torch.dtype = getattr(torch, precision)
        self._fast_encoder = FastConvNeXtEncoder(self.encoder, precision=dtype)

    def encode(self, observed: Observed, *, compat: bool = False) -> Tokens:
        """Codes (B, 273): the level, then the latents from blue to red.

        Parameters
        ----------
        observed
            `Spectra` on the codec's device, of any float type.
        compat
            Treat filling, NaN and infinities as AION-1 does and call every token valid.

        Raises
        ------
        TypeError
            If these are not `Spectra`.
        ValueError
            If the shape is not (B, L) with at least 2 samples or, without ``compat``, if a row's
            wavelengths do not ascend or its filling is not at its end.
        """
        if not isinstance(observed, Spectra):
            raise TypeError(f"the spectrum codec encodes Spectra, found {type(observed).__name__}")
        spectra = observed
        if spectra.flux_BL.dim() != 2 or spectra.flux_BL.shape[1] < 2:
            raise ValueError(
                f"the parts of Spectra must be (B, L) with L at least 2, found "
                f"{tuple(spectra.flux_BL.shape)}; fill short spectra up at their end"
            )
        samples = self._clipped(_as_published(spectra) if compat else _cleaned(spectra))
        level_codes_B = self.level_codes(samples.flux_BL, samples.good_BL, samples.count_B)
        compressed_BGC, good_BG, covered_BG = self._on_grid(samples, self.levels(level_codes_B))
        codes_BN = self.quantizer.codes(self.latents(compressed_BGC))
        ids_BN = torch.cat([level_codes_B[:, None], codes_BN], 1)
        if compat:
            return Tokens(ids_BN=ids_BN, valid_BN=torch.ones_like(ids_BN, dtype=torch.bool))
        valid_BN = self._valid_cells(good_BG, covered_BG)
        any_B1 = samples.good_BL.any(1, keepdim=True)
        return Tokens(ids_BN=ids_BN, valid_BN=torch.cat([any_B1, valid_BN], 1))

    def decode(self, ids_BN: Tensor, wavelength_BL: Tensor | None = None) -> DecodedSpectra:
        """Spectra that the codes stand for.

        Parameters
        ----------
        ids_BN
            Codes (B, 273).
        wavelength_BL
            Wavelengths in Angstrom to interpolate to, (B, L) or (L,) in any order; the codec's
            grid if absent. Outside the grid the flux is the level and nothing is known of bad
            samples (0.5).

        Raises
        ------
        ValueError
            If there are not 273 codes in a row.
        """
        if ids_BN.dim() != 2 or ids_BN.shape[1] != self.config.num_tokens:
            raise ValueError(
                f"the codes of spectra must be (B, {self.config.num_tokens}), found "
                f"{tuple(ids_BN.shape)}"
            )
        level_B1 = self.levels(ids_BN[:, 0])
        decoded_BGC = self.reconstruct(self.quantizer.latents(ids_BN[:, 1:]))
        values_BCL = decoded_BGC.mT
        grid_BG = self.latent_grid.wavelength_G.expand(len(ids_BN), -1)
        if wavelength_BL is None:
            wavelength_BL = grid_BG
        else:
            wavelength_BL = wavelength_BL.float().expand(len(ids_BN), -1)
            values_BCL = _interpolate(values_BCL, grid_BG, wavelength_BL)
            outside_BL = _outside(wavelength_BL, grid_BG[:, :1], grid_BG[:, -1:])
            values_BCL = values_BCL.masked_fill(outside_BL[:, None], 0.0)
        return DecodedSpectra(
            wavelength_BL=wavelength_BL,
            flux_BL=(values_BCL[:, 0] + 1) * level_B1,
            bad_probability_BL=values_BCL[:, 1].sigmoid(),
        )

    def level_codes(self, flux_BL: Tensor, good_BL: Tensor, count_B: Tensor) -> Tensor:
        """Codes (B,) of the mean flux over good samples, among the first ``count`` of each row."""
        good_flux_BL = torch.where(good_BL, flux_BL, 0.0)
        sum_B = good_flux_BL.new_zeros(len(good_flux_BL))
        # Row by row, since the rounding of a sum depends on its length: filling must not count.
        for row, count in enumerate(count_B.tolist()):
            sum_B[row] = good_flux_BL[row, :count].sum()
        mean_B = (sum_B / (good_BL.sum(1) + 1.0)).clamp(min=MIN_LEVEL)
        return self.normalization_quantizer.codes((mean_B + 1.0).log10())

    def levels(self, codes_B: Tensor) -> Tensor:
        """Flux (B, 1) of codes of the level."""
        level_B: Tensor = 10.0 ** self.normalization_quantizer.lookup(codes_B) - 1.0
        return level_B.clamp(min=MIN_LEVEL)[:, None]

    def latents(self, compressed_BGC: Tensor) -> Tensor:
        """Latents (B, N, D) before quantization, of flux and error as the network takes them."""
        encoder = self.encoder if self._fast_encoder is None else self._fast_encoder
        hidden_BNC = self.pre_quant_norm(encoder(compressed_BGC))
        latent_BDN: Tensor = self.quant_conv(hidden_BNC.mT)
        return latent_BDN.mT

    def reconstruct(self, latent_BND: Tensor) -> Tensor:
        """Relative flux and logit of a bad sample, (B, G, 2), of quantized latents."""
        out_BGC: Tensor = self.decoder(self.post_quant_conv(latent_BND.mT).mT)
        return out_BGC

    def _clipped(self, samples: _Samples) -> _Samples:
        limit = torch.inf if self.config.clip_flux is None else self.config.clip_flux
        flux_BL = samples.flux_BL.clamp(-limit, limit)
        return replace(
            samples, flux_BL=flux_BL, ivar_BL=samples.ivar_BL.clamp(0, self.config.clip_ivar)
        )

    def _on_grid(self, samples: _Samples, level_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compressed flux and error (B, G, 2), and which pixels are good and which covered."""
        scale = self.config.input_scaling
        values_BCL = torch.stack(
            [
                (samples.flux_BL / level_B1 - 1.0) * scale,
                samples.ivar_BL.sqrt() / level_B1 * scale,
                samples.good_BL.float(),
            ],
            dim=1,
        )
        grid_BG = self.latent_grid.wavelength_G.expand(len(level_B1), -1)
        outside_BG = _outside(grid_BG, samples.first_B1, samples.last_B1)
        values_BCG = _interpolate(values_BCL, samples.wavelength_BL, grid_BG)
        values_BCG = values_BCG.masked_fill(outside_BG[:, None], 0.0)
        return values_BCG[:, :2].asinh().mT, values_BCG[:, 2] > 0.5, ~outside_BG

    def _valid_cells(self, good_BG: Tensor, covered_BG: Tensor) -> Tensor:
        cells = (len(good_BG), self.config.num_tokens - 1, self.config.cell)
        covered_BN = covered_BG.view(cells).float().mean(-1)
        return (covered_BN >= MIN_COVERED_FRACTION) & good_BG.view(cells).any(-1)


class WavelengthGrid(nn.Module):
    """The wavelengths on which the network sees every spectrum, under their published names."""

    _wavelength: Tensor

    def __init__(self, config: SpectrumCodecConfig) -> None:
        super().__init__()
        self.register_buffer("lambda_min", torch.tensor(config.lambda_min))
        self.register_buffer("resolution", torch.tensor(config.resolution))
        self.register_buffer("length", torch.tensor(config.num_pixels))
        wavelength_G = torch.arange(config.num_pixels) * config.resolution + config.lambda_min
        self.register_buffer("_wavelength", wavelength_G[None])

    @property
    def wavelength_G(self) -> Tensor:  # noqa: N802 - shape letter
        """Wavelength of each pixel, in Angstrom, ascending."""
        return self._wavelength[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Samples:
    """Spectra in float32, without NaN, with the part of each row that counts."""

    flux_BL: Tensor
    ivar_BL: Tensor
    good_BL: Tensor
    wavelength_BL: Tensor
    first_B1: Tensor
    last_B1: Tensor
    count_B: Tensor


def _as_published(spectra: Spectra) -> _Samples:
    """Every sample counts; NaN is 0 and an infinity the largest number."""
    wavelength_BL = spectra.wavelength_BL.float()
    rows, length = wavelength_BL.shape
    return _Samples(
        flux_BL=spectra.flux_BL.float().nan_to_num(),
        ivar_BL=spectra.ivar_BL.float().nan_to_num(),
        good_BL=spectra.good_BL,
        wavelength_BL=wavelength_BL,
        first_B1=wavelength_BL[:, :1],
        last_B1=wavelength_BL[:, -1:],
        count_B=torch.full((rows,), length),
    )


def _cleaned(spectra: Spectra) -> _Samples:
    """Filling is out of reach, infinitely red; flux that is not finite is bad and reads as 0."""
    wavelength_BL = spectra.wavelength_BL.float()
    filling_BL = ~(wavelength_BL.isfinite() & (wavelength_BL > 0))
    wavelength_BL = wavelength_BL.masked_fill(filling_BL, torch.inf)
    step_BL = wavelength_BL.diff(dim=1)
    # Between two samples of filling the difference of infinities is NaN.
    _refuse_rows((step_BL == -torch.inf).any(1), "filling between its samples; move it to the end")
    _refuse_rows((step_BL <= 0).any(1), "wavelengths that do not ascend; sort its samples by them")
    flux_BL, ivar_BL = spectra.flux_BL.float(), spectra.ivar_BL.float()
    finite_BL = flux_BL.isfinite()
    return _Samples(
        flux_BL=flux_BL.masked_fill(~finite_BL, 0.0),
        ivar_BL=ivar_BL.masked_fill(~(finite_BL & ivar_BL.isfinite()), 0.0),
        good_BL=spectra.good_BL & finite_BL & ~filling_BL,
        wavelength_BL=wavelength_BL,
        first_B1=wavelength_BL[:, :1],
        last_B1=wavelength_BL.masked_fill(filling_BL, -torch.inf).amax(1, keepdim=True),
        count_B=(~filling_BL).sum(1),
    )


def _refuse_rows(bad_B: Tensor, what: str) -> None:
    if bad_B.any():
        raise ValueError(f"spectrum {int(bad_B.nonzero()[0])} of the batch has {what}")


def _outside(x_BM: Tensor, first_B1: Tensor, last_B1: Tensor) -> Tensor:
    return (x_BM < first_B1) | (x_BM > last_B1)


def _interpolate(values_BCL: Tensor, x_BL: Tensor, new_BM: Tensor) -> Tensor:
    """Linear interpolation (B, C, M) at new positions; beyond the ends it is meaningless."""
    left_BM = torch.searchsorted(x_BL.contiguous(), new_BM.contiguous()) - 1
    left_BM = left_BM.clamp(0, x_BL.shape[1] - 2)
    x0_BM, x1_BM = x_BL.gather(1, left_BM), x_BL.gather(1, left_BM + 1)
    left_BCM = left_BM[:, None].expand(-1, values_BCL.shape[1], -1)
    y0_BCM, y1_BCM = values_BCL.gather(2, left_BCM), values_BCL.gather(2, left_BCM + 1)
    slope_BCM = (y0_BCM - y1_BCM) / (x0_BM - x1_BM)[:, None]
    return y0_BCM + (new_BM - x0_BM)[:, None] * slope_BCM
