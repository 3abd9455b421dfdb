"""One page that is open: it tells what its person does, and is told what to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from bokeh.core.properties import String
from bokeh.document import Document
from bokeh.events import Event, RangesUpdate, Reset, SelectionGeometry, Tap
from bokeh.model import DataModel
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure
from numpy.typing import NDArray

from skyvec.explorer import facts
from skyvec.explorer.figures import add_marks, plane_figure, window_ranges
from skyvec.explorer.neighbours import Neighbours, neighbours_of
from skyvec.explorer.rasters import Window
from skyvec.explorer.scene import Points, Scene
from skyvec_schemas.errors import SkyvecError

_SIDES = ("inner_width", "inner_height")
_DRAW_AFTER = 40
"""Milliseconds without another move before a picture is drawn anew."""
_SEARCH_AFTER = 2_000
"""Milliseconds after a click, unless the page says before that the picture is on the screen."""
_NOBODY = np.zeros(0, np.int64)
_SHOWN = 12
"""Objects of a selection that are shown."""


class Wire(DataModel):
    """Two lines of JSON: what the page asks, what it is told; each with a number of its own."""

    asked: str = String(default="")
    told: str = String(default="")


class _Plane:
    def __init__(self, session: Session, name: str, points: Points) -> None:
        self.points, self._session = points, session
        self.plot: figure = plane_figure(name, points, **window_ranges(points))
        self._picture = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self.plot.image_rgba("image", x="x", y="y", dw="dw", dh="dh", source=self._picture)
        add_marks(self.plot)
        self._fitted = False
        self._waiting: Any = None
        self._size: dict[str, float] = {}
        for side in _SIDES:
            self.plot.on_change(side, self._resized)
        self.plot.on_event(RangesUpdate, self._moved)
        self.plot.on_event(Tap, self._tapped)
        self.plot.on_event(SelectionGeometry, self._outlined)
        self.plot.on_event(Reset, lambda _: session.clear())

    @property
    def window(self) -> Window | None:
        """What is seen; None before the page has a size."""
        width, height = (int(self._size.get(side, 0)) for side in _SIDES)
        if width < 2 or height < 2:
            return None
        x, y = self.plot.x_range, self.plot.y_range
        return Window(x=(x.start, x.end), y=(y.start, y.end), width=width, height=height)

    def draw(self) -> None:
        """Draw the points that are seen."""
        self._waiting = None
        window = self.window
        if window is None or window.x[0] >= window.x[1] or window.y[0] >= window.y[1]:
            return
        picture = self.points.cloud.draw(window, self._session.colour, self._session.selected)
        self._picture.data = {
            "image": [picture], "x": [window.x[0]], "y": [window.y[0]],
            "dw": [window.x[1] - window.x[0]], "dh": [window.y[1] - window.y[0]],
        }  # fmt: skip

    def draw_soon(self) -> None:
        """Draw once what is moving has come to rest."""
        document = self._session.document
        if self._waiting is not None:
            document.remove_timeout_callback(self._waiting)
        self._waiting = document.add_timeout_callback(self.draw, _DRAW_AFTER)

    def _resized(self, side: str, _old: object, new: float) -> None:
        self._size[side] = new
        window = self.window
        if window is None:
            return
        if not self._fitted:
            self._fitted = True
            whole = self.points.fitted(window.width, window.height)
            for own, (start, end) in ((self.plot.x_range, whole.x), (self.plot.y_range, whole.y)):
                own.update(start=start, end=end, reset_start=start, reset_end=end)
        self.draw_soon()

    def _moved(self, event: Event) -> None:
        self.plot.x_range.update(start=event.x0, end=event.x1)
        self.plot.y_range.update(start=event.y0, end=event.y1)
        self.draw_soon()

    def _tapped(self, event: Event) -> None:
        window = self.window
        if window is not None and event.x is not None and event.y is not None:
            self._session.look_at(self.points.pick(event.x, event.y, window))

    def _outlined(self, event: Event) -> None:
        if not event.final:
            return
        outline = _corners(event.geometry)
        if len(outline) > 2:
            self._session.select(self.points.inside(outline))


class Session:
    """The planes of one page and what they have in common.

    Parameters
    ----------
    threads
        For searches and pictures, which must not keep the page waiting.
    """

    def __init__(self, scene: Scene, document: Document, threads: Executor) -> None:
        self.scene, self.document, self._threads = scene, document, threads
        self.colour = scene.column(scene.colour)
        self._sought: int | None = None
        self.selected: NDArray[np.bool_] | None = None
        self._wire, self._count, self._looked = Wire(name="wire"), 0, 0
        self._planes = {name: _Plane(self, name, points) for name, points in scene.planes.items()}
        self._wire.on_change("asked", self._heard)
        for plane in self._planes.values():
            document.add_root(plane.plot)
        document.add_root(self._wire)
        self._tell(page=facts.page_facts(scene), legend=facts.legend_facts(self.colour))

    def look_at(self, which: int | None) -> None:
        """Show an object at once, and its neighbours as they come."""
        self._looked += 1
        if which is None:
            self._tell(status="No object there.")
            return
        self.scene.cutouts.ask(np.array([which]))
        self._sought = which
        self._tell(
            object=facts.object_facts(self.scene, which) | {"values": self._values(which)},
            marks={"chosen": self._places(np.array([which])), "near": self._places(_NOBODY)},
        )
        turn = self._looked
        self.document.add_timeout_callback(lambda: self._search(turn), _SEARCH_AFTER)

    def select(self, selected: NDArray[np.bool_]) -> None:
        """Colour these objects on both planes, all others grey."""
        which = np.flatnonzero(selected)
        if not len(which):
            self.clear()
            self._tell(status="No object there.")
            return
        self.selected = selected
        some = np.random.default_rng(0).permutation(which)[:_SHOWN]
        shown = [facts.object_facts(self.scene, int(w)) for w in np.sort(some)]
        self._tell(selection={"count": f"{len(which):,}", "some": shown})
        self._draw()

    def clear(self) -> None:
        """Select nothing."""
        if self.selected is not None:
            self.selected = None
            self._draw()
        self._tell(selection=None)

    def _values(self, which: int) -> list[list[str]]:
        return [[self.colour.name, self.colour.text(which)]] if self.colour else []

    def _search(self, turn: int) -> None:
        if turn != self._looked or self._sought is None:
            return  # another click came first, or it is on its way
        which, self._sought = self._sought, None
        scene = self.scene

        def search() -> Neighbours:
            found = neighbours_of(scene.vectors, scene.objects, which)
            scene.cutouts.ask(found.which)
            return found

        self._later(search, lambda found: self._found(found, turn))

    def _found(self, found: Neighbours, turn: int) -> None:
        if turn == self._looked:
            marks = {"near": self._places(found.which)}
            self._tell(**facts.neighbours_facts(self.scene, found), marks=marks)

    def _heard(self, _name: str, _old: object, new: str) -> None:
        asked = json.loads(new)
        if "colour" in asked:
            self._recolour(str(asked["colour"]))
        elif "find" in asked:
            self._find(str(asked["find"]).strip())
        elif "seen" in asked:
            if self._sought is not None and asked["seen"] == self.scene.objects.name(self._sought):
                self._search(self._looked)
        elif "clear" in asked:
            self.clear()

    def _recolour(self, name: str) -> None:
        try:
            self.colour = self.scene.column(name)
        except SkyvecError as problem:
            self._tell(status=str(problem))
            return
        self._tell(legend=facts.legend_facts(self.colour))
        self._draw()

    def _find(self, name: str) -> None:
        which = self.scene.objects.find_one(name)
        if which is None:
            self._tell(status=f"No object {name!r} with a vector.")
        else:
            self.look_at(which)

    def _places(self, which: NDArray[np.int64]) -> dict[str, Any]:
        """Where objects are on each plane; the page sets its marks itself, in one frame."""
        planes = self.scene.planes.items()
        return {name: facts.places(which, points.xy) for name, points in planes}

    def _draw(self) -> None:
        for plane in self._planes.values():
            plane.draw()

    def _later(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do some work aside, and what follows it in the page's own turn."""

        def run() -> None:
            try:
                found = work()
            except SkyvecError as problem:
                said = str(problem)
                self.document.add_next_tick_callback(lambda: self._tell(status=said))
            else:
                self.document.add_next_tick_callback(lambda: then(found))

        self._threads.submit(run)

    def _tell(self, **what: object) -> None:
        self._count += 1
        self._wire.told = json.dumps({"turn": self._count} | what)


def _corners(geometry: dict[str, Any]) -> NDArray[np.float64]:
    if geometry["type"] == "rect":
        x0, x1, y0, y1 = (geometry[name] for name in ("x0", "x1", "y0", "y1"))
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return np.stack([np.asarray(geometry[name], np.float64) for name in ("x", "y")], axis=1)
