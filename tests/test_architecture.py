"""What must stay true of the house: who imports whom, the face, the map."""

import re
import subprocess
import sys
from pathlib import Path

import skyvec

ROOT = Path(__file__).parents[1]
ROOMS = ("schemas", "core", "training", "plugin")


def test_nobody_imports_across_a_wall():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_importing_skyvec_costs_neither_torch_nor_dask():
    code = "import sys, skyvec; assert not {'torch', 'dask', 'lsdb', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_loads():
    for name in skyvec.__all__:
        assert getattr(skyvec, name) is not None


def test_the_architecture_page_names_every_module_and_no_other():
    page = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"^\| `([\w/]+\.py)`", page, flags=re.MULTILINE))
    found = {
        str(path.relative_to(ROOT / room))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py" and "recipes" not in path.parts
    }
    assert named == found


def test_the_makefile_words_of_the_readme_exist():
    words = set(re.findall(r"[`$] ?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert words <= known


def test_the_version_is_the_newest_of_the_changelog():
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == skyvec.__version__
