"""Any number of points as one picture, drawn by datashader where the data are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skyvec.drawing import MUTED
from skyvec.explorer.colours import Classes, Colour, Numbers

if TYPE_CHECKING:
    import xarray as xr
    from datashader import Canvas

RAMP = ("#fde725", "#7ad151", "#22a884", "#2a788e", "#414487", "#440154")
"""Viridis, dark for large, since the paper is light."""
CROWDS = ("#a9c7e0", "#5fa2ce", "#0072b2", "#003f66", "#001a2e")
"""Few objects in a place to many."""
_GREYS = ("#d5d2ca", "#b4b2ac")
_LONE = ((2_000, 3), (12_000, 2), (60_000, 1))
"""Places with a point below which each point is drawn so many pixels wider, to be seen at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The part of a plane that is seen, and the pixels to draw it with."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int


class Cloud:
    """The points of one plane."""

    def __init__(self, xy: NDArray[np.floating]) -> None:
        self._frame = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}).astype(np.float32)

    def draw(
        self,
        window: Window,
        colour: Colour | None,
        chosen: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint32]:
        """RGBA (height, width), the lowest row first.

        Parameters
        ----------
        colour
            Column; None for the density of points.
        chosen
            Points that are coloured; all others lie grey behind them.
        """
        from datashader import Canvas
        from datashader import transfer_functions as tf

        canvas = Canvas(window.width, window.height, x_range=window.x, y_range=window.y)
        frame = self._frame if colour is None else self._with(colour)
        layers = []
        if chosen is not None:
            layers.append(_shaded(canvas, self._frame, _GREYS))
            frame = frame[chosen]
        if isinstance(colour, Numbers):
            known = np.isfinite(frame["value"].to_numpy())
            if not known.all():
                layers.append(_shaded(canvas, frame[~known], _GREYS))
                frame = frame[known]
            layers.append(_of_numbers(canvas, frame, colour.span))
        elif isinstance(colour, Classes):
            layers.append(_of_classes(canvas, frame, colour))
        else:
            layers.append(_shaded(canvas, frame, CROWDS))
        picture = tf.stack(*layers) if len(layers) > 1 else layers[0]
        return np.asarray(picture.data, np.uint32)

    def _with(self, colour: Colour) -> pd.DataFrame:
        if isinstance(colour, Numbers):
            return self._frame.assign(value=colour.values)
        labels = pd.Index([str(code) for code in range(-1, len(colour.labels))])
        return self._frame.assign(value=pd.Categorical.from_codes(colour.codes + 1, labels))


def _shaded(canvas: Canvas, frame: pd.DataFrame, colours: tuple[str, ...]) -> xr.DataArray:
    from datashader import count
    from datashader import transfer_functions as tf

    counts = canvas.points(frame, "x", "y", count())
    return _spread(tf.shade(counts, cmap=list(colours), how="eq_hist"))


def _of_numbers(canvas: Canvas, frame: pd.DataFrame, span: tuple[float, float]) -> xr.DataArray:
    from datashader import mean
    from datashader import transfer_functions as tf

    means = canvas.points(frame, "x", "y", mean("value"))
    return _spread(tf.shade(means, cmap=list(RAMP), how="linear", span=list(span)))


def _of_classes(canvas: Canvas, frame: pd.DataFrame, colour: Classes) -> xr.DataArray:
    from datashader import by, count
    from datashader import transfer_functions as tf

    counts = canvas.points(frame, "x", "y", by("value", count()))
    key = {"-1": MUTED} | {str(code): c for code, c in enumerate(colour.colours)}
    return _spread(tf.shade(counts, color_key=key, how="log", min_alpha=140))


def _spread(picture: xr.DataArray) -> xr.DataArray:
    from datashader import transfer_functions as tf

    places = int(np.count_nonzero(picture.data))
    wider = next((pixels for most, pixels in _LONE if places < most), 0)
    return tf.spread(picture, px=wider) if wider else picture
