"""The two planes as Bokeh figures: bare, of one scale, with marks for what is chosen."""

from __future__ import annotations

from typing import Any

from bokeh.models import (
    BoxSelectTool,
    ColumnDataSource,
    LassoSelectTool,
    PanTool,
    Range1d,
    ResetTool,
    WheelZoomTool,
)
from bokeh.plotting import figure

from skyvec.drawing import GRID, MUTED, PAPER
from skyvec.explorer.scene import Points

_MARK = "#c2185b"
"""Of no palette here."""


def plane_figure(name: str, points: Points, **options: Any) -> figure:  # noqa: ANN401
    """A figure that fills its place on the page; grid lines where the plane is the sky.

    Parameters
    ----------
    options
        Of the figure: its ranges.
    """
    wheel, pan = WheelZoomTool(), PanTool()
    plot = figure(
        name=name, tools=[pan, wheel, BoxSelectTool(), LassoSelectTool(continuous=False), ResetTool()],
        active_scroll=wheel, active_drag=pan, active_tap=None, sizing_mode="stretch_both",
        min_width=200, min_height=200, background_fill_color=PAPER, border_fill_color=PAPER,
        outline_line_color=None, toolbar_location="above", **options,
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    plot.min_border = 4
    if points.lines:
        _grid(plot, points)
    return plot


def add_marks(plot: figure) -> None:
    """Rings for neighbours and for the object that is looked at, above all else."""
    ring = {"marker": "circle", "fill_color": None}
    for kind, size in (("near", 11), ("chosen", 20)):
        source = ColumnDataSource({"x": [], "y": []}, name=f"{kind}-{plot.name}")
        plot.scatter("x", "y", source=source, size=size, line_color="#ffffff", line_width=4, **ring)
        plot.scatter("x", "y", source=source, size=size, line_color=_MARK, line_width=2, **ring)


def window_ranges(points: Points) -> dict[str, Range1d]:
    """Ranges over all points; the page's own shape is not known yet."""
    left, right, bottom, top = points.bounds
    return {"x_range": Range1d(left, right), "y_range": Range1d(bottom, top)}


def _grid(plot: figure, points: Points) -> None:
    lines = points.lines
    plot.multi_line(
        [line.xy[:, 0].tolist() for line in lines], [line.xy[:, 1].tolist() for line in lines],
        line_color=GRID, line_width=1, level="underlay",
    )  # fmt: skip
    ends = [line.xy[len(line.xy) // 2] for line in lines]
    plot.text(
        [float(end[0]) for end in ends], [float(end[1]) for end in ends],
        text=[line.text for line in lines], text_color=MUTED, text_font_size="11px",
        text_align="center", text_baseline="middle", level="overlay",
        background_fill_color=PAPER, background_fill_alpha=0.75, padding=1,
    )  # fmt: skip
