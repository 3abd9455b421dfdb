"""The code of the documentation runs, in the order of the page, on a fresh mock survey."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(commands) >= 5
    for command in commands:
        words = command.replace("--rows 200", "--rows 60").split()[1:]
        subprocess.run([sys.executable, "-m", "skyvec", *words], check=True)
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) >= 2
    script = tmp_path / "readme.py"
    body = "\n".join(code).replace("\n", "\n    ")
    # Dask starts processes, which import the main module again.
    script.write_text(f"if __name__ == '__main__':\n    {body}\n")
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
