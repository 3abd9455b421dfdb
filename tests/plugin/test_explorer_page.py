"""The explorer's page: who may ask, what it is told, and that one file holds all that it needs."""

import json
import re
import shutil
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("bokeh", reason="extra explore")
pytest.importorskip("datashader", reason="extra explore")

from bokeh.document import Document

from skyvec.explorer import explore
from skyvec.explorer.colours import Classes, Numbers
from skyvec.explorer.cutouts import Cutouts
from skyvec.explorer.export import export_page
from skyvec.explorer.facts import page_facts
from skyvec.explorer.objects import unit_vectors
from skyvec.explorer.rasters import Cloud, Window
from skyvec.explorer.scene import LIKENESS, SKY, Points, Scene
from skyvec.explorer.serving import Explorer, refuse_others
from skyvec.explorer.session import Session
from skyvec_schemas.errors import ConfigurationError, InfrastructureError, MissingColumnError


def quiet(_line):
    """Say nothing."""


@pytest.fixture(scope="module")
def scene(embedded, tmp_path_factory):
    return Scene.open(embedded, cache=tmp_path_factory.mktemp("cache"), say=quiet)


@pytest.fixture(scope="module")
def blind(embedded, tmp_path_factory):
    """The same objects, of which the catalog keeps no pictures."""
    sky = shutil.copytree(embedded, tmp_path_factory.mktemp("blind") / "sky")
    for path in (sky / "cat" / "dataset").rglob("*"):
        if path.name in {"_metadata", "_common_metadata"}:
            continue
        if path.suffix == ".parquet":
            pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["image"]), path)
    schema = pq.read_schema(sky / "cat" / "dataset" / "_common_metadata")
    pq.write_metadata(schema.remove(schema.get_field_index("image")),
                      sky / "cat" / "dataset" / "_common_metadata")  # fmt: skip
    (sky / "cat" / "dataset" / "_metadata").unlink()
    return Scene.open(sky, say=quiet)


def dots(picture):
    """Places of a picture that hold a colour, as (rows, columns)."""
    return np.argwhere(picture >> 24 > 0)


def rgb(value):
    return tuple(int(value >> shift & 255) for shift in (0, 8, 16))


# ---- points on a plane


def test_every_point_is_drawn_where_it_is():
    xy = np.array([[0.1, 0.1], [0.9, 0.9], [np.nan, 0.5]])
    picture = Cloud(xy).draw(Window(x=(0, 1), y=(0, 1), width=100, height=50), None)
    assert picture.shape == (50, 100)
    rows, columns = dots(picture).T
    assert {(5, 10), (45, 90)} <= set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert not picture[25].any()


def test_numbers_have_the_colours_of_their_legend_and_none_is_grey():
    xy = np.array([[0.2, 0.5], [0.5, 0.5], [0.8, 0.5]])
    colour = Numbers(name="x", values=np.array([0.0, np.nan, 1.0]))
    picture = Cloud(xy).draw(Window(x=(0, 1), y=(0, 1), width=100, height=100), colour)
    low, none, high = (rgb(picture[50, column]) for column in (20, 50, 80))
    assert low[0] > 200 > high[0]  # yellow is little, violet is much
    assert max(none) - min(none) < 12


def test_what_is_not_chosen_is_grey_behind_what_is():
    xy = np.array([[0.2, 0.5], [0.8, 0.5]])
    colour = Classes(name="x", codes=np.array([0, 0], np.int16), labels=("a",))
    picture = Cloud(xy).draw(
        Window(x=(0, 1), y=(0, 1), width=100, height=100), colour, np.array([True, False])
    )
    chosen, other = rgb(picture[50, 20]), rgb(picture[50, 80])
    assert chosen[2] - chosen[0] > 100
    assert max(other) - min(other) < 20


def test_a_click_finds_the_nearest_on_the_screen_or_nothing():
    xy = np.array([[0.0, 0.0], [0.10, 0.0], [np.nan, 0.0], [0.0, 0.5]])
    points = Points(xy)
    window = Window(x=(-1, 1), y=(-1, 1), width=200, height=200)
    assert points.pick(0.06, 0.0, window) == 1
    assert points.pick(0.02, 0.45, window) == 3
    assert points.pick(-0.9, -0.9, window) is None
    # Stretched tenfold along x, what is near on the plane is far on the screen.
    assert points.pick(0.06, 0.0, Window(x=(-0.1, 0.1), y=(-1, 1), width=200, height=200)) is None


def test_an_outline_holds_what_lies_in_it():
    xy = np.array([[0.0, 0.0], [0.9, 0.9], [2.0, 0.0], [np.nan, 0.0]])
    triangle = np.array([[-1, -1], [1, -1], [-1, 1]], float)
    assert Points(xy).inside(triangle).tolist() == [True, False, False, False]


def test_all_points_fit_a_window_of_one_scale():
    window = Points(np.array([[0.0, 0.0], [10.0, 1.0]])).fitted(200, 100)
    assert window.x[0] < 0
    assert window.x[1] > 10
    assert (window.x[1] - window.x[0]) / 200 == pytest.approx((window.y[1] - window.y[0]) / 100)


# ---- pictures


def test_pictures_come_by_pixel_and_id(scene):
    which = 7
    pixel = scene.cutouts.pixel_of(which)
    name = scene.objects.name(which)
    assert scene.cutouts.find(pixel.order, pixel.pixel, name) == which
    assert scene.cutouts.find(pixel.order, pixel.pixel + 1, name) is None
    assert scene.cutouts.find(9, 10**17, name) is None
    assert scene.cutouts.find(pixel.order, pixel.pixel, "../../cat/hats.properties") is None
    assert scene.cutouts.of(which).startswith(b"\x89PNG")


def test_pictures_are_read_once(scene, monkeypatch):
    cutouts = Cutouts(scene.vectors, scene.objects)
    first = cutouts.of_all(np.array([3, 50]))
    monkeypatch.setattr("skyvec.explorer.cutouts.looks_of", None)
    assert cutouts.of_all(np.array([50, 3])) == first[::-1]


def test_a_catalog_without_pixels_says_why(blind):
    assert "holds no cutouts" in blind.cutouts.absent
    assert blind.cutouts.of(0) == blind.cutouts.absent
    assert any("No thumbnails" in note for note in page_facts(blind)["notes"])


# ---- a page that is open


@pytest.fixture
def session(scene):
    with ThreadPoolExecutor(1) as threads:
        yield Session(scene, Document(), threads)


def told(session):
    return json.loads(session.document.get_model_by_name("wire").told)


def test_a_click_tells_who_is_there_and_marks_both_planes(session, scene):
    session.look_at(7)
    found = told(session)["object"]
    assert found["id"] == str(scene.objects.ids[7].as_py())
    assert isinstance(found["id"], str)
    for name in (LIKENESS, SKY):
        marks = told(session)["marks"]
        assert marks["chosen"][name] == dict(
            zip("xy", scene.planes[name].xy[[7]].T.tolist(), strict=True)
        )
        assert marks["near"][name] == {"x": [], "y": []}


def test_what_a_page_asks_is_answered(session, scene):
    wire = session.document.get_model_by_name("wire")
    wire.asked = json.dumps({"find": scene.objects.name(3)})
    assert told(session)["object"]["id"] == scene.objects.name(3)
    wire.asked = json.dumps({"find": "nobody"})
    assert "No object 'nobody'" in told(session)["status"]
    wire.asked = json.dumps({"colour": "Z"})
    assert told(session)["legend"]["name"] == "Z"
    session.look_at(3)
    assert told(session)["object"]["values"] == [["Z", scene.column("Z").text(3)]]
    wire.asked = json.dumps({"colour": "nothing"})
    assert "no column 'nothing'" in told(session)["status"]


def test_a_selection_counts_and_shows_some(session):
    chosen = np.zeros(60, bool)
    chosen[10:50] = True
    session.select(chosen)
    selection = told(session)["selection"]
    assert (selection["count"], len(selection["some"])) == ("40", 12)
    session.clear()
    assert told(session)["selection"] is None


# ---- the server


@pytest.fixture(scope="module")
def explorer(scene):
    with Explorer(scene, host="127.0.0.1", port=0, exposed=False) as running:
        yield running


def fetched(url, **headers):
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def test_the_page_and_its_pictures_are_served_to_who_knows_the_address(explorer, scene):
    status, page = fetched(explorer.url)
    assert status == 200
    assert b"plane-likeness" in page
    pixel, name = scene.cutouts.pixel_of(5), scene.objects.name(5)
    status, picture = fetched(f"{explorer.url}cutout/{pixel.order}/{pixel.pixel}/{name}")
    assert (status, picture) == (200, scene.cutouts.of(5))
    host = explorer.url.split("/")[2]
    assert fetched(f"http://{host}/")[0] == 404
    assert fetched(f"http://{host}/cutout/{pixel.order}/{pixel.pixel}/{name}")[0] == 404


@pytest.mark.parametrize(
    "path",
    ["cutout/1/0/0", "cutout/99/99999999/1", "cutout/1/0/..%2f..%2fcat%2fhats.properties",
     "cutout/1/..%2f0/5", "static/../../../../etc/passwd", "static/%2e%2e/%2e%2e/etc/passwd"],
)  # fmt: skip
def test_what_is_no_object_is_no_file_either(explorer, path):
    status, body = fetched(explorer.url + path)
    assert status in {403, 404}
    assert b"hats" not in body
    assert b"root:" not in body


def test_pages_of_other_sites_are_refused(explorer):
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    host, path = explorer.url.removeprefix("http://").split("/", 1)
    for origin, status in ((f"http://{host}", {101}), ("http://elsewhere.example", {403})):
        line = HTTPConnection(host, timeout=10)
        line.request("GET", f"/{path}ws", headers=websocket | {"Origin": origin})
        assert line.getresponse().status in status, origin
        line.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org", ""])  # noqa: S104
def test_only_loopback_is_served_unless_said_otherwise(host, embedded):
    with pytest.raises(ConfigurationError, match="--expose"):
        explore(embedded, host=host, say=quiet)
    refuse_others(host, exposed=True)


def test_loopback_has_several_names():
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.10"):
        refuse_others(host, exposed=False)


def test_a_port_that_is_taken_is_one_clear_error(explorer, scene):
    port = int(explorer.url.split("/")[2].split(":")[1])
    with pytest.raises(InfrastructureError, match="Choose another --port"):
        Explorer(scene, host="127.0.0.1", port=port, exposed=False)


def test_bad_choices_are_refused_before_anything_is_made(embedded, tmp_path):
    for options in ({"colour": "no_such"}, {"colour": ["Z", "no_such"], "export": tmp_path / "x"}):
        with pytest.raises(MissingColumnError, match="no column 'no_such'"):
            explore(embedded, cache=tmp_path, say=quiet, **options)
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        explore(embedded, sample=0, say=quiet)
    with pytest.raises(ConfigurationError, match="no extension 'nothing'"):
        explore(embedded, extension="nothing", say=quiet)
    assert not (tmp_path / "x").exists()


# ---- one file


@pytest.fixture(scope="module")
def exported(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    export_page(scene, path, objects=40, pictures=5, colours=["Z", "density"], say=quiet)
    return path.read_text(encoding="utf-8")


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html,
                                re.DOTALL).group(1))  # fmt: skip


def test_one_file_holds_a_sample_and_says_so(exported, scene):
    data = data_of(exported)
    assert len(data["ids"]) == 40
    assert set(data["ids"]) < {scene.objects.name(i) for i in range(60)}
    assert len(data["pictures"]) == 5
    assert data["page"]["objects"] == "40 of 60"
    assert any("random sample of 40 of 60" in note for note in data["page"]["notes"])


def test_neighbours_of_one_file_are_exact_among_its_objects(exported, scene):
    data = data_of(exported)
    which = [scene.objects.find_one(name) for name in data["ids"]]
    units = unit_vectors(scene.vectors, np.array(which)).astype(np.float64)
    for row in (0, 20, 39):
        likeness = units @ units[row]
        likeness[row] = -np.inf
        best = np.argsort(-likeness, kind="stable")[:12]
        assert [near[0] for near in data["near"][row]] == best.tolist()
        assert data["near"][row][0][1] == f"{likeness[best[0]]:.4f}"


def test_one_file_loads_nothing_from_elsewhere(exported):
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", exported)
    assert not [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:|//|/)", tag)]
    assert "default-src 'none'" in exported


def test_texts_of_a_catalog_cannot_end_the_script(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(scene.columns, "problems", ["</script><script>alert(1)</script>"])
    html = export_page(scene, tmp_path / "x.html", objects=5, pictures=0, say=quiet).read_text()
    assert "<script>alert(1)" not in html
    assert any("alert(1)" in note for note in data_of(html)["page"]["notes"])
