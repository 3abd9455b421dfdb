"""Pictures of an answer: thumbnails, spectra, sky map and scores, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord, UnitSphericalRepresentation
from astropy.visualization.wcsaxes import WCSAxes
from astropy.visualization.wcsaxes.frame import EllipticalFrame, RectangularFrame
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mocpy import MOC, WCS
from numpy.typing import NDArray

from skyvec.drawing import (
    DPI,
    FONT,
    GRID,
    INK,
    MUTED,
    OTHER,
    OURS,
    PAPER,
    WIDTH,
    Picture,
    blank,
    cutout_rgb,
    picture,
    picture_of_pixels,
    style,
)

if TYPE_CHECKING:
    from skyvec.answers.looks import Look
    from skyvec.answers.scores import ScoreSample

AREA = "#e0a526"
ASKED = "#d55e00"
"""Of Okabe and Ito's palette, both."""
LOCAL = 30.0
"""Degrees; answers that span more are drawn on the whole sky."""
NARROWEST = 0.2
"""Degrees across a map at least."""
MOLLWEIDE = 327.0
"""Degrees along the longer axis of the whole sky, twice those along the other: 4 sqrt(2) radians."""
WHOLE_SKY_ORDER = 6
"""HEALPix order of a footprint on the whole sky: one degree, which is 5 pixels of the map."""
SAMPLES = 360
"""Of a spectrum as drawn; more are averaged."""


def thumbnail(look: Look, *, alt: str) -> Picture | None:
    """A colour composite or a spectrum; None where there are no pixels."""
    if look.flux is not None:
        return _cutout(look.flux, alt=alt)
    if look.wavelength is not None and look.density is not None:
        return picture(_spectrum(look.wavelength, look.density), alt=f"Spectrum of {alt}")
    return None


def _cutout(flux: NDArray[np.float32], *, alt: str) -> Picture:
    """Red, green and blue of the reddest, the second and the bluest band; north is up."""
    blue, red = flux[0], flux[min(3, len(flux) - 1)]
    green = flux[1] if len(flux) > 2 else flux.mean(axis=0)
    # The composite takes its red from the fourth plane and none of the third.
    colours = cutout_rgb(np.stack([blue, green, green, red]))[::-1]
    return picture_of_pixels(colours, alt=f"Colour cutout of {alt}")


def _spectrum(wavelength: NDArray[np.float32], density: NDArray[np.float32]) -> Figure:
    figure = Figure(figsize=(1.9, 1.9), dpi=DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    pieces = min(SAMPLES, len(wavelength))
    drawn = [
        np.array([part.mean() for part in np.array_split(values.astype(np.float64), pieces)])
        for values in (wavelength, density)
    ]
    axes.plot(*drawn, lw=0.8, color=OURS)
    low, high = np.percentile(density, (0.5, 99.7))
    margin = 0.12 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    style(axes)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.tick_params(labelsize=8)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("wavelength (Å)", fontsize=8, color=MUTED)
    return figure


def sky_map(
    places: NDArray[np.float64], footprint: MOC | None, *, asked: NDArray[np.float64]
) -> Picture:
    """The answer on the sky over the footprint of what was searched.

    Whole sky in Mollweide's projection, or a gnomonic map of the neighbourhood where the answer
    and what it was asked with span little.

    Parameters
    ----------
    places
        Right ascension and declination of the objects found, degrees, (objects, 2).
    asked
        Those of the examples, (examples, 2); there may be none.
    """
    every = SkyCoord(*np.concatenate([places, asked]).T, unit="deg")
    centre = _middle(every)
    reach = float(np.max(every.separation(centre).deg))
    local = reach <= LOCAL / 2
    figure = blank(height=4.2 if local else WIDTH / 2)
    field = max(2.3 * reach, NARROWEST) if local else MOLLWEIDE / 2
    view = WCS(
        figure, fov=field * units.deg, projection="TAN" if local else "MOL",
        center=centre if local else SkyCoord(centre.ra, 0 * units.deg),
    )  # fmt: skip
    axes: WCSAxes = figure.add_subplot(
        projection=view.w, frame_class=RectangularFrame if local else EllipticalFrame
    )
    if footprint is not None and not footprint.empty():
        if not local and footprint.max_order > WHOLE_SKY_ORDER:
            footprint = footprint.degrade_to_order(WHOLE_SKY_ORDER)
        footprint.fill(ax=axes, wcs=view.w, color=AREA, alpha=0.28, linewidth=0)
    sky = axes.get_transform("icrs")
    axes.scatter(*places.T, transform=sky, s=34 if local else 20, color=OURS, alpha=0.85, lw=0.6,
                 edgecolors=PAPER, zorder=3)  # fmt: skip
    axes.scatter(*asked.T, transform=sky, s=150 if local else 90, marker="*", color=ASKED, lw=0.6,
                 edgecolors=PAPER, zorder=4)  # fmt: skip
    width, height = figure.get_size_inches() * figure.dpi
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5), aspect="equal")
    _style_sky(axes, local=local, field=field)
    where = f"within {reach:.2g} degrees" if local else "over the sky"
    stars = f" and {len(asked)} asked with," if len(asked) else ""
    return picture(figure, alt=f"Sky map: {len(places)} objects{stars} {where}, and the footprint")


def _style_sky(axes: WCSAxes, *, local: bool, field: float) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, lw=0.7)
    for coordinate, name in zip(axes.coords, ("right ascension", "declination"), strict=True):
        coordinate.set_ticklabel(size=FONT - 1.5, color=INK)
        coordinate.set_ticks(color=MUTED, number=5)
        coordinate.set_axislabel(name if local else "", size=FONT - 0.5, color=INK)
        if local:
            coordinate.set_major_formatter("d" if field > 6 else "d.d" if field > 0.6 else "d.dd")
    axes.coords.frame.set_color(MUTED)
    if not local:
        axes.coords[0].set_ticklabel_visible(visible=False)


def _middle(places: SkyCoord) -> SkyCoord:
    """Direction of the mean of unit vectors."""
    mean = places.cartesian.mean()
    if mean.norm() < 1e-6:
        return SkyCoord(0, 0, unit="deg")
    return SkyCoord(mean.represent_as(UnitSphericalRepresentation))


def score_figure(own: NDArray[np.float64], sample: ScoreSample, *, label: str) -> Picture:
    """Scores of everything that was searched, and those of the answer as ticks."""
    figure = blank(height=2.7)
    axes = figure.subplots()
    low, high = min(sample.values[0], own.min()), max(sample.values[-1], own.max())
    edges = np.linspace(float(low), float(high), 60).tolist()
    axes.hist(sample.values, edges, color=OTHER, alpha=0.55, lw=0, density=True,
              label=f"all {sample.searched:,} searched")  # fmt: skip
    axes.set_yscale("log")
    axes.eventplot([own], lineoffsets=[0.08], linelengths=[0.12], colors=[OURS], linewidths=1.1,
                   transform=axes.get_xaxis_transform())  # fmt: skip
    axes.plot([], [], color=OURS, lw=2, label=f"the {len(own):,} of this answer")
    style(axes)
    axes.set_xlabel(label, fontsize=FONT, color=INK)
    axes.set_ylabel("density (log)", fontsize=FONT, color=INK)
    axes.yaxis.set_ticklabels([])
    axes.tick_params(axis="y", which="both", length=0)
    figure.legend(frameon=False, fontsize=FONT - 1.5, labelcolor=INK, loc="outside upper left",
                  ncols=2)  # fmt: skip
    return picture(figure, alt=f"Distribution of {label} over the catalog and the answer")


__all__: Sequence[str] = ("Picture", "score_figure", "sky_map", "thumbnail")
