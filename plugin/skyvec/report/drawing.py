"""matplotlib figures as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from io import StringIO
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "ink": "#1d2733",
        "muted": "#59636f",
        "line": "#dedad0",
        "page": "#fffffe",
        "data": "#d55e00",
        "lost": "#cc79a7",
        "open": "#f0efea",
        "flagged": "#e69f00",
        "done": "#0072b2",
        "earlier": "#7fb8dc",
        "empty": "#b9bec4",
    }
)
"""Variable of the page's style sheet -> the colour that stands for it while matplotlib draws."""
WIDTH, FONT = 5.4, 11.5
"""Inches and points: still above 8 points where a phone shows it 340 pixels wide."""
_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "hatch.linewidth": 1.1}


def figure(height: float) -> Figure:
    """Without background, as wide as all others."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    made.patch.set_alpha(0)
    return made


def style(axes: Axes, *, grid: str = "y") -> None:
    """Quiet axes in the colours of the page."""
    axes.patch.set_alpha(0)
    axes.tick_params(colors=COLOURS["muted"], labelsize=FONT, length=0)
    axes.grid(axis=grid, color=COLOURS["line"], lw=0.8)  # type: ignore[arg-type]  # both, x or y
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"bottom", "geo"})
        spine.set_color(COLOURS["muted"])


def inline_svg(
    drawn: Figure, *, alt: str, salt: str, titles: Mapping[str, str] = MappingProxyType({})
) -> str:
    """One ``svg`` element.

    Parameters
    ----------
    alt
        What is seen, for those who do not see it.
    salt
        Keeps the ids of several drawings on one page apart.
    titles
        Text to show over each element, by its gid.
    """
    text = StringIO()
    FigureCanvasSVG(drawn)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids that matplotlib numbers anew in each drawing.
    svg = re.sub(r'\bid="(?!p-|cell)([\w.-]+)"', rf'id="{salt}-\1"', svg)
    svg = re.sub(r"url\(#([\w.-]+)\)", rf"url(#{salt}-\1)", svg)
    svg = re.sub(r'xlink:href="#(?!p-|cell|failures|aside|open)([\w.-]+)"',
                 rf'xlink:href="#{salt}-\1"', svg)  # fmt: skip
    svg = re.sub(r'(<svg )[^>]*?(viewBox="[^"]*")[^>]*>',
                 rf'\1\2 role="group" aria-label="{escape(alt)}">', svg, count=1)  # fmt: skip
    # A hundredth of a point is finer than any screen.
    svg = re.sub(r"(?<=\d\.\d\d)\d+", "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return _titled(svg, titles)


def _titled(svg: str, titles: Mapping[str, str]) -> str:
    def title(found: re.Match[str]) -> str:
        return f"{found[0]}<title>{escape(titles.get(found[1], ''))}</title>"

    return re.sub(r'<g id="(cell[\w-]+)">(?:\s*<a [^>]*>)?', title, svg) if titles else svg
