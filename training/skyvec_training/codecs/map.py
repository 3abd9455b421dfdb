"""Training of the codec of segmentation maps: error of the map, and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from skyvec_core.codecs.map import MapCodec, MapCodecConfig
from skyvec_training.codecs.mixture import Learnt, Mixture
from skyvec_training.data.draws import Stream, uniforms
from skyvec_training.data.maps import MapStore
from skyvec_training.recipe.codecs import MapCodecRun

# Shape letters: B object, H W map pixels.

_LEAST_CHANCE = 1e-6


class AveragedCodec(nn.Module):
    """A codec that is trained, and the moving average of its weights that is published.

    After n steps the average keeps at most (1 + n) / (10 + n) of itself, so that it forgets the
    first weights (as in TensorFlow's ``ExponentialMovingAverage``). Running means of batch
    normalization are those of the trained codec.
    """

    def __init__(self, codec: MapCodec, *, decay: float) -> None:
        super().__init__()
        self.codec = codec

        def average(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
            kept = min(decay, (1 + int(count)) / (10 + int(count)))
            return torch.lerp(new, mean, kept)

        self.average = AveragedModel(codec, avg_fn=average)
        self.average.requires_grad_(requires_grad=False)

    @property
    def averaged(self) -> MapCodec:
        """The codec with averaged weights."""
        return cast("MapCodec", self.average.module)

    def follow(self) -> None:
        """Take the weights of now into the average."""
        self.average.update_parameters(self.codec)


def build_codec(run: MapCodecRun, *, seed: int) -> MapCodec:
    """A codec with fresh weights."""
    sizes = asdict(run.model)
    codec = MapCodec(MapCodecConfig(**sizes))
    generator = torch.Generator().manual_seed(seed)
    for module in codec.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return codec


def map_loss(codec: MapCodec, map_BHW: Tensor, run: MapCodecRun) -> Tensor:
    """Mean squared error or cross-entropy over measured pixels; NaN marks the others."""
    measured_BHW = map_BHW.isfinite()
    true_BHW = torch.where(measured_BHW, map_BHW, 0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bfloat16"):
        latent_BDhw = codec.latents(true_BHW).float()
        code_BDhw = codec.quantizer(latent_BDhw.movedim(1, -1)).movedim(-1, 1)
        found_BHW = codec.reconstruct(code_BDhw).float()
    if run.loss == "mse":
        loss_BHW = functional.mse_loss(found_BHW, true_BHW, reduction="none")
    else:
        # torch's own refuses NaN before the loop can tell of it.
        chance_BHW = found_BHW.clamp(_LEAST_CHANCE, 1 - _LEAST_CHANCE)
        loss_BHW = -torch.lerp((1 - chance_BHW).log(), chance_BHW.log(), true_BHW)
    return (loss_BHW * measured_BHW).sum() / measured_BHW.sum().clamp(min=1)


class MapTask:
    """The map codec on the maps of one survey, turned and mirrored at random."""

    def __init__(
        self, codec: MapCodec, sources: Sequence[Learnt[MapStore]], run: MapCodecRun, *, seed: int
    ) -> None:
        self.module = AveragedCodec(codec, decay=run.average_decay)
        self.run, self.seed = run, seed
        self.mixture = Mixture(sources)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss on one batch; the average follows the steps before this one."""
        self.module.follow()
        learnt, rows = self.mixture.rows(step, batch=self.run.batch, seed=self.seed)
        draws = uniforms(
            seed=self.seed, stream=Stream.AUGMENTATION, step=step, slots=range(len(rows)), width=4
        )
        turned = [
            _turned(one, int(turn * 4), mirrored=mirror < 0.5)
            for one, (turn, mirror) in zip(learnt.store.read(rows), draws[:, :2], strict=True)
        ]
        return map_loss(self.module.codec, torch.stack(turned), self.run), {}

    def evaluate(self) -> dict[str, float]:
        """Loss of the averaged codec on held-out maps."""
        return self.mixture.mean([self._held_out_loss(learnt) for learnt in self.mixture.sources])

    def _held_out_loss(self, learnt: Learnt[MapStore]) -> float:
        held_out = learnt.held_out(self.run.evaluated)
        batches = (
            learnt.store.read(held_out[start : start + self.run.batch])
            for start in range(0, len(held_out), self.run.batch)
        )
        losses = [float(map_loss(self.module.averaged, maps, self.run)) for maps in batches]
        return float(np.mean(losses))


def _turned(map_HW: Tensor, quarters: int, *, mirrored: bool) -> Tensor:
    turned = torch.rot90(map_HW, quarters, (0, 1))
    return turned.flip(1) if mirrored else turned
