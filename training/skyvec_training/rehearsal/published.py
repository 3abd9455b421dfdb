"""The published AION-1 runs (arXiv 2510.17960), and what their times imply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from skyvec_core.model.config import SIZES
from skyvec_training.rehearsal.network import GPUS
from skyvec_training.rehearsal.plan import NAMES
from skyvec_training.rehearsal.work import step_flops

STEPS, BATCH, INPUTS, TARGETS = 205_000, 8192, 256, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRun:
    """H100 GPUs and days of one size; that every size took 205,000 steps is our assumption."""

    size: str
    gpus: int
    days: float

    @property
    def gpu_hours(self) -> float:
        """In all."""
        return self.gpus * self.days * 24

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.days * 86_400 / STEPS

    @property
    def mfu(self) -> float:
        """Share of the peak, padding of the budgets counted as work."""
        one = step_flops(SIZES[NAMES[self.size]], torch.tensor([INPUTS]), torch.tensor([TARGETS]))
        peak = GPUS["h100"].tera_flops * 1e12
        return one * BATCH / self.step_seconds / self.gpus / peak


PUBLISHED: Mapping[str, PublishedRun] = MappingProxyType(
    {
        run.size: run
        for run in (
            PublishedRun(size="b", gpus=64, days=1.5),
            PublishedRun(size="l", gpus=100, days=2.5),
            PublishedRun(size="xl", gpus=288, days=3.5),
        )
    }
)
