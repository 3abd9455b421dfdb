"""Segmentation from tokens: a linear head on the context vector of each image token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import fit_to_grid
from skyvec_training.scorecard.embeddings import Embedded
from skyvec_training.scorecard.heads import Floats, Rows

# Shape letters: B object, T image token, D width, P pixel of a token.

SIDE = 96
"""Pixels on a side of the window that the image tokens cover."""
STRENGTH = 1.0
"""Of the ridge, in units of a token; there are some 1e5 tokens."""
LEVELS = np.linspace(0.1, 0.9, 17)
Pixels = NDArray[np.bool_]


def maps_of(column: NDArray[np.generic], *, threshold: float) -> tuple[Pixels, NDArray[np.bool_]]:
    """Foreground (B, 96, 96) of a column of lists of lists, and which rows have a map."""
    there = np.array([value is not None and len(value) > 0 for value in column.tolist()])
    out = np.zeros((len(column), SIDE, SIDE), bool)
    for row in np.flatnonzero(there):
        plane = torch.tensor(np.array(column[row], np.float32))
        fitted, kept = fit_to_grid(plane, torch.isfinite(plane), size=SIDE)
        out[row] = ((fitted > threshold) & kept).numpy()
    return out, there


def predict_maps(
    embedded: Embedded, maps_BHW: Pixels, rows: Rows, fold_B: Rows, *, token_key: str, start: int
) -> Pixels:
    """Out-of-fold foreground (rows, 96, 96); tokens that are not valid are background.

    Parameters
    ----------
    fold_B
        Fold of each of ``rows``.
    start
        First joint position of the image's domain in the model's vocabulary.
    """
    down, across = MODALITIES[token_key].grid
    pixels = SIDE // down
    width = embedded.dim + 1
    folds = np.unique(fold_B)
    products = np.zeros((len(folds), width, width))
    answers = np.zeros((len(folds), width, pixels * pixels))
    patches_BTP = patches(maps_BHW[rows], down, across)
    for place, row in enumerate(rows.tolist()):
        x_TD, at_T = _tokens(embedded, row, start, down * across)
        own = int(np.searchsorted(folds, fold_B[place]))
        products[own] += x_TD.T @ x_TD
        answers[own] += x_TD.T @ patches_BTP[place, at_T]
    out = np.zeros((len(rows), SIDE, SIDE), bool)
    for number, fold in enumerate(folds.tolist()):
        others = np.arange(len(folds)) != number
        strength = STRENGTH * np.eye(width)
        weights = np.linalg.solve(products[others].sum(0) + strength, answers[others].sum(0))
        taught = np.flatnonzero(fold_B != fold)[:200]  # enough to place one threshold
        level = _best_level(embedded, rows, taught, patches_BTP, weights, start, down * across)
        for place in np.flatnonzero(fold_B == fold).tolist():
            found_TP = _answer(embedded, int(rows[place]), weights, start, down * across)
            out[place] = whole(found_TP[None] > level, down, across)[0]
    return out


def patches(maps_BHW: Pixels, down: int, across: int) -> NDArray[np.float32]:
    """Pixels (B, T, P) of each token of the grid."""
    count, height, width = maps_BHW.shape
    tiles = maps_BHW.reshape(count, down, height // down, across, width // across)
    return tiles.swapaxes(2, 3).reshape(count, down * across, -1).astype(np.float32)


def whole(patches_BTP: Pixels, down: int, across: int) -> Pixels:
    """Inverse of `patches`."""
    count, _, size = patches_BTP.shape
    side = round(size**0.5)
    tiles = patches_BTP.reshape(count, down, across, side, side).swapaxes(2, 3)
    return tiles.reshape(count, down * side, across * side)


def overlaps(found_BHW: Pixels, true_BHW: Pixels) -> tuple[Floats, Floats]:
    """Pixels of intersection and of union of each object."""
    both = (found_BHW & true_BHW).sum((1, 2))
    either = (found_BHW | true_BHW).sum((1, 2))
    return both.astype(np.float64), either.astype(np.float64)


def mean_map(maps_BHW: Pixels, fold_B: Rows) -> Pixels:
    """The baseline that looks at nothing: pixels that are foreground in half of the other folds."""
    out = np.zeros_like(maps_BHW)
    for fold in np.unique(fold_B):
        out[fold_B == fold] = maps_BHW[fold_B != fold].mean(0) > 0.5
    return out


def _tokens(embedded: Embedded, row: int, start: int, count: int) -> tuple[Floats, Rows]:
    first, last = embedded.starts_B[row], embedded.starts_B[row + 1]
    at_T = embedded.positions_N[first:last].astype(np.int64) - start
    inside = (at_T >= 0) & (at_T < count)
    x_TD = np.array(embedded.contexts(row)[inside], np.float64)
    return np.concatenate([x_TD, np.ones((len(x_TD), 1))], axis=1), at_T[inside]


def _answer(embedded: Embedded, row: int, weights: Floats, start: int, count: int) -> Floats:
    x_TD, at_T = _tokens(embedded, row, start, count)
    out_TP = np.zeros((count, weights.shape[1]))
    out_TP[at_T] = x_TD @ weights
    return out_TP


def _best_level(
    embedded: Embedded, rows: Rows, taught: Rows, patches_BTP: Floats, weights: Floats,
    start: int, count: int,
) -> float:  # fmt: skip
    found = np.stack([_answer(embedded, int(rows[p]), weights, start, count) for p in taught])
    true = patches_BTP[taught] > 0.5
    scores = [float(((found > v) & true).sum() / max(1, ((found > v) | true).sum()))
              for v in LEVELS]  # fmt: skip
    return float(LEVELS[int(np.argmax(scores))])
