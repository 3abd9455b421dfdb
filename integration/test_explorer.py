"""The explorer in a real Chromium: clicks, selections, colours, and no request to anyone else."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "bench"))

import chromium

import skyvec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing()),
]
pytest.importorskip("datashader", reason="extra explore")

ROWS, SAMPLE = 1_000, 300
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}


def quiet(_line):
    """Say nothing."""


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """1,000 objects with pictures, of which UMAP places 300."""
    from explore import pictured

    from skyvec.explorer.objects import read_objects
    from skyvec.extensions.vector_catalog import VectorCatalog

    made = pictured.make(tmp_path_factory.mktemp("sky"), ROWS, dim=16)
    objects = read_objects(VectorCatalog.open(made))
    pictured.give_pictures(made, [objects.name(i) for i in range(ROWS)], side=24)
    return made


@pytest.fixture(scope="module")
def explorer(sky):
    with skyvec.explore(sky, sample=SAMPLE, say=quiet) as running:
        yield running


@pytest.fixture(params=SIZES)
def page(request, explorer):
    width, height = SIZES[request.param]
    with chromium.opened_page(explorer.url, width=width, height=height) as page:
        page.wait_for_selector("html[data-turn]")
        page.wait_for_function(DRAWN)
        yield page


DRAWN = """() => ['likeness', 'sky'].every((name) => {
  const plot = Bokeh.documents[0].get_model_by_name(name);
  return plot.renderers.some((r) => (r.data_source.data.image || []).length);
})"""


def spot_of(page, scene, plane, which):
    """Where an object is on the screen."""
    x, y = scene.planes[plane].xy[which]
    at = page.evaluate(
        """([name, x, y]) => {
          const view = Object.values(Bokeh.index.roots ?? Bokeh.index).find((v) => v.model.name === name);
          const box = view.canvas_view.el.getBoundingClientRect(), frame = view.frame;
          return [box.x + frame.x_scale.compute(x), box.y + frame.y_scale.compute(y)];
        }""",
        [plane, float(x), float(y)],
    )
    return tuple(at)


def outermost(scene, plane):
    """An object that a click cannot miss: the one farthest to the right."""
    return int(np.nanargmax(scene.planes[plane].xy[:, 0]))


@pytest.mark.parametrize("plane", ["likeness", "sky"])
def test_a_click_shows_an_object_its_picture_and_its_neighbours(page, explorer, plane):
    scene = explorer.scene
    which = outermost(scene, plane)
    page.locator(f"#plane-{plane}").scroll_into_view_if_needed()
    page.mouse.click(*spot_of(page, scene, plane, which))
    name = scene.objects.name(which)
    page.wait_for_selector(f'#object[data-id="{name}"] img[data-seen="{name}"]')
    page.wait_for_selector(f'#tiles[data-of="{name}"]')
    wanted = skyvec.search(scene.vectors.primary, like=int(name), k=12)
    shown = page.locator("#tiles button").evaluate_all("all => all.map((b) => b.dataset.id)")
    assert shown == [str(i) for i in wanted.table["object_id"].to_pylist()]
    assert (
        page.locator("#tiles b").first.inner_text()
        == f"{wanted.table['similarity'][0].as_py():.4f}"
    )
    marks = page.evaluate(
        "() => ['likeness', 'sky'].map((n) => [...Bokeh.documents[0]"
        ".get_model_by_name(`chosen-${n}`).data.x])"
    )
    assert np.allclose(np.ravel(marks), [scene.planes[p].xy[which, 0] for p in ("likeness", "sky")])
    assert page.errors == []
    assert {urlsplit(one).netloc for one in page.asked if not one.startswith("data:")} == {
        urlsplit(explorer.url).netloc
    }
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_neighbour_leads_on_and_a_column_colours_both_maps(page, explorer):
    first = explorer.scene.objects.name(0)
    page.fill("#find", first)
    page.press("#find", "Enter")
    page.wait_for_selector(f'#tiles[data-of="{first}"]')
    tile = page.locator("#tiles button").first
    name = tile.get_attribute("data-id")
    tile.click()
    page.wait_for_selector(f'#object[data-id="{name}"]')
    before = page.evaluate(PICTURES)
    page.select_option("#colour", "Z")
    page.wait_for_function("document.getElementById('legend').innerText.includes('Z')")
    page.wait_for_function(f"before => {PICTURES_CHANGED}", arg=before)
    page.fill("#find", "no such object")
    page.press("#find", "Enter")
    page.wait_for_function("document.getElementById('status').innerText.includes('No object')")
    assert page.errors == []


PICTURES = """['likeness', 'sky'].map((name) => Bokeh.documents[0].get_model_by_name(name).renderers
  .map((r) => r.data_source.data.image).filter(Boolean)
  .map(([image]) => Array.from(image.data ?? image).reduce((sum, v) => (sum * 31 + v) % 1e9, 7)).join())"""
PICTURES_CHANGED = f"({PICTURES}).every((one, place) => one !== before[place])"


def test_what_is_selected_on_one_map_is_selected_on_the_other(explorer):
    with chromium.opened_page(explorer.url, width=1280, height=860) as page:
        page.wait_for_selector("html[data-turn]")
        page.wait_for_function(DRAWN)
        before = page.evaluate(PICTURES)
        box = page.locator("#plane-likeness").bounding_box()
        page.locator("#plane-likeness [title='Box Select']").click()
        page.mouse.move(box["x"] + 30, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 20, steps=4)
        page.mouse.up()
        page.wait_for_selector("#near:has-text('objects selected')")
        count = int(page.inner_text("#near span").split()[0].replace(",", ""))
        assert 0 < count < ROWS
        assert page.locator("#tiles button").count() == 12
        page.wait_for_function(f"before => {PICTURES_CHANGED}", arg=before)
        page.click("#clear")
        page.wait_for_function(f"before => !({PICTURES_CHANGED})", arg=before)
        assert page.errors == []


def test_one_file_does_the_same_without_a_server(sky, tmp_path):
    path = skyvec.explore(
        sky, export=tmp_path / "sky.html", sample=SAMPLE, objects=500, pictures=500, colour=["Z"],
        say=quiet,
    )  # fmt: skip
    with chromium.opened_page(path.as_uri(), width=390, height=844) as page:
        page.wait_for_selector("html[data-turn]")
        box = page.locator("#plane-likeness").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#status:not([hidden]):has-text('No object'), #object[data-id]")
        name = page.evaluate("JSON.parse(document.getElementById('data').textContent).ids[7]")
        page.fill("#find", name)
        page.press("#find", "Enter")
        page.wait_for_selector(f'#object[data-id="{name}"] img[data-seen="{name}"]')
        assert page.locator("#tiles button img").count() == 12
        assert page.errors == []
        assert [one for one in page.asked if not one.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
