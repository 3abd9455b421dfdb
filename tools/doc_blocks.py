"""Code blocks of the documentation: which there are, and those of a page run word for word.

    python tools/doc_blocks.py docs/tutorial.md     # in an empty folder

A block that cannot be run says why in a comment before it: `<!-- not run: needs a GPU -->`, or who
runs it: `<!-- run by integration/test_releases.py -->`.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = {"python", "console", "sh", "bash"}
NO_CODE = {"text", "toml"}
NOTE = re.compile(r"^\s*<!-- (?P<kind>not run|not run in CI|run by):? (?P<words>.+) -->$")
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+|:::+)(?P<info>[^`]*)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One block of a page."""

    page: str
    line: int
    language: str
    text: str
    kind: str = ""
    """``not run``, ``run by`` or empty: run with its page."""
    words: str = ""
    """The reason, or who runs it."""

    @property
    def code(self) -> bool:
        """Whether there is anything to run; directives and listings are none."""
        return self.language in CODE

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.language or 'no language'})"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, and indented ones under the language ``indented``."""
    lines = page.read_text().splitlines()
    name = str(page.relative_to(ROOT))
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence and fence["ticks"].startswith("`"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == fence["ticks"])
            note = NOTE.match(lines[at - 1]) if at else None
            words = fence["info"].split()
            yield Block(
                page=name, line=at + 1, language=words[0] if words else "",
                text="\n".join(line[len(fence["indent"]):] for line in lines[at + 1 : end]),
                kind=note["kind"] if note else "", words=note["words"] if note else "",
            )  # fmt: skip
            at = end
        elif lines[at].startswith("    ") and at and not lines[at - 1].strip():
            yield Block(page=name, line=at + 1, language="indented", text=lines[at].strip())
        at += 1


def commands(text: str) -> Iterator[str]:
    """Commands of a console block: what follows a prompt."""
    for line in text.splitlines():
        if line.startswith("$ "):
            yield line[2:]


def run_page(page: Path) -> None:
    """Run what a page does not except, in its order, in one process and in this folder."""
    from skyvec.cli import main

    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.kind or not block.code:
            continue
        if block.language == "python":
            code = compile(block.text, str(block), "exec")
            exec(code, names)  # noqa: S102 - our own pages
            continue
        if block.language != "console":
            subprocess.run(["bash", "-euc", block.text], check=True)  # noqa: S603, S607
            continue
        for command in commands(block.text):
            print(f"$ {command}", flush=True)
            words = shlex.split(command, comments=True)
            if words[0] != "skyvec":
                subprocess.run(command, shell=True, check=True)  # noqa: S602 - our own pages
                continue
            sys.argv = words
            try:
                main()
            except SystemExit as ended:
                if ended.code:
                    sys.exit(f"{block}: {command} ended with {ended.code}")


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        run_page(Path(asked).resolve())
