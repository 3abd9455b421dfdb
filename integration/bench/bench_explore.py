"""How soon the explorer answers a click, in a real Chromium, over 1,000,000 made-up objects.

    python integration/bench/bench_explore.py [--work FOLDER] [--rows 1000000] [--clicks 30]

A click counts until details, highlight and picture are on the screen: from the press of the button,
as the page's own clock has it, to the frame after the last of them. The limit is 300 ms. Chromium
draws in software; it runs on the same cores as the server. Neighbours come after the answer, and
are timed apart. The first run makes the catalog (1.6 GB) and its map in ``--work``, gives the
objects that are clicked at pictures, and leaves all of it there for the next.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from chromium import chromium_path, opened_page
from explore import pictured
from search import catalogs

import skyvec

LIMIT = 300
"""Milliseconds."""
WARM = 3
"""Clicks that are not counted: the first of a process compile."""
_TIMED = """() => {
  window.times = {};
  // Bokeh may put its own painting off by a frame: the second one from now has it.
  const after = (name) => requestAnimationFrame(() => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => { window.times[name] ??= performance.now() - window.pressed; };
    channel.port2.postMessage(0);
  }));
  addEventListener('pointerdown', () => { window.pressed = performance.now(); window.times = {}; }, true);
  const doc = Bokeh.documents[0];
  for (const name of ['chosen-likeness', 'chosen-sky']) {
    doc.get_model_by_name(name).properties.data.change.connect(() => after(name));
  }
  new MutationObserver((all) => all.forEach((one) => {
    if (one.target.id === 'object' && one.attributeName === 'data-id') after('details');
    if (one.attributeName === 'data-seen' && one.target.closest('#object')) after('picture');
    if (one.target.id === 'tiles' && one.target.dataset.of) after('neighbours');
  })).observe(document.body, { subtree: true, attributes: true });
}"""
_ANSWER = ("details", "chosen-likeness", "chosen-sky", "picture")


def main() -> None:
    """Make what is not there, click, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "skyvec-explore")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=catalogs.DIM)
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="screenshot at the end")
    options = parser.parse_args()
    collection = pictured.make(options.work, options.rows, dim=options.dim)
    spots = np.random.default_rng(options.seed).uniform(0.25, 0.75, (options.clicks + WARM, 2))
    started = perf_counter()
    with _page(collection) as page:
        print(f"opened after {perf_counter() - started:.1f} s, the map's making included")
        clicked = _clicked(page, spots)
    pictured.give_pictures(collection, sorted(set(clicked)))
    started = perf_counter()
    with _page(collection) as page:
        print(f"opened again after {perf_counter() - started:.1f} s")
        page.evaluate(_TIMED)
        rows = _timed(page, spots)[WARM:]
        if options.picture:
            page.wait_for_timeout(3000)
            page.screenshot(path=options.picture)
    answers = [max(row[name] for name in _ANSWER) for row in rows]
    print(
        f"{options.rows:,} objects, {len(rows)} clicks; "
        f"load average of {os.cpu_count()} threads {os.getloadavg()[0]:.1f}:"
    )
    for name in (*_ANSWER, "neighbours"):
        _line(name, [row[name] for row in rows])
    _line("answer (all but neighbours)", answers, limit=True)
    if options.json:
        options.json.write_text(json.dumps({"limit": LIMIT, "answers": answers, "clicks": rows}))


def _line(name: str, times: list[float], *, limit: bool = False) -> None:
    text = f"  {name:28} median {median(times):6.0f} ms, max {max(times):6.0f} ms"
    if limit:
        within = sum(t < LIMIT for t in times)
        text += f"; {median(times) / LIMIT:.2f} of the limit, {within} of {len(times)} within it"
    print(text)


@contextmanager
def _page(collection: Path) -> Iterator[Any]:
    with (
        skyvec.explore(collection, extension=catalogs.NAME) as explorer,
        opened_page(explorer.url, width=1280, height=860) as page,
    ):
        page.wait_for_selector("html[data-turn]")
        page.wait_for_timeout(4000)
        yield page


def _spots(page: Any, spots: np.ndarray) -> Iterator[tuple[float, float]]:
    box = page.locator("#plane-likeness").bounding_box()
    for across, down in spots:
        yield box["x"] + across * box["width"], box["y"] + down * box["height"]


def _clicked(page: Any, spots: np.ndarray) -> list[str]:
    """Ids of the objects that these clicks find."""
    ids = []
    for x, y in _spots(page, spots):
        page.mouse.click(x, y)
        page.wait_for_timeout(600)
        ids.append(page.get_attribute("#object", "data-id"))
    return [name for name in ids if name]


def _timed(page: Any, spots: np.ndarray) -> list[dict[str, float]]:
    """Milliseconds of each click that finds an object; the next one waits for its neighbours."""
    rows = []
    for x, y in _spots(page, spots):
        before = page.evaluate("document.documentElement.dataset.turn")
        page.mouse.click(x, y)
        page.wait_for_function(
            "turn => document.documentElement.dataset.turn !== turn", arg=before, timeout=30_000
        )
        if not page.evaluate("document.getElementById('status').hidden"):
            continue  # no object there
        page.wait_for_function(
            f"{['neighbours', *_ANSWER]}.every((name) => name in window.times)", timeout=60_000
        )
        rows.append(page.evaluate("({...window.times})"))
        page.wait_for_timeout(1500)  # pictures of the neighbours
    return rows


if __name__ == "__main__":
    if chromium_path() is None:
        sys.exit("no chromium here: apt-get install chromium")
    main()
