"""The demo: real and mock galaxies to one page that needs no network."""

import importlib.util
import re
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("piczl") is None,
        reason="the wheel with the real galaxies is not installed (make demo installs it)",
    ),
]


def test_the_demo_leaves_a_page_and_can_be_repeated(tmp_path):
    command = [sys.executable, "-m", "skyvec", "demo", "--out", str(tmp_path / "demo"), "--rows",
               "150"]  # fmt: skip
    first = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "12 of 12 passed" in first.stdout
    page = (tmp_path / "demo/index.html").read_text()
    assert "<img" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    second = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "12 of 12 passed" in second.stdout


def test_a_demo_of_other_galaxies_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "skyvec", "demo", "--out", str(tmp_path)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 40
    assert "is not empty and holds no demo" in done.stderr
