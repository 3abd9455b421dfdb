"""Figures of the page as inline SVG; their colours follow the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skyvec_training.scorecard.card import LowData, Score
from skyvec_training.scorecard.wording import label

VARIABLES = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)"}
"""Colours that stand for those of the page."""
INK, MUTED, LINE = VARIABLES
ROLES = {"embeddings": "#2a7fb8", "head": "#8fb8d4", "baseline": "#d0652a", "control": "#8a8f98",
         "limit": "#4d9a6a"}  # fmt: skip
PALETTE = ("#2a7fb8", "#7a5ba8", "#2a9a8c", "#c2477f")
FONT = 12.0
WIDTH = 5.6


def score_chart(scores: Sequence[Score], metric: str, *, name: str) -> str:
    """A dot and its 95% interval for each method, one below the other."""
    shown = [score for score in scores if metric in score.metrics]
    figure = Figure(figsize=(WIDTH, 0.8 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, score in enumerate(reversed(shown)):
        estimate, colour = score.metrics[metric], ROLES[score.role]
        axes.plot([estimate.low, estimate.high], [place] * 2, color=colour, lw=4, alpha=0.45,
                  solid_capstyle="butt")  # fmt: skip
        axes.plot(estimate.value, place, "o", color=colour, ms=7)
    axes.set_yticks(range(len(shown)), [s.method.replace("_", " ") for s in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    _style(axes)
    axes.grid(axis="x", color=LINE, lw=0.8)
    axes.set_xlabel(label(metric), fontsize=FONT, color=INK)
    return svg(figure, name=name)


def curve_chart(low_data: LowData, task: str, *, name: str) -> str:
    """Score against the number of labels, one line for each method."""
    points = [point for point in low_data.points if point.task == task]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(point.method for point in points))
    ours = [m for m in methods if any(p.method == m and p.role == "embeddings" for p in points)]
    for method in methods:
        line = sorted((p for p in points if p.method == method), key=lambda p: p.labels)
        colour = PALETTE[ours.index(method) % len(PALETTE)] if method in ours else ROLES["baseline"]
        dash = "-" if method in ours else _DASHES[methods.index(method) % len(_DASHES)]
        labels = [p.labels for p in line]
        axes.plot(labels, [p.score.value for p in line], dash, marker="o", ms=4, lw=1.8,
                  color=colour, label=method.replace("_", " "))  # fmt: skip
        axes.fill_between(labels, [p.score.low for p in line], [p.score.high for p in line],
                          color=colour, alpha=0.12, lw=0)  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(bottom=max(-0.2, min(p.score.low for p in points)))
    _style(axes)
    axes.grid(color=LINE, lw=0.8)
    axes.set_xlabel("labels", fontsize=FONT, color=INK)
    axes.set_ylabel(label(points[0].metric), fontsize=FONT, color=INK)
    axes.legend(frameon=False, fontsize=FONT - 1.5, labelcolor=INK, loc="lower right")
    return svg(figure, name=name)


def svg(figure: Figure, *, name: str) -> str:
    """Inline SVG with text as text; ids begin with ``name``, so that figures do not mix."""
    figure.patch.set_alpha(0)
    buffer = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = _SIZE.sub(r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


_DASHES = ("--", ":", "-.")
_SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')


def _style(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT - 1, colors=MUTED, labelcolor=INK, which="both")
    for side, spine in axes.spines.items():
        spine.set_color(MUTED)
        spine.set_visible(side == "bottom")
