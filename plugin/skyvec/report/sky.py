"""The sky map of status: HEALPix pixels by state, each with what it is and where to read on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cdshealpix.nested import vertices
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from skyvec.report.drawing import COLOURS, FONT, figure, inline_svg
from skyvec.report.facts import ReportFacts
from skyvec.report.states import STATES, gravest
from skyvec.stage.record_table import Key

CELLS = 3500
"""Drawn at most; a page with more is slow on a phone."""
LOCAL = 70.0
"""Degrees; footprints that span more are drawn on the whole sky."""
HATCHES = {"data": "xxx", "lost": "///", "open": "...", "flagged": "\\\\\\"}
"""So that states are told apart without colour."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SkyMap:
    """The drawing and what it leaves out."""

    svg: str
    cells: int
    thinned: int | None
    """HEALPix order that finer pixels were gathered to; None if each is drawn by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    key: Key
    state: str
    title: str
    link: str
    """Anchor of the page; empty for none."""


def sky_map(facts: ReportFacts, anchors: Mapping[Key, str]) -> SkyMap | None:
    """Draw all pixels; None if there are none.

    Parameters
    ----------
    anchors
        Pixels that have an entry on the page -> its anchor.
    """
    if not facts.states:
        return None
    order = _drawn_order(facts.states)
    cells = _cells(facts, order, anchors)
    corners = [_outline(*cell.key) for cell in cells]
    drawn = _draw(cells, corners)
    counts = ", ".join(f"{count:,} {state}" for state, count in facts.pixel_counts.items())
    svg = inline_svg(
        drawn,
        alt=f"Sky map of {len(facts.states):,} HEALPix pixels: {counts}",
        salt="sky",
        titles={f"cell{place}-{part}": cell.title for place, cell in enumerate(cells) for part in "ab"},
    )  # fmt: skip
    finest = max(key[0] for key in facts.states)
    return SkyMap(svg=svg, cells=len(cells), thinned=order if order < finest else None)


def _drawn_order(states: Mapping[Key, str]) -> int:
    """The finest order at which not more than `CELLS` cells are left."""
    order = max(key[0] for key in states)
    while order and len({_parent(key, order) for key in states}) > CELLS:
        order -= 1
    return order


def _parent(key: Key, order: int) -> Key:
    return (order, key[1] >> 2 * (key[0] - order)) if key[0] > order else key


def _cells(facts: ReportFacts, order: int, anchors: Mapping[Key, str]) -> list[_Cell]:
    inside: dict[Key, list[Key]] = defaultdict(list)
    for key in facts.states:
        inside[_parent(key, order)].append(key)
    return [_cell(facts, key, members, anchors) for key, members in sorted(inside.items())]


def _cell(
    facts: ReportFacts, key: Key, members: list[Key], anchors: Mapping[Key, str]
) -> _Cell:  # fmt: skip
    states = Counter(facts.states[member] for member in members)
    state = gravest(states)
    link = next((anchors[m] for m in members if facts.states[m] == state and m in anchors), "")
    title = f"Norder={key[0]} Npix={key[1]}: "
    if members == [key]:
        title += STATES[state]
        if (record := facts.run.records.get(key)) is not None:
            title += f"; {record.rows:,} rows"
            if record.quarantined:
                share = f" ({record.quarantined / record.rows:.1%})" if record.rows else ""
                title += f", {record.quarantined:,} quarantined{share}"
    else:
        title += f"{len(members):,} pixels: " + ", ".join(
            f"{states[each]:,} {each}" for each in STATES if states[each]
        )
    if not link and state in {"data", "lost"}:
        link = "failures"
    elif not link and state == "open":
        link = "open"
    return _Cell(key=key, state=state, title=title, link=link)


def _outline(order: int, pixel: int) -> tuple[Floats, Floats]:
    """Longitude without jumps, and latitude, in degrees; finer where a pixel is large."""
    step = max(1, 8 >> order)
    found = vertices(np.array([pixel], np.uint64), order, step=step)
    longitude, latitude = (np.asarray(angle.deg)[0] for angle in found)
    return np.unwrap(longitude, period=360), latitude


def _draw(cells: list[_Cell], corners: list[tuple[Floats, Floats]]) -> Figure:
    centre = _centre(corners)
    about = [_near(longitude, centre) for longitude, _ in corners]
    dec = [latitude for _, latitude in corners]
    spread = max(np.ptp(np.concatenate(about)), np.ptp(np.concatenate(dec)))
    wide = spread > LOCAL or np.abs(np.concatenate(dec)).max() > LOCAL
    drawn = figure(3.2 if wide else 4.2)
    axes = drawn.add_subplot(projection="mollweide" if wide else None)
    _frame(axes, about, dec, centre, wide=bool(wide))
    # The gravest last, so that its edges lie on top.
    gravity = list(STATES)
    for place in sorted(range(len(cells)), key=lambda i: -gravity.index(cells[i].state)):
        points = np.stack([-about[place], dec[place]], 1)
        for part, shift in zip("ab", _copies(points[:, 0], wide=bool(wide)), strict=False):
            _add(
                axes,
                cells[place],
                points + np.array([shift, 0.0]),
                f"cell{place}-{part}",
                wide=bool(wide),
            )
    return drawn


def _add(axes: Axes, cell: _Cell, points: Floats, gid: str, *, wide: bool) -> None:
    transform = axes.transData
    if wide:
        # Projected here: the axes would put 75 points on every edge.
        points = axes.transProjection.transform(np.radians(points))  # type: ignore[attr-defined]
        transform = axes.transAffine + axes.transAxes  # type: ignore[attr-defined]
    patch = Polygon(
        points,
        transform=transform,
        facecolor=COLOURS[cell.state],
        edgecolor=COLOURS["page" if cell.state in {"done", "earlier"} else "ink"],
        hatch=HATCHES.get(cell.state),
        lw=0.5,
        gid=gid,
        url=f"#{cell.link}" if cell.link else None,
    )
    axes.add_patch(patch)


def _copies(x: Floats, *, wide: bool) -> tuple[float, ...]:
    """A cell over the edge of the all-sky map is drawn on both sides."""
    if wide and x.max() > 180:
        return (0.0, -360.0)
    if wide and x.min() < -180:
        return (0.0, 360.0)
    return (0.0,)


def _centre(corners: list[tuple[Floats, Floats]]) -> float:
    angles = np.radians(np.array([longitude.mean() for longitude, _ in corners]))
    return float(np.degrees(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())) % 360)


def _near(longitude: Floats, centre: float) -> Floats:
    """Degrees from the centre, without jumps."""
    middle = longitude.mean() - centre
    return np.asarray(longitude - centre - 360 * np.round(middle / 360))


def _frame(
    axes: Axes, about: list[Floats], dec: list[Floats], centre: float, *, wide: bool
) -> None:
    axes.patch.set_alpha(0)
    axes.grid(color=COLOURS["line"], lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOURS["muted"], labelsize=FONT - (2 if wide else 0), length=0)
    for spine in axes.spines.values():
        spine.set_color(COLOURS["muted"])
    if wide:
        axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
        axes.set_xticklabels([f"{(centre - x) % 360:.0f}°" for x in (-120, -60, 0, 60, 120)])
        axes.set_yticks(np.radians([-60, -30, 0, 30, 60]))
        return
    x, y = np.concatenate(about), np.concatenate(dec)
    pad = 0.06 * max(np.ptp(x), np.ptp(y))
    axes.set_xlim(-x.max() - pad, -x.min() + pad)
    axes.set_ylim(y.min() - pad, y.max() + pad)
    axes.set_aspect(float(1 / np.cos(np.radians(y.mean()))), adjustable="box")
    # Ticks at round right ascensions, which grow to the left.
    round_ones = MaxNLocator(6).tick_values(centre + x.min() - pad, centre + x.max() + pad)
    shown = [ra for ra in round_ones if x.min() - pad <= ra - centre <= x.max() + pad]
    axes.set_xticks([centre - ra for ra in shown])
    axes.set_xticklabels([f"{round(ra % 360, 6):g}" for ra in shown])
    axes.set_xlabel("right ascension / degrees", fontsize=FONT, color=COLOURS["ink"])
    axes.set_ylabel("declination / degrees", fontsize=FONT, color=COLOURS["ink"])
