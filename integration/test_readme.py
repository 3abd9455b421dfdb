"""The README and pages that stand alone: their commands and their code run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skyvec.mock.survey import write_mock_survey

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]


def test_the_commands_and_the_code_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\$ (skyvec .*?)(?:\s+#.*)?$", page, re.MULTILINE)
    commands = [command for command in commands if "<" not in command]  # placeholders
    assert len(commands) >= 5
    some = [command.replace("--rows 200", "--rows 60") for command in commands]
    subprocess.run([sys.executable, ROOT / "integration/in_turn.py", *some], check=True)


def run_code(page, folder):
    """Run the Python blocks of a page as one script."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert code
    script = folder / "page.py"
    script.write_text("\n".join(code))
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def never_embedded(tmp_path_factory):
    """A folder with a survey of which each test takes a copy."""
    folder = tmp_path_factory.mktemp("never-embedded")
    write_mock_survey(folder / "sky", rows=60, seed=0, workers=1)
    return folder / "sky"


def test_the_script_of_the_readme_runs_on_a_catalog_that_was_never_embedded(
    never_embedded, tmp_path
):
    shutil.copytree(never_embedded, tmp_path / "sky", copy_function=os.link)
    run_code("README.md", tmp_path)


def test_the_script_of_the_page_on_aion_runs(tmp_path):
    run_code("docs/aion.md", tmp_path)


def test_a_catalog_made_as_the_formats_page_shows_can_be_embedded(tmp_path):
    run_code("docs/formats.md", tmp_path)
    without = re.findall(r"embed mine (--without \S+)`", (ROOT / "docs/formats.md").read_text())[0]
    command = ["embed", str(tmp_path / "mine"), "--workers", "0", *without.split()]
    subprocess.run([sys.executable, "-m", "skyvec", *command], check=True)


def test_a_script_without_a_guard_is_told_what_to_do(never_embedded, tmp_path):
    shutil.copytree(never_embedded, tmp_path / "sky", copy_function=os.link)
    script = tmp_path / "unguarded.py"
    script.write_text('import skyvec\nskyvec.run("sky", workers=1)\n')
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "put the calls under `if __name__ ==" in done.stderr.strip().splitlines()[-1]
