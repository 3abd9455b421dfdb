"""How far codecs that are tables move held-out numbers, in their unit, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skyvec_core.codecs.coefficients import CoefficientsCodec
from skyvec_core.codecs.scalar import ScalarCodec
from skyvec_core.modalities import MODALITIES
from skyvec_training.codecs.pictures import new_figure
from skyvec_training.codecs.scalars import TableColumn, read_by
from skyvec_training.data import parts
from skyvec_training.data.numbers import NumberStream

BATCHES = 4
"""Batches of held-out rows, at most, that are scored."""
_Floats = NDArray[np.float64]
Pairs = Mapping[str, tuple[_Floats, _Floats]]
"""Token key -> numbers as they were and as they come back, those that are finite."""


@torch.inference_mode()
def pairs(place: Path, columns: Sequence[TableColumn], *, first: int) -> dict[str, tuple[_Floats, _Floats]]:  # fmt: skip
    """Numbers of a survey from row ``first`` on, before and after their codecs.

    A label that the files do not hold, since its grid needs no fitting, is left out.
    """
    known = parts.names_of(parts.parts_of(place)[0])
    columns = [column for column in columns if known.issuperset(column.columns)]
    stream = NumberStream(source=place, columns=read_by(columns))
    batches = list(islice(stream.batches(start=first), BATCHES))
    found = {}
    for column in columns:
        codec = column.codec
        if not isinstance(codec, ScalarCodec | CoefficientsCodec):
            continue
        values = np.concatenate([column.values(numbers) for numbers in batches])
        values = values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
        tokens = codec.encode(torch.from_numpy(values).float())
        found[column.token_key] = (values, codec.decode(tokens.ids_BN).double().numpy())
    return found


def scores(compared: Pairs, columns: Sequence[TableColumn]) -> dict[str, object]:
    """By token key: unit, numbers compared, and median and 99% quantile of the absolute error.

    ``relative_median`` divides each error by its number; ``outside`` is the share of numbers
    beyond the ends of the table, whose error has no bound. Coefficients are taken together.
    """
    found: dict[str, object] = {}
    for column in columns:
        if column.token_key not in compared:
            continue
        true, again = compared[column.token_key]
        entry: dict[str, object] = {
            "column": column.columns[0],
            "quantity": MODALITIES[column.token_key].quantity,
            "numbers": int(true.size),
        }
        if true.size:
            error = np.abs(again - true)
            with np.errstate(divide="ignore", invalid="ignore"):
                relative = np.where(true != 0, error / np.abs(true), 0.0)
            entry |= {
                "median_error": float(np.median(error)),
                "p99_error": float(np.quantile(error, 0.99)),
                "relative_median": float(np.median(relative)),
                "outside": float(_outside(column, true).mean()),
            }
        found[column.token_key] = entry
    return found


def draw(compared: Pairs, picture: Path) -> None:
    """Draw numbers before and after, a panel for each codec; axes compress by arcsinh."""
    columns = 6
    lines = -(-len(compared) // columns)
    figure = new_figure(2.2 * columns, 2.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, (key, (true, again)) in zip(panels, compared.items(), strict=False):
        chosen = np.linspace(0, max(true.size - 1, 0), min(true.size, 2000)).astype(int)
        axes.set_axis_on()
        axes.plot(*(np.arcsinh(x.ravel()[chosen]) for x in (true, again)), ".", ms=1)
        axes.set_title(key, fontsize=7)
        axes.tick_params(labelsize=5)
    figure.savefig(picture, dpi=110)


def _outside(column: TableColumn, true: _Floats) -> NDArray[np.bool_]:
    codec = column.codec
    if isinstance(codec, ScalarCodec):
        edges = codec.quantizer.values[None].double().numpy()
    else:
        edges = torch.stack([table.values for table in column.tables]).double().numpy()
    scale = torch.from_numpy(true.reshape(len(true), -1)).float()
    if isinstance(codec, ScalarCodec | CoefficientsCodec):
        scale = codec.compress(scale)
    values = scale.double().numpy()
    return np.asarray((values < edges[:, 0]) | (values > edges[:, -1]))
