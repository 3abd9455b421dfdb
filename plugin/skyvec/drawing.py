"""What all pages draw with: colours, sizes, bare figures, PNG for HTML, colour composites."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from astropy.visualization import make_lupton_rgb
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

INK, MUTED, GRID, PAPER = "#1d2733", "#5b6672", "#d8ccb0", "#faf8f3"
OURS, OTHER = "#0072b2", "#8a8f98"
"""Okabe and Ito's blue, told apart from other colours by every kind of eye, and grey."""
DPI, DENSITY = 96, 2
FONT = 11.5
"""Points at full width; still above 9 where a phone shows the figure at 360 px."""
WIDTH = 4.8
"""Inches."""
BAND_WEIGHTS = (0.55, 1.0, 1.75)
"""Of z, r and g, so that a typical galaxy is neither all red nor all blue."""
BAD_PIXEL = (176, 172, 164)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG for an ``img`` element."""

    png: bytes
    alt: str
    width: int
    """CSS pixels."""
    height: int

    @property
    def data(self) -> str:
        """Base64."""
        return base64.b64encode(self.png).decode()


def blank(*, height: float) -> Figure:
    """A figure of full width, inches high."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor=PAPER)


def style(axes: Axes) -> None:
    """Paper, ink and no frame above and to the right."""
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT - 1, colors=MUTED, labelcolor=INK, which="both")
    for side, spine in axes.spines.items():
        spine.set_color(MUTED)
        spine.set_visible(side not in {"top", "right"})


def picture(figure: Figure, *, alt: str) -> Picture:
    """Render at twice the density of the screen."""
    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI * DENSITY, facecolor=PAPER)
    width, height = figure.get_size_inches() * DPI
    return Picture(png=buffer.getvalue(), alt=alt, width=round(width), height=round(height))


def picture_of_pixels(colours: NDArray[np.uint8], *, alt: str) -> Picture:
    """Pixels (height, width, 3) as they are."""
    buffer = BytesIO()
    imsave(buffer, np.ascontiguousarray(colours), format="png")
    height, width = colours.shape[:2]
    return Picture(png=buffer.getvalue(), alt=alt, width=width, height=height)


def cutout_rgb(flux: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(height, width, 3) of the z, r and g planes after Lupton et al. 2004; grey where bad.

    The stretch follows the cutout: its brightest pixels stay below white, its noise near black.
    """
    bad = np.asarray(~np.isfinite(flux).all(0), np.bool_)
    clean = np.where(bad, 0.0, flux).astype(np.float64)
    planes = np.stack([clean[b] * w for b, w in zip((3, 1, 0), BAND_WEIGHTS, strict=True)])
    seen = planes.mean(0)[~bad]
    if not len(seen):
        return np.full((*bad.shape, 3), BAD_PIXEL, np.uint8)
    # Differences of neighbours hold the noise, but little of a galaxy that fills the stamp.
    steps = np.abs(np.diff(planes, axis=-1))[:, ~(bad[:, 1:] | bad[:, :-1])]
    noise = 1.05 * float(np.median(steps)) if steps.size else 0.0
    peak = float(np.percentile(seen, 99.8))
    stretch = max(peak / 12, min(5 * noise, 1.5 * peak), 1e-6)
    sky = min(float(np.percentile(seen, 10)), 0.1 * peak) - 0.5 * noise
    with np.errstate(invalid="ignore"):  # astropy divides by zero in pixels that are black
        colours = make_lupton_rgb(*planes, minimum=sky, stretch=stretch, Q=7)
    rgb = np.array(colours, np.uint8)
    rgb[bad] = BAD_PIXEL
    return rgb
