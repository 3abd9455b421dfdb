"""The page of the command line has every command, every option, and examples."""

import importlib.util
import sys
from pathlib import Path

from skyvec.commands.examples import EXAMPLES

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_command_line_is_whole(tmp_path):
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "tools/write_cli_page.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules["cli_page"] = tool
    spec.loader.exec_module(tool)
    tool.main(tmp_path / "made" / "cli.md")
    page = (tmp_path / "made" / "cli.md").read_text()
    told = {line.removeprefix("## skyvec ") for line in page.splitlines() if line.startswith("## ")}
    assert {"embed", "probe fit", "release diff", "train", "verify"} <= told
    assert {name for name in EXAMPLES if name in told} == set(EXAMPLES)
    section = page.split("## skyvec embed\n")[1].split("\n## ")[0]
    for option in ("--without <str>", "--reuse <str>", "--cone <str>", "--max-bad <float>"):
        assert f"| `{option}` |" in section
    assert "| Debug small, run big | |" in section
    assert "$ skyvec embed sky\n" in section
    assert "has its options" in page.split("## skyvec train\n")[1].split("\n## ")[0]
