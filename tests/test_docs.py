"""Links of the documentation lead somewhere, and its tables are true."""

import re
from pathlib import Path

import pytest

from skyvec_schemas.quality_flags import Flag, Status, status_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_flags_is_the_code():
    page = (ROOT / "docs/formats.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)`.*\| (ok|partial|failed) \|$", page, re.MULTILINE)
    assert {(int(bit), name) for bit, name, _ in rows} == {
        (flag.value, str(flag.name).lower()) for flag in Flag
    }
    for bit, _, status in rows:
        assert status_of(int(bit)) == Status(status)
