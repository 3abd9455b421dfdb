"""Pace and norms as small charts."""

from __future__ import annotations

import numpy as np

from skyvec.report.drawing import COLOURS, FONT, figure, inline_svg, style
from skyvec.report.pace import Pace
from skyvec.report.sample import VectorSample

_UNITS = ((86400.0 * 3, 86400.0, "days"), (3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))


def pace_chart(pace: Pace) -> str:
    """Rows per second, and the share of time in which the device worked."""
    length = pace.stretches[-1].seconds
    scale, unit = next(((s, u) for least, s, u in _UNITS if length > least), (1.0, "seconds"))
    time = pace.seconds / scale
    drawn = figure(3.9)
    upper, lower = drawn.subplots(2, 1, sharex=True)
    for axes in (upper, lower):
        style(axes)
    upper.fill_between(time, pace.rows_per_second, step="mid", color=COLOURS["done"], lw=0)
    upper.set_ylim(0)
    upper.set_title("rows per second", loc="left", fontsize=FONT, color=COLOURS["ink"])
    lower.fill_between(
        time, 100 * np.nan_to_num(pace.busy), step="mid", color=COLOURS["flagged"], lw=0
    )
    lower.set_ylim(0, 100)
    lower.set_title("device busy / percent of worker time", loc="left", fontsize=FONT,
                    color=COLOURS["ink"])  # fmt: skip
    lower.set_xlabel(f"{unit} since {pace.stretches[-1].began[:16].replace('T', ' ')} UTC",
                     fontsize=FONT, color=COLOURS["ink"])  # fmt: skip
    last = pace.stretches[-1]
    return inline_svg(
        drawn,
        alt=f"Pace of the last stretch of work: {last.rows_per_second:,.1f} rows per second, "
        f"device busy {last.busy:.0%} of the worker time",
        salt="pace",
    )


def norm_chart(sample: VectorSample) -> str:
    """Histogram of the norms."""
    drawn = figure(2.4)
    axes = drawn.subplots()
    style(axes)
    good = sample.norms[np.isfinite(sample.norms)]
    axes.hist(good, bins=min(40, max(8, int(np.sqrt(len(good))))), color=COLOURS["done"])
    axes.tick_params(axis="x", pad=7)  # the first label stays clear of the other axis' zero
    axes.set_title("vectors", loc="left", fontsize=FONT, color=COLOURS["ink"])
    axes.set_xlabel("Euclidean norm", fontsize=FONT, color=COLOURS["ink"])
    low, middle, high = np.quantile(good, [0.01, 0.5, 0.99])
    return inline_svg(
        drawn,
        alt=f"Norms of {len(good):,} vectors: median {middle:.3g}, 98 percent between {low:.3g} "
        f"and {high:.3g}",
        salt="norms",
    )
