"""The image baseline: a small residual network trained from scratch on the labels at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import Survey
from skyvec_training.data import pixels
from skyvec_training.data.leaves import leaves_of
from skyvec_training.data.pixels import PixelStore
from skyvec_training.recipe.evaluation import SupervisedRun
from skyvec_training.scorecard.heads import Floats, Rows, Scaled
from skyvec_training.scorecard.sample import Sample
from skyvec_training.scorecard.targets import Targets

# Shape letters: B object, C band, H W cutout pixels, K target.

NOISE_ROWS = 512
"""Cutouts from which the noise of a band is estimated."""


def has_cutouts(catalog: Path, survey: Survey) -> bool:
    """Whether the release has the survey's cutouts, with their noise."""
    if survey.image is None:
        return False
    schema = pq.read_schema(leaves_of(catalog)[0])
    if survey.image.name not in schema.names:
        return False
    return "ivar" in {field.name for field in schema.field(survey.image.name).type}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamps:
    """Cutouts of a sample, in its order."""

    store: PixelStore
    row_B: Rows
    """Row of the store of each object; -1 where it has no cutout."""
    noise_C11: NDArray[np.float32]
    """Median noise of a pixel in each band."""

    def read(self, rows: Rows, *, size: int) -> Tensor:
        """Central stamps (B, C, size, size) in units of the noise, arcsinh."""
        edge = (self.store.flux_BCHW.shape[-1] - size) // 2
        middle = slice(edge, edge + size)
        flux_BCHW = self.store.flux_BCHW[self.row_B[rows], :, middle, middle].astype(np.float32)
        return torch.from_numpy(np.arcsinh(flux_BCHW / self.noise_C11))


def cutouts_of(catalog: Path, survey: Survey, folder: Path) -> PixelStore:
    """Cutouts of a release, unpacked into ``folder`` unless they are there."""
    try:
        return pixels.open_store(folder)
    except (ConfigurationError, OSError):
        pixels.unpack(catalog, survey, folder)
        return pixels.open_store(folder)


def stamps_of(catalog: Path, survey: Survey, sample: Sample, folder: Path) -> Stamps:
    """Cutouts of a sample, read from ``folder`` if they were unpacked before."""
    store = cutouts_of(catalog, survey, folder)
    place = {key.decode(): row for row, key in enumerate(store.ids.tolist())}
    rows = [place.get(str(key), -1) for key in sample.ids.tolist()]
    sigma = np.array(store.sigma_BCHW[:NOISE_ROWS], np.float32).swapaxes(0, 1)
    noise = [np.median(band[band > 0]) if (band > 0).any() else 1.0 for band in sigma]
    return Stamps(store=store, row_B=np.array(rows, np.int64),
                  noise_C11=np.array(noise, np.float32)[:, None, None])  # fmt: skip


class SupervisedHead:
    """Trains a new network for every call, on all targets at once; turns and flips at random."""

    def __init__(self, stamps: Stamps, run: SupervisedRun) -> None:
        self.name, self.stamps, self.run = "supervised_image", stamps, run

    def predict(self, train: Rows, test: Rows, targets: Targets, *, seed: int) -> Floats:
        """See `skyvec_training.scorecard.heads.Head`."""
        run = self.run
        labels = Scaled(targets.values_BK[train])
        generator = torch.Generator().manual_seed(seed)
        network = network_of(len(self.stamps.noise_C11), labels.width, run, generator=generator)
        batch = min(run.batch, len(train))
        steps = max(run.least_steps, run.epochs * len(train) // batch)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, run.learning_rate, total_steps=steps + 1, cycle_momentum=False
        )
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < batch:
                order = torch.cat([order, torch.randperm(len(train), generator=generator)])
            rows, order = order[:batch], order[batch:]
            image_BCHW = turned(self._read(train[rows.numpy()]), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                out_BK = network(image_BCHW)
            loss = labels.loss(out_BK.float(), rows)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.inference_mode():
            parts = [network(self._read(rows))
                     for rows in np.array_split(test, max(1, -(-len(test) // 128)))]  # fmt: skip
        return labels.unscaled(torch.cat(parts))

    def _read(self, rows: Rows) -> Tensor:
        image_BCHW = self.stamps.read(rows, size=self.run.crop)
        return image_BCHW.to(memory_format=torch.channels_last)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, batch norm after each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return functional.relu(x + self.body(x))


class _Pooled(nn.Module):
    """Mean and maximum over the pixels: total light, and its peak."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)


def network_of(
    bands: int, targets: int, run: SupervisedRun, *, generator: torch.Generator
) -> nn.Sequential:
    """Three stages that halve the image and double the width, and a linear end."""
    layers: list[nn.Module] = []
    before = bands
    for stage in range(3):
        width = run.width * 2**stage
        kernel = 5 if stage == 0 else 3
        layers += [
            nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), Residual(width),
        ]  # fmt: skip
        before = width
    network = nn.Sequential(*layers, _Pooled(), nn.Linear(2 * before, targets))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def turned(image_BCHW: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each image turned by a random quarter and flipped or not."""
    kind_B = torch.randint(8, (len(image_BCHW),), generator=generator)
    out = image_BCHW.clone()
    for kind in range(1, 8):
        chosen = kind_B == kind
        if chosen.any():
            part = torch.rot90(image_BCHW[chosen], kind % 4, (2, 3))
            out[chosen] = part.flip(3) if kind >= 4 else part
    return out
