"""The code of the documentation runs, in the order of the page; every block is accounted for."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools/doc_blocks.py"
FIRST_HOUR = ("docs/tutorial.md", "docs/for-scientists.md")
"""Pages that are run in one folder, in this order."""
AFTER_IT = ("docs/verify.md", "docs/report.md", "docs/answers.md", "docs/probes.md")
"""Pages on a survey with one extension, that of the first hour; the last adds another."""
ALONE = ("README.md", "docs/aion.md", "docs/formats.md")
"""Pages that have a test of their own in `test_readme.py`."""
ELSEWHERE = {
    "README.md": {
        "git clone": "CI itself begins with this",
        "pip install huggingface_hub": "the hub is not reached by tests",
        "skyvec embed mine": "columns of an example catalog; the page on formats has one that runs",
        "skyvec embed sky --survey": "folders of an example; integration/test_releases.py has them",
        "schemas/": "a map, no code",
    },
    "docs/explorer.md": {
        "pip install 'skyvec[explore]'": "it serves; integration/test_explorer.py opens its pages",
        "import skyvec": "it serves until it is told to end; integration/test_explorer.py does it",
    },
    "docs/search.md": {
        "import skyvec": "ids and a cutout of an example; tests/plugin/test_search.py has them",
        "skyvec search": "ids of an example; the first hour searches from the command line",
        "catalog = lsdb": "an id of an example; integration/test_search.py composes with LSDB",
        "from skyvec.search.approximate": "tests/plugin/test_search_approximate.py builds indexes",
    },
    "docs/training.md": {
        "# codecs-only": "hours; integration/test_train_then_embed.py goes this way in a few steps",
        "python -m skyvec_training.parallel": "integration/test_train_parallel.py starts processes",
        "python -m skyvec_training image-codec": "hours; tests/training has a few steps of each",
    },
}
"""Blocks that say nothing themselves, by page and beginning: why not, or who runs them."""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]


def run_pages(pages, folder):
    """Commands and Python of pages, word for word, in one process."""
    words = [sys.executable, "-W", "ignore", TOOL, *(ROOT / page for page in pages)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def first_hour(tmp_path_factory):
    """The folder of the first hour, after it."""
    folder = tmp_path_factory.mktemp("first-hour")
    run_pages(FIRST_HOUR, folder)
    return folder


def test_the_first_hour_and_the_page_for_scientists_run_in_an_empty_folder(first_hour):
    left = {path.name for path in first_hour.iterdir()}
    assert {"sky", "photoz", "distant.parquet", "alike.html", "photometry-report.html"} <= left


def test_pages_on_one_extension_run_on_the_survey_of_the_first_hour(first_hour, tmp_path):
    shutil.copytree(first_hour / "sky", tmp_path / "sky", copy_function=os.link)
    drop = ["drop", "sky", "--extension", "with_images", "--yes"]
    subprocess.run([sys.executable, "-m", "skyvec", *drop], check=True, cwd=tmp_path)
    run_pages(AFTER_IT, tmp_path)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(first_hour, tmp_path):
    shutil.copytree(first_hour / "sky", tmp_path / "sky", copy_function=os.link)
    # The first notebook must make its own vectors, as it does for whoever builds the site first.
    drop = ["drop", "sky", "--extension", "photometry", "--yes"]
    subprocess.run([sys.executable, "-m", "skyvec", *drop], check=True, cwd=tmp_path)
    site = tmp_path / "site"
    words = ["-W", "ignore", "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [sys.executable, *words, "-d", tmp_path / "doctrees", ROOT / "docs", site],
        check=False, capture_output=True, text=True,
        env={**os.environ, "SKYVEC_DOCS_WORK": str(tmp_path), "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    notebooks = [path.stem for path in (ROOT / "docs/notebooks").glob("*.py")]
    assert {f"generated/notebooks/{name}.html" for name in notebooks} <= set(pages)
    assert all("sphx-glr-single-img" in pages[f"generated/notebooks/{name}.html"]
               or "sphx-glr-multi-img" in pages[f"generated/notebooks/{name}.html"]
               for name in notebooks)  # fmt: skip
    made = "".join(text for name, text in pages.items() if name.startswith("generated/notebooks/"))
    assert "Warning:" not in made  # nor, so, the paths of this machine
    loads = re.compile(r"<(?:script|img|iframe|source|video|embed)[^>]+src=\"(?:https?:)?//"
                       r"|<link[^>]+href=\"(?:https?:)?//(?![^>]*canonical)")  # fmt: skip
    assert [name for name, text in pages.items() if loads.search(text)] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", styles)


def test_every_block_is_run_or_says_why_not():
    spec = importlib.util.spec_from_file_location("doc_blocks", TOOL)
    tool = importlib.util.module_from_spec(spec)
    sys.modules["doc_blocks"] = tool
    spec.loader.exec_module(tool)
    run, silent = {*FIRST_HOUR, *AFTER_IT, *ALONE}, []
    quiet = tool.NO_CODE | {"{toctree}", "{eval-rst}"}
    accounts = {page: dict(reasons) for page, reasons in ELSEWHERE.items()}
    made = ROOT / "docs/generated"
    pages = [p for p in sorted((ROOT / "docs").rglob("*.md")) if made not in p.parents]
    for page in [ROOT / "README.md", *pages]:
        for block in tool.blocks(page):
            first = block.text.removeprefix("$ ")
            reasons = accounts.get(block.page, {})
            begin = next((words for words in reasons if first.startswith(words)), None)
            if begin is not None:
                reasons.pop(begin)
            elif block.kind == "run by":
                assert (ROOT / block.words).exists(), f"{block}: no such file"
            elif block.kind:
                assert len(block.words.split()) >= 2, f"{block}: say why"
            elif block.page not in run if block.code else block.language not in quiet:
                silent.append(str(block))
    assert not silent, "neither run nor excused (see tools/doc_blocks.py)"
    assert not any(accounts.values()), "accounts of blocks that are gone"
