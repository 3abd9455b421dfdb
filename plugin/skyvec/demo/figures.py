"""Pictures of the demo's page: facts -> matplotlib figures and cutouts, as base64 PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from astropy import units
from cdshealpix.nested import vertices
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from skyvec.demo.facts import CatalogFacts, ScoreRow
from skyvec.drawing import (
    FONT,
    GRID,
    INK,
    OTHER,
    OURS,
    Picture,
    blank,
    cutout_rgb,
    picture_of_pixels,
    style,
)
from skyvec_core.codecs.image import MIN_GOOD_FRACTION, ImageCodec
from skyvec_core.observations import fit_to_grid

Floats = NDArray[np.floating]
Curve = tuple[list[float], list[float]]
"""Steps and values."""

ACCENT = "#d55e00"
"""Okabe and Ito's vermilion."""
STAMP = 180
"""Least number of PNG pixels on a side of a cutout; whole multiples of its own pixels."""
LOCAL = 70.0
"""Degrees; catalogs that span more are drawn on the whole sky."""
HEXBIN_FROM = 4000
CELL = 4
"""Pixels on a side of one image token."""
RECONSTRUCTION = {
    "r2": "R² in flux",
    "r2_noise_free": "R² without noise",
    "chi2": "χ² per pixel",
    "aperture_error": "median relative flux error, 3.1″ aperture",
}


def cutout_picture(flux: Floats, *, alt: str) -> Picture:
    """Colour cutout with square pixels, its first row at the bottom."""
    colours = cutout_rgb(flux)[::-1]
    repeat = max(1, -(-STAMP // max(colours.shape[:2])))
    enlarged = np.ascontiguousarray(colours.repeat(repeat, 0).repeat(repeat, 1))
    return picture_of_pixels(enlarged, alt=alt)


def sky_map(catalog: CatalogFacts) -> Figure:
    """Positions and the outlines of the HEALPix partitions."""
    figure = blank(height=3.7)
    centre, offsets, dec = _about_centre(catalog)
    wide = max(np.ptp(offsets), np.ptp(dec)) > LOCAL or np.abs(dec).max() > LOCAL
    axes = figure.add_subplot(projection="mollweide" if wide else None)
    radians = np.pi / 180 if wide else 1.0
    for order, pixel in catalog.pixels:
        longitude, latitude = _outline(order, pixel)
        about = np.mod(longitude - centre + 180, 360) - 180
        about[np.abs(np.diff(about, append=about[-1])) > 180] = np.nan
        x = -about * radians if wide else about + centre
        axes.plot(x, latitude * radians, color=ACCENT, lw=1.3, alpha=0.85)
    x = -offsets * radians if wide else offsets + centre
    size = 9 if len(dec) > 400 else 16
    axes.scatter(x, dec * radians, s=size, color=OURS, alpha=0.6, lw=0, zorder=3)
    style(axes)
    axes.grid(color=GRID, lw=0.7)
    if wide:
        axes.set_xticklabels([])
    else:
        _frame_locally(axes, offsets + centre, dec)
    return figure


def truth_and_prediction(truth: Floats, predicted: Floats, *, label: str) -> Figure:
    """Out-of-fold predictions against the truth, with residuals and their running median."""
    figure = blank(height=4.9)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.2])
    limits = _limits(np.concatenate([truth, predicted]))
    for axes, values in ((upper, predicted), (lower, predicted - truth)):
        if len(truth) > HEXBIN_FROM:
            axes.hexbin(truth, values, gridsize=45, mincnt=1, bins="log", cmap="Blues", lw=0)
        else:
            axes.scatter(truth, values, s=9, color=OURS, alpha=0.35, lw=0)
        style(axes)
        axes.grid(color=GRID, lw=0.6)
    upper.plot(limits, limits, color=INK, lw=1.2, label="perfect")
    lower.axhline(0, color=INK, lw=1.2)
    middles, medians = running_median(truth, predicted - truth)
    lower.plot(middles, medians, "o-", color=ACCENT, lw=1.8, ms=4, label="median")
    upper.set(xlim=limits, ylim=limits)
    upper.set_ylabel(f"predicted {label}", fontsize=FONT, color=INK)
    lower.set_ylabel("predicted \N{MINUS SIGN} true", fontsize=FONT, color=INK)
    lower.set_xlabel(f"true {label}", fontsize=FONT, color=INK)
    for axes, place in ((upper, "upper left"), (lower, "lower left")):
        axes.legend(loc=place, frameon=False, fontsize=FONT - 1, labelcolor=INK, borderpad=0)
    figure.align_ylabels([upper, lower])
    return figure


def running_median(x: Floats, y: Floats, *, bins: int = 8) -> tuple[Floats, Floats]:
    """Median of ``y`` in bins of ``x`` with equal counts, at the median ``x`` of each."""
    parts = [part for part in np.array_split(np.argsort(x), bins) if len(part)]
    return (
        np.array([np.median(x[part]) for part in parts]),
        np.array([np.median(y[part]) for part in parts]),
    )


def score_intervals(rows: Sequence[ScoreRow]) -> Figure:
    """R2 and its 95% interval, one line for each input, ours in colour."""
    figure = blank(height=0.95 + 0.78 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        colour = OURS if row.ours else OTHER
        score = row.score
        axes.plot([score.r2_low, score.r2_high], [place] * 2, color=colour, lw=5, alpha=0.45,
                  solid_capstyle="butt")  # fmt: skip
        axes.plot(score.r2, place, "o", color=colour, ms=9)
        axes.text(0.01, place + 0.17, f"{row.name}:  {score.r2:.3f}", fontsize=FONT - 0.5,
                  color=OURS if row.ours else INK, va="bottom",
                  fontweight="bold" if row.ours else "normal",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    bounds = [b for row in rows for b in (row.score.r2_low, row.score.r2_high, row.score.r2)]
    finite = [bound for bound in bounds if np.isfinite(bound)]
    axes.set_xlim(min([0.0, *finite]) - 0.02, 1.0)
    axes.set_ylim(-0.5, len(rows) - 0.25)
    axes.set_yticks([])
    style(axes)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_xlabel("R² out of fold (1 = perfect, 0 = the mean)", fontsize=FONT, color=INK)
    return figure


def loss_figure(curves: Mapping[str, Curve]) -> Figure:
    """Losses of one training run against the step; logarithmic if they span a factor of four."""
    figure = blank(height=3.1)
    axes = figure.subplots()
    colours = (OURS, ACCENT, "#009e73", OTHER)
    for place, (name, (steps, values)) in enumerate(curves.items()):
        few = "o-" if len(steps) <= 40 else "-"
        axes.plot(steps, values, few, ms=4, lw=1.6, color=colours[place % len(colours)],
                  label=name.replace("_", " "))  # fmt: skip
    everything = [value for _, values in curves.values() for value in values]
    if min(everything) > 0 and max(everything) > 4 * min(everything):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    style(axes)
    axes.grid(color=GRID, lw=0.7, which="both")
    axes.set_xlabel("optimizer step", fontsize=FONT, color=INK)
    axes.set_ylabel("loss", fontsize=FONT, color=INK)
    axes.legend(frameon=False, fontsize=FONT - 0.5, labelcolor=INK)
    return figure


def visible_cells(flux: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(24, 24), True where the image codec makes a token that the model sees."""
    planes = torch.from_numpy(np.array(flux, np.float32))
    good = torch.isfinite(planes) & (planes != 0)
    _, fitted = fit_to_grid(planes, good, size=ImageCodec.size)
    side = ImageCodec.size // CELL
    share = fitted.float().mean(0).reshape(side, CELL, side, CELL).mean((1, 3))
    return np.asarray(share >= MIN_GOOD_FRACTION)


def squares(cells: NDArray[np.bool_]) -> str:
    """SVG path of the True cells, each 10 units wide, the first row at the bottom."""
    corners = np.argwhere(cells[::-1]) * 10
    return " ".join(f"M{x + 1} {y + 1}h8v8h-8z" for y, x in corners.tolist())


def loss_curves(card: Mapping[str, object]) -> dict[str, dict[str, Curve]]:
    """Curves by run; read from ``runs`` and ``curves`` of a card, whichever there is."""
    groups: dict[str, Mapping[str, object]] = {
        name: mapping(mapping(run).get("curves")) for name, run in mapping(card.get("runs")).items()
    }
    flat: dict[str, object] = {}
    for name, value in mapping(card.get("curves")).items():
        if "step" in mapping(value):
            flat[name] = value
        else:
            groups[name] = mapping(value)
    found = {
        name.replace("_", " "): {
            kind: curve for kind, raw in group.items() if (curve := _curve(mapping(raw)))
        }
        for name, group in {**groups, "training": flat}.items()
    }
    return {name: curves for name, curves in found.items() if curves}


def _curve(raw: Mapping[str, object]) -> Curve | None:
    """Finite points of ``{"step": [...], "<value>": [...]}``."""
    key = next((key for key in raw if key != "step"), "")
    points = [
        (float(step), float(value))
        for step, value in zip(listed(raw.get("step")), listed(raw.get(key)), strict=False)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value)
    ]
    return ([step for step, _ in points], [value for _, value in points]) if points else None


def reconstruction_table(reconstruction: Mapping[str, object]) -> dict[str, object]:
    """Titles and rows of the table of scores by band; empty if there are none."""
    columns = {
        title: mapping(reconstruction[key])
        for key, title in RECONSTRUCTION.items()
        if mapping(reconstruction.get(key))
    }
    bands = list(dict.fromkeys(band for column in columns.values() for band in column))
    rows = [(band, [column.get(band) for column in columns.values()]) for band in bands]
    return {"titles": list(columns), "rows": rows} if rows else {}


def mapping(value: object) -> Mapping[str, object]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: object) -> Sequence[object]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _about_centre(catalog: CatalogFacts) -> tuple[float, Floats, Floats]:
    """Mean right ascension, offsets from it within 180 degrees, and declination."""
    direction = np.exp(1j * np.deg2rad(catalog.ra)).sum()
    centre = float(np.mod(np.rad2deg(np.angle(direction)), 360))
    return centre, np.mod(catalog.ra - centre + 180, 360) - 180, catalog.dec


def _outline(order: int, pixel: int) -> tuple[Floats, Floats]:
    """Closed outline of a HEALPix pixel in degrees."""
    longitude, latitude = vertices(np.array([pixel], np.uint64), order, step=12)
    ring = [*range(longitude.shape[1]), 0]
    return longitude.to_value(units.deg)[0, ring], latitude.to_value(units.deg)[0, ring]


def _frame_locally(axes: Axes, ra: Floats, dec: Floats) -> None:
    """East to the left, equal scales, and room around the objects."""
    middle_ra, middle_dec = (float(x.min() + x.max()) / 2 for x in (ra, dec))
    shrink = float(np.cos(np.deg2rad(middle_dec)))
    half = max(0.62 * float(np.ptp(dec)), 0.48 * float(np.ptp(ra)) * shrink, 1.0)
    axes.set_xlim(middle_ra + 1.3 * half / shrink, middle_ra - 1.3 * half / shrink)
    axes.set_ylim(middle_dec - half, middle_dec + half)
    axes.set_aspect(1 / shrink)
    axes.xaxis.set_major_formatter(lambda value, _: f"{np.mod(value, 360):g}")
    axes.locator_params(nbins=6)
    axes.set_xlabel("right ascension (deg)", fontsize=FONT, color=INK)
    axes.set_ylabel("declination (deg)", fontsize=FONT, color=INK)


def _limits(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin
