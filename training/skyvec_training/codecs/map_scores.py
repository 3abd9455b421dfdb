"""How well the map codec gives back held-out maps, and a picture of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.codecs.map import MapCodec
from skyvec_training.codecs.codebook import Usage
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.codecs.pictures import new_figure
from skyvec_training.data.maps import MapStore

ROWS = 64
MOST = 512
"""Held-out maps that are scored."""
THRESHOLD = 0.5
"""Value from which a pixel belongs to an object."""


@torch.inference_mode()
def scores(codec: MapCodec, store: MapStore, rows: NDArray[np.int64]) -> dict[str, object]:
    """Errors over measured pixels, and how well the objects' areas agree.

    ``mse`` is the mean squared error, beside ``mse_of_mean`` of a map that has the mean
    everywhere; ``iou`` is the intersection over union of the areas above 0.5 in all maps together,
    ``iou_median`` its median over maps with such an area; ``area_error`` is the relative error of
    the whole area. None where there is no area.
    """
    used = Usage(codec.quantizer.num_codes)
    square, total, squares, pixels, both, either = (0.0,) * 6
    areas, each = np.zeros(2), []
    for start in range(0, len(rows), ROWS):
        true = store.read(rows[start : start + ROWS])
        tokens = codec.encode(true)
        used.add(tokens)
        measured = true.isfinite()
        found = torch.where(measured, codec.decode(tokens.ids_BN), 0.0).double()
        true = torch.where(measured, true, 0.0).double()
        square += float((found - true).square().sum())
        total, squares = total + float(true.sum()), squares + float(true.square().sum())
        pixels += float(measured.sum())
        here, there = true >= THRESHOLD, found >= THRESHOLD
        shared = (here & there).sum((1, 2)).double()
        joint = (here | there).sum((1, 2)).double()
        both, either = both + float(shared.sum()), either + float(joint.sum())
        areas += [float(here.sum()), float(there.sum())]
        each += (shared / joint)[joint > 0].tolist()
    pixels = max(pixels, 1)
    return {
        "objects": len(rows),
        "mse": square / pixels,
        "mse_of_mean": squares / pixels - (total / pixels) ** 2,
        "iou": both / either if either else None,
        "iou_median": float(np.median(each)) if each else None,
        "area_error": float(areas[1] / areas[0] - 1) if areas[0] else None,
        **used.scores(),
    }


@torch.inference_mode()
def draw(codec: MapCodec, learnt: Learnt[MapStore], picture: Path) -> None:
    """Draw eight held-out maps over what the codec makes of them."""
    figure = new_figure(16, 4.4)
    panels = figure.subplots(2, 8, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    maps = learnt.store.read(learnt.held_out(8))
    found = codec.decode(codec.encode(maps).ids_BN)
    for column in range(len(maps)):
        for line, values in enumerate((maps, found)):
            panels[line, column].imshow(values[column].numpy(), origin="lower", vmin=0, vmax=1)
    figure.savefig(picture, dpi=110)
