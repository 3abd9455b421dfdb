"""Training of the image codec: noise-aware error in arcsinh-compressed flux, on good pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skyvec_core.codecs.image import ZERO_POINT_SCALE, ImageCodec, ImageCodecConfig, channels_of
from skyvec_core.observations import Images
from skyvec_training.codecs.mixture import Learnt, Mixture
from skyvec_training.data.draws import Stream, uniforms
from skyvec_training.data.pixels import PixelStore
from skyvec_training.recipe.codecs import CodecRun

# Shape letters: B object, C band, D latent, H W cutout pixels.

STAMP_SIDES = (16, 72)
"""Least and largest side in pixels of the central square that `as_stamps` leaves."""

LATENT_REACH = 1.5
"""Latent that already rounds to the outermost level; beyond it the gradient of tanh dies out."""


def build_codec(run: CodecRun, *, seed: int) -> ImageCodec:
    """A codec with fresh weights."""
    codec = ImageCodec(ImageCodecConfig(**asdict(run.model)))
    generator = torch.Generator().manual_seed(seed)
    for module in codec.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            bound = module.weight[0].numel() ** -0.5
            if module.bias is not None:
                torch.nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def reconstruction_loss(
    codec: ImageCodec, images: Images, sigma_BCHW: Tensor, run: CodecRun
) -> Tensor:
    """Mean Huber error over good pixels, in units of noise and floor together.

    While gradients are on, `spread_penalty` is added.

    Parameters
    ----------
    images
        Cutouts (B, C, H, W) in the survey's unit; sides are multiples of 4.
    sigma_BCHW
        Noise in the same unit; not read where the pixel is bad.
    """
    channels = channels_of(images.bands)
    true_BCHW = codec.compress(images.flux_BCHW, images.good_BCHW, images.bands)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bfloat16"):
        latent_BDhw = codec.latents(true_BCHW.contiguous(memory_format=torch.channels_last),
                                    channels)  # fmt: skip
        code_BDhw = codec.quantizer(latent_BDhw.float().movedim(1, -1)).movedim(-1, 1)
        found_BCHW = codec.reconstruct(code_BDhw, channels).float()
    # The codec compresses nanomaggies, whatever the survey's unit.
    sigma_BCHW = sigma_BCHW / ZERO_POINT_SCALE[images.bands[0].split("-")[0]]
    error_BCHW = (found_BCHW - true_BCHW) / compressed_noise(codec, true_BCHW, sigma_BCHW, run)
    loss_BCHW = functional.huber_loss(
        error_BCHW, torch.zeros_like(error_BCHW), delta=run.huber_delta, reduction="none"
    )
    good = images.good_BCHW
    mean = torch.where(good, loss_BCHW, 0.0).sum() / good.sum().clamp(min=1)
    if not torch.is_grad_enabled():
        return mean
    return mean + run.spread_weight * spread_penalty(latent_BDhw.float(), true_BCHW)


def spread_penalty(latent_BDhw: Tensor, compressed_BCHW: Tensor) -> Tensor:
    """How badly the latents use the quantizer: out of reach, off centre, or bunched.

    Centre and spread are those of cells weighted by their light squared; otherwise sky, nine cells
    of ten, takes most of the codes. Without this whole dimensions settle in one level for good.
    """
    light_B1hw = functional.avg_pool2d(
        compressed_BCHW.abs().mean(1, keepdim=True),
        compressed_BCHW.shape[-1] // latent_BDhw.shape[-1],
    ).square()
    weight_B1hw = light_B1hw / light_B1hw.sum().clamp(min=1e-12)
    mean_D11 = (weight_B1hw * latent_BDhw).sum((0, 2, 3))[:, None, None]
    variance_D = (weight_B1hw * (latent_BDhw - mean_D11).square()).sum((0, 2, 3))
    out_of_reach = functional.relu(latent_BDhw.abs() - LATENT_REACH).square().mean()
    bunched = functional.relu(1 - (variance_D + 1e-6).sqrt()).square().mean()
    return out_of_reach + mean_D11.square().mean() + bunched


def compressed_noise(
    codec: ImageCodec, compressed_BCHW: Tensor, sigma_BCHW: Tensor, run: CodecRun
) -> Tensor:
    """Noise after compression (its slope times sigma in nanomaggies), and the floor in quadrature."""
    factor, mult = codec.config.range_compression_factor, codec.config.mult_factor
    # d/df [asinh(f / k) k m] = m / cosh(asinh(f / k))
    slope = mult / torch.cosh(compressed_BCHW / (factor * mult))
    return torch.hypot(sigma_BCHW * slope, torch.tensor(run.error_floor))


class CodecTask:
    """The image codec on the cutouts of some sources, a batch of one of them in each step."""

    def __init__(
        self, codec: ImageCodec, sources: Sequence[Learnt[PixelStore]], run: CodecRun, *, seed: int
    ) -> None:
        self.module = codec
        self.run, self.seed = run, seed
        self.mixture = Mixture(sources)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss on one augmented batch."""
        run = self.run
        learnt, rows = self.mixture.rows(step, batch=run.batch, seed=self.seed)
        draws = uniforms(
            seed=self.seed, stream=Stream.AUGMENTATION, step=step, slots=range(run.batch), width=8
        )
        images, sigma_BCHW = learnt.store.read(rows)
        crop = (
            run.crop if step < run.crop_share * run.optimizer.steps else images.flux_BCHW.shape[-1]
        )
        images, sigma_BCHW = augment(images, sigma_BCHW, draws, crop=crop)
        images = as_stamps(images, draws, probability=run.stamp_probability)
        return reconstruction_loss(self.module, images, sigma_BCHW, run), {}

    def evaluate(self) -> dict[str, float]:
        """Loss on whole held-out cutouts, in all and of each source."""
        return self.mixture.mean([self._held_out_loss(learnt) for learnt in self.mixture.sources])

    def _held_out_loss(self, learnt: Learnt[PixelStore]) -> float:
        held_out = learnt.held_out(self.run.evaluated)
        losses = []
        for start in range(0, len(held_out), self.run.batch):
            images, sigma_BCHW = learnt.store.read(held_out[start : start + self.run.batch])
            losses.append(float(reconstruction_loss(self.module, images, sigma_BCHW, self.run)))
        return float(np.mean(losses))


def augment(
    images: Images, sigma_BCHW: Tensor, draws: NDArray[np.float64], *, crop: int
) -> tuple[Images, Tensor]:
    """Turn and mirror each cutout, and cut ``crop`` pixels near the centre.

    Parameters
    ----------
    draws
        Uniform numbers (B, >=4): turns, mirror, offset down, offset across.
    """
    size = images.flux_BCHW.shape[-1]
    flux: list[Tensor] = []
    good: list[Tensor] = []
    sigma: list[Tensor] = []
    for row, (turn, mirror, down, across) in enumerate(draws[:, :4]):
        top, left = (_offset(draw, size=size, crop=crop) for draw in (down, across))
        for planes, out in (
            (images.flux_BCHW, flux),
            (images.good_BCHW, good),
            (sigma_BCHW, sigma),
        ):
            cut = planes[row, :, top : top + crop, left : left + crop]
            turned = torch.rot90(cut, int(turn * 4), (1, 2))
            out.append(turned.flip(2) if mirror < 0.5 else turned)
    cropped = Images(flux_BCHW=torch.stack(flux), good_BCHW=torch.stack(good), bands=images.bands)
    return cropped, torch.stack(sigma)


def as_stamps(images: Images, draws: NDArray[np.float64], *, probability: float) -> Images:
    """Mark all but a central square of some cutouts as not observed, as in small real stamps.

    ``draws`` (B, >=6) decides with its columns 4 (whether) and 5 (side).
    """
    good_BCHW = images.good_BCHW.clone()
    size = good_BCHW.shape[-1]
    low, high = STAMP_SIDES
    for row in (draws[:, 4] < probability).nonzero()[0]:
        side = low + int(draws[row, 5] * (high - low))
        margin = max(0, (size - side) // 2)
        inside = torch.zeros(size, dtype=torch.bool)
        inside[margin : size - margin] = True
        good_BCHW[row] &= inside[:, None] & inside[None, :]
    return Images(flux_BCHW=images.flux_BCHW, good_BCHW=good_BCHW, bands=images.bands)


def _offset(draw: float, *, size: int, crop: int) -> int:
    """First row of a crop whose centre lies up to an eighth of the cutout off the middle."""
    middle, reach = (size - crop) // 2, min((size - crop) // 2, size // 8)
    return middle - reach + int(draw * (2 * reach + 1))
