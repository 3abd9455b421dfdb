"""Commands of other packages: found by entry point, called with their words, harmless if broken."""

from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from skyvec.commands import neighbours

HEARD = []


def hear(words):
    """Listen to words."""
    HEARD.append(list(words))
    return 7


@pytest.fixture
def app(monkeypatch):
    points = [
        EntryPoint("hear", f"{__name__}:hear", neighbours.GROUP),
        EntryPoint("broken", "no_such_package:go", neighbours.GROUP),
    ]
    monkeypatch.setattr(EntryPoint, "load", _load)
    monkeypatch.setattr(neighbours, "entry_points", lambda **_: points)
    app = typer.Typer()
    neighbours.add_neighbours(app)
    return app


def _load(point):
    if point.name == "hear":
        return hear
    raise ModuleNotFoundError(point.value)


def test_every_word_reaches_the_other_package_and_its_exit_code_comes_back(app):
    result = CliRunner().invoke(app, ["hear", "recipe.toml", "--out", "run", "--help", "-x"])
    assert result.exit_code == 7
    assert HEARD[-1] == ["recipe.toml", "--out", "run", "--help", "-x"]


def test_help_names_each_by_its_first_line_and_survives_a_broken_one(app):
    said = CliRunner().invoke(app, ["--help"]).output
    assert "Listen to words." in said
    assert "from no_such_package:go" in said
