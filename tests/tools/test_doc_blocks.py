"""Blocks of a page are found, with what is said of them, and those that run do so as they stand."""

import importlib.util
import sys
from pathlib import Path
from subprocess import CalledProcessError

import pytest

ROOT = Path(__file__).parents[2]
PAGE = """# Page

```python
kept = 6
```

<!-- not run: needs a GPU -->
```console
$ skyvec embed sky --device cuda
```

<!-- run by integration/test_releases.py -->
```sh
false
```

```console
$ skyvec --version      # a remark
$ echo 'two  # words' > told.txt
printed
```

```sh
touch made-by-sh
```

- item

  ```python
  assert kept * 7 == 42
  ```

    skyvec embed hidden

```text
a listing
```
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("doc_blocks", ROOT / "tools/doc_blocks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "doc_blocks", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    return module


def test_every_block_is_found_with_its_account(tool, tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    found = [(b.language, b.kind, b.words, b.code) for b in tool.blocks(tmp_path / "page.md")]
    assert found == [
        ("python", "", "", True),
        ("console", "not run", "needs a GPU", True),
        ("sh", "run by", "integration/test_releases.py", True),
        ("console", "", "", True),
        ("sh", "", "", True),
        ("python", "", "", True),
        ("indented", "", "", False),
        ("text", "", "", False),
    ]


def test_a_page_runs_as_it_stands(tool, tmp_path, capsys):
    (tmp_path / "page.md").write_text(PAGE)
    tool.run_page(tmp_path / "page.md")
    assert (tmp_path / "told.txt").read_text() == "two  # words\n"
    assert (tmp_path / "made-by-sh").exists()
    assert "skyvec --version" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("* 7 == 42", "* 7 == 43", AssertionError),
        ("--version ", "--nonsense ", SystemExit),
        ("touch made-by-sh", "touch no/such/folder", CalledProcessError),
    ],
)
def test_a_page_that_does_not_run_is_found_out(tool, tmp_path, old, new, error):
    (tmp_path / "page.md").write_text(PAGE.replace(old, new))
    with pytest.raises(error):
        tool.run_page(tmp_path / "page.md")
